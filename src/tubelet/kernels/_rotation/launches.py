"""The host side of QK-norm + RoPE: outputs, sizes and launches. Nothing here waits for the device.

Bytes moved, of ``n·h·d`` numbers of q and k together in 2 bytes: the forward ``4·n·h·d`` (read and written once), the
backward ``6·n·h·d``, and each ``4·n·d`` for the angles in float32, whatever the number of heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, Sizes, launch, power_of_two, strides
from tubelet.kernels._tuning import choose

__all__ = ["LARGEST", "Given", "backward", "fixed_backward", "fixed_forward", "forward"]

LARGEST = 512
"""The widest head that the kernels take."""
_ENOUGH = 1024
"""Programs that keep the largest GPUs busy."""


@dataclass(frozen=True)
class Given:
    """What both directions read: q ``(b, n, h, d)``, k ``(b, n, hk, d)``, angles ``(b, n, d/2)``; last axes lie dense.

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> Given(q, q, half, half, None, None, 1e-6, False).tokens
        5
    """

    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float
    interleaved: bool

    @property
    def tokens(self) -> int:
        """Of the whole batch."""
        return self.q.shape[0] * self.q.shape[1]

    def shared(self, **more: Tensor) -> dict[str, object]:
        """The arguments of both kernels; ``more`` tensors are read as well."""
        width = self.q.shape[-1]
        return {
            "Q": self.q,
            "K": self.k,
            "Q_WEIGHT": self.q_weight,
            "K_WEIGHT": self.k_weight,
            "COS": self.cos,
            "SIN": self.sin,
            "tokens": self.tokens,
            "length": self.q.shape[1],
            "q_heads": self.q.shape[2],
            "k_heads": self.k.shape[2],
            **strides({"q": self.q, "k": self.k, **more}, ("batch", "place", "head")),
            "r_by_batch": self.cos.stride(0),
            "r_by_place": self.cos.stride(1),
            "eps": self.eps,
            "D": width,
            "PAIRS": power_of_two(width // 2),
            "INTERLEAVED": self.interleaved,
        }


def forward(given: Given, launcher: Launcher = launch, sizes: Sizes | None = None) -> tuple[Tensor, Tensor]:
    """Normalised and turned q and k, contiguous; ``sizes`` None means the measured or the fixed ones.

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> given = Given(q, q, half, half, None, None, 1e-6, False)
        >>> forward(given, lambda kernel, grid, arguments, warps: print(grid))[0].shape
        (1, 2)
        torch.Size([1, 5, 2, 8])
    """
    from tubelet.kernels._rotation import kernel

    q_out, k_out = given.q.new_empty(given.q.shape), given.k.new_empty(given.k.shape)
    grid, sizes = _grid("rotation_forward", given, fixed_forward, sizes)
    arguments = {**given.shared(), "Q_OUT": q_out, "K_OUT": k_out, "TOKENS": sizes.tokens}
    if given.tokens:
        launcher(kernel.forward, grid, arguments, sizes.warps)
    return q_out, k_out


def backward(
    q_grad: Tensor, k_grad: Tensor, given: Given, launcher: Launcher = launch, sizes: Sizes | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q and k, contiguous, and of their weights ``(d,)`` (empty without one).

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> given = Given(q, q, half, half, torch.ones(8), None, 1e-6, False)
        >>> grads = backward(q, q, given, lambda kernel, grid, arguments, warps: None)
        >>> [tuple(grad.shape) for grad in grads]
        [(1, 5, 2, 8), (1, 5, 2, 8), (8,), (0,)]
    """
    from tubelet.kernels._rotation import kernel

    dq, dk = given.q.new_empty(given.q.shape), given.k.new_empty(given.k.shape)
    grid, sizes = _grid("rotation_backward", given, fixed_backward, sizes)
    sums = [_partial(given.q, weight, grid) for weight in (given.q_weight, given.k_weight)]
    arguments = {
        **given.shared(gq=q_grad, gk=k_grad),
        "Q_GRAD": q_grad,
        "K_GRAD": k_grad,
        "DQ": dq,
        "DK": dk,
        "Q_SUMS": sums[0],
        "K_SUMS": sums[1],
        "TOKENS": sizes.tokens,
    }
    if given.tokens:
        launcher(kernel.backward, grid, arguments, sizes.warps)
    dq_weight, dk_weight = (given.q.new_empty(0) if part is None else part.sum(0) for part in sums)
    return dq, dk, dq_weight, dk_weight


def fixed_forward(width: int) -> Sizes:
    """About 2,048 numbers of one head of some tokens a program.

    Example:
        >>> fixed_forward(128)
        Sizes(tokens=16, warps=4)
    """
    return Sizes(max(1, min(64, 2048 // power_of_two(width))), 4)


def fixed_backward(width: int) -> Sizes:
    """Half as many as forward: there is more to hold.

    Example:
        >>> fixed_backward(128)
        Sizes(tokens=8, warps=4)
    """
    return Sizes(max(1, min(32, 1024 // power_of_two(width))), 4)


def _grid(
    kernel: str, given: Given, fixed: Callable[[int], Sizes], sizes: Sizes | None
) -> tuple[tuple[int, int], Sizes]:
    """Programs over tokens and over heads: these are shared out where there are few tokens."""
    width = given.q.shape[-1]
    sizes = sizes or choose(kernel, given.q.device, width, given.q.dtype, fixed(width))
    programs = max(1, -(-given.tokens // sizes.tokens))
    return (programs, min(max(given.q.shape[2], given.k.shape[2]), -(-_ENOUGH // programs))), sizes


def _partial(x: Tensor, weight: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
    """Room for each program's sum."""
    if weight is None:
        return None
    return x.new_empty(grid[0] * grid[1] if x.numel() else 0, x.shape[-1], dtype=torch.float32)
