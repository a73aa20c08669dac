"""The host side of QK-norm + RoPE: outputs, sizes and launches. Nothing here waits for the device.

Bytes moved, of ``n·h·d`` numbers of q and k together in 2 bytes: the forward ``4·n·h·d`` (read and written once), the
backward ``6·n·h·d``, and each ``4·n·d`` for the angles in float32, whatever the number of heads. Where each head has
its own angles, these are ``2·n·h·d`` more, and the backward of learned ones writes as many.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, Sizes, launch, power_of_two, strides
from tubelet.kernels._tuning import choose

__all__ = ["LARGEST", "LARGEST_ACROSS", "Given", "Grads", "backward", "fixed_backward", "fixed_forward", "forward"]

LARGEST = 512
"""The widest head that the kernels take."""
LARGEST_ACROSS = 8192
"""The most numbers of all heads, each count and width rounded up to a power of two, that they norm together."""
_ENOUGH = 1024
"""Programs that keep the largest GPUs busy."""


@dataclass(frozen=True)
class Given:
    """What both directions read: q ``(b, n, h, d)``, k ``(b, n, hk, d)``, angles ``(b, n, d/2)``; last axes lie dense.

    Angles of each head's own are ``(b, n, h, d/2)``. ``axes``: the pairs of t, h and w, whose members are half an axis
    apart; None: neighbours.

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> Given(q, q, half, half).tokens
        5
    """

    q: Tensor
    k: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    _: KW_ONLY
    eps: float = 1e-6
    norm: str = "rms"
    across: bool = False
    axes: tuple[int, int, int] | None = None

    @property
    def tokens(self) -> int:
        """Of the whole batch."""
        return self.q.shape[0] * self.q.shape[1]

    @property
    def heads(self) -> int:
        """The most of q and of k."""
        return max(self.q.shape[2], 0 if self.k is None else self.k.shape[2])

    @property
    def per_head(self) -> bool:
        """Whether each head has its own angles."""
        return self.cos is not None and self.cos.ndim == 4

    def shared(self, **more: Tensor | None) -> dict[str, object]:
        """The arguments of all kernels; ``more`` tensors are read as well."""
        width = self.q.shape[-1]
        read = {"q": self.q, "k": self.k, **more}
        steps = strides({name: self.q if x is None else x for name, x in read.items()}, ("batch", "place", "head"))
        turns = [0, 0, 0] if self.cos is None else [*self.cos.stride()[:-1], 0][:3]
        return {
            "Q": self.q,
            "K": self.k,
            "Q_WEIGHT": self.q_weight,
            "K_WEIGHT": self.k_weight,
            "Q_BIAS": self.q_bias,
            "K_BIAS": self.k_bias,
            "COS": self.cos,
            "SIN": self.sin,
            "tokens": self.tokens,
            "length": self.q.shape[1],
            "q_heads": self.q.shape[2],
            "k_heads": 0 if self.k is None else self.k.shape[2],
            **steps,
            **{f"r_by_{name}": step for name, step in zip(("batch", "place", "head"), turns, strict=True)},
            "eps": self.eps,
            "D": width,
            "PAIRS": power_of_two(width // 2),
            "AXES": self.axes,
            "NORM": self.norm,
            "PER_HEAD": self.per_head,
        }


@dataclass(frozen=True)
class Grads:
    """What the backward gives; None of what is not there.

    Example:
        >>> Grads(torch.ones(1), None, [None] * 4, [None] * 2).dk is None
        True
    """

    dq: Tensor
    dk: Tensor | None
    of_affine: list[Tensor | None]
    of_angles: list[Tensor | None]


def forward(given: Given, launcher: Launcher = launch, sizes: Sizes | None = None) -> tuple[Tensor, Tensor | None]:
    """Normalised and turned q and k, contiguous; ``sizes`` None means the measured or the fixed ones.

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> forward(Given(q, q, half, half), lambda kernel, grid, arguments, warps: print(grid))[0].shape
        (1, 2)
        torch.Size([1, 5, 2, 8])
    """
    from tubelet.kernels._rotation import kernel

    q_out, k_out = _like(given.q), None if given.k is None else _like(given.k)
    grid, tile, warps = _plan("rotation_forward", given, fixed_forward, sizes)
    if given.tokens:
        run = kernel.forward_across if given.across else kernel.forward
        launcher(run, grid, {**given.shared(), "Q_OUT": q_out, "K_OUT": k_out, **tile}, warps)
    return q_out, k_out


def backward(
    q_grad: Tensor,
    k_grad: Tensor | None,
    given: Given,
    launcher: Launcher = launch,
    sizes: Sizes | None = None,
    of_angles: bool = False,
) -> Grads:
    """The gradients of q and k, contiguous, of the norms' weights and biases and, where asked for, of angles.

    Example:
        >>> q, half = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 4)
        >>> given = Given(q, q, half, half, q_weight=torch.ones(8))
        >>> grads = backward(q, q, given, lambda kernel, grid, arguments, warps: None)
        >>> grads.dk.shape, [None if grad is None else tuple(grad.shape) for grad in grads.of_affine]
        (torch.Size([1, 5, 2, 8]), [(8,), None, None, None])
    """
    from tubelet.kernels._rotation import kernel

    dq, dk = _like(given.q), None if given.k is None else _like(given.k)
    grid, tile, warps = _plan("rotation_backward", given, fixed_backward, sizes)
    vectors = (given.q_weight, given.k_weight, given.q_bias, given.k_bias)
    sums = [_partial(given.q, vector, grid) for vector in vectors]
    sides = 2 if given.across and dk is not None else 1  # of q and of k, or of both together
    turns = [None if x is None or not of_angles else _room(sides, x) for x in (given.cos, given.sin)]
    places = [[None] * sides if x is None else list(x) for x in turns]
    arguments: dict[str, Any] = {
        **given.shared(gq=q_grad, gk=k_grad),
        "Q_GRAD": q_grad,
        "K_GRAD": k_grad,
        "DQ": dq,
        "DK": dk,
        **dict(zip(("Q_SUMS", "K_SUMS", "Q_BIAS_SUMS", "K_BIAS_SUMS"), sums, strict=True)),
        "DCOS": places[0][0],
        "DSIN": places[1][0],
        **tile,
    }
    if given.across:
        arguments |= {"K_DCOS": places[0][-1], "K_DSIN": places[1][-1]}
        grid = (2 * grid[0],) if dk is not None else grid
    if given.tokens:
        launcher(kernel.backward_across if given.across else kernel.backward, grid, arguments, warps)
    return Grads(dq, dk, *([None if part is None else part.sum(0) for part in parts] for parts in (sums, turns)))


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


def _plan(
    kernel: str, given: Given, fixed: Callable[[int], Sizes], sizes: Sizes | None
) -> tuple[tuple[int, ...], dict[str, int], int]:
    """Programs, the tile of one, and its warps.

    Heads are shared out among programs where there are few tokens. All heads of a token are one tile, of which a thread
    has 16 numbers.
    """
    width = given.q.shape[-1]
    if given.across:
        heads = power_of_two(given.heads)
        warps = max(1, min(16, heads * power_of_two(width) // 512))
        return (max(1, min(given.tokens, _ENOUGH)),), {"HEADS": heads}, warps
    sizes = sizes or choose(kernel, given.q.device, width, given.q.dtype, fixed(width))
    programs = max(1, -(-given.tokens // sizes.tokens))
    return (programs, min(given.heads, -(-_ENOUGH // programs))), {"TOKENS": sizes.tokens}, sizes.warps


def _partial(x: Tensor, vector: Tensor | None, grid: tuple[int, ...]) -> Tensor | None:
    """Room for each program's sum."""
    if vector is None:
        return None
    programs = torch.Size(grid).numel() if x.numel() else 0
    return x.new_empty(programs, *vector.shape, dtype=torch.float32)


def _like(x: Tensor) -> Tensor:
    """Room for as many numbers, dense."""
    return x.new_empty(x.shape)


def _room(sides: int, angles: Tensor) -> Tensor:
    """For the gradients of angles, of one kernel each."""
    return angles.new_empty(sides, *angles.shape, dtype=torch.float32)
