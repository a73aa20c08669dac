"""Transformer blocks as lists of residual branches: ``x + gate · f(norm(x)·(1 + scale) + shift)``.

One branch expresses the pre-norm transformer (no modulation), DiT's adaLN-Zero (arXiv:2212.09748, figure 3), sandwich
norms (a post-norm) and tanh gates (a gate function); a block is nothing but its branches in order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Rows
from tubelet.protocols import ModulationSource

__all__ = ["Branch", "TransformerBlock", "modulate", "normed_and_modulated"]


def modulate(x: Float[Tensor, "*lead d"], shift: Rows, scale: Rows) -> Float[Tensor, "*lead d"]:
    """``x·(1 + scale) + shift`` with one row per sample, frame or token.

    Raises:
        ValueError: the rows are those of other tokens than ``x``.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> modulate(torch.ones(3, 2), one, one).tolist()[0]
        [3.0, 3.0]
    """
    return torch.addcmul(_expand(shift, x) + x, x, _expand(scale, x))


def normed_and_modulated(
    x: Float[Tensor, "*lead d"], norm: nn.Module, shift: Rows, scale: Rows
) -> Float[Tensor, "*lead d"]:
    """``modulate(norm(x), shift, scale)``: what :func:`tubelet.fused.use_kernels` replaces by one kernel.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> normed_and_modulated(torch.ones(3, 2), nn.Identity(), one, one).tolist()[0]
        [3.0, 3.0]
    """
    return modulate(norm(x), shift, scale)


class Branch(nn.Module):
    """One residual branch.

    Args:
        inner: the function of the branch (attention, cross-attention, MLP).
        norm: the norm before it; None for none.
        modulation: gives shift, scale and gate from the conditioning; None for an unmodulated branch.
        post_norm: a norm of the inner result, before the gate (sandwich); None for none.
        gate: what the gate passes through, such as ``torch.tanh``; None for the gate itself.
        takes: names of the context entries handed to ``inner`` as keywords.

    Example:
        >>> branch = Branch(nn.Linear(8, 8), nn.LayerNorm(8))
        >>> branch(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    normed_and_modulated: Callable[[Tensor, nn.Module, Rows, Rows], Tensor] = staticmethod(normed_and_modulated)

    def __init__(
        self,
        inner: nn.Module,
        norm: nn.Module | None = None,
        *,
        modulation: nn.Module | None = None,
        post_norm: nn.Module | None = None,
        gate: Callable[[Tensor], Tensor] | None = None,
        takes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.inner = inner
        self.norm = nn.Identity() if norm is None else norm
        self.post_norm = nn.Identity() if post_norm is None else post_norm
        self.modulation: ModulationSource | None = modulation
        self.gate, self.takes = gate, tuple(takes)

    def forward(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Add the branch to ``x``.

        Raises:
            ValueError: the branch is modulated but ``cond`` is None or of other tokens, or ``context`` lacks a name it
                takes.
        """
        if self.modulation is None:
            return x + self._run(self.norm(x), context)
        if cond is None:
            raise ValueError("cond is None, but this branch is modulated: give Rows of conditioning")
        shift, scale, gate = self.modulation(cond).chunk(3)
        opened = gate if self.gate is None else gate.map(self.gate)
        h = self.normed_and_modulated(x, self.norm, shift, scale)
        return torch.addcmul(x, _expand(opened, x), self._run(h, context).to(x.dtype))

    def _run(self, h: Tensor, context: Mapping[str, Any] | None) -> Tensor:
        given = {} if context is None else context
        missing = [name for name in self.takes if name not in given]
        if missing:
            raise ValueError(f"context lacks {missing}: this branch takes {list(self.takes)}, got {sorted(given)}")
        out: Tensor = self.post_norm(self.inner(h, **{name: given[name] for name in self.takes}))
        return out

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
        ) -> Float[Tensor, "*lead d"]: ...


class TransformerBlock(nn.Module):
    """Residual branches in order.

    Args:
        branches: e.g. self-attention, cross-attention, MLP.

    Example:
        >>> from tubelet import Attention, MLP
        >>> block = TransformerBlock([Branch(Attention(8, 2), nn.LayerNorm(8)), Branch(MLP(8), nn.LayerNorm(8))])
        >>> block(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Apply every branch in turn."""
        for branch in self.branches:
            x = branch(x, cond, context)
        return x

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
        ) -> Float[Tensor, "*lead d"]: ...


def _expand(rows: Rows, x: Tensor) -> Tensor:
    """The value of each token; rows of other tokens, which would make a larger tensor of ``x``, are an error."""
    values = rows.expand()
    sides = zip(reversed(values.shape), reversed(x.shape), strict=False)
    if values.ndim > x.ndim or any(side not in (1, own) for side, own in sides):
        raise ValueError(f"rows expand to shape {tuple(values.shape)}, which does not fit x of {tuple(x.shape)}")
    return values
