"""Transformer blocks as lists of residual branches: ``x + gate · f(norm(x)·(1 + scale) + shift)``.

One branch expresses the pre-norm transformer (no modulation), DiT's adaLN-Zero (arXiv:2212.09748, figure 3), gates or
scales alone, sandwich norms (a post-norm) and tanh gates (a gate function); a block is nothing but its branches in
order, with one modulation for all of them where they share it (adaLN-single, PixArt-alpha, arXiv:2310.00426).

Norm, modulation and residual are computed in the wider of the dtypes of the tokens and of the modulation, and the
tokens keep theirs: float32 rows make a float32 island in a bfloat16 model, as Wan has it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Rows
from tubelet.protocols import ModulationSource

__all__ = [
    "Branch",
    "LongSkip",
    "ModulatedNorm",
    "Part",
    "TransformerBlock",
    "gated",
    "in_turn",
    "modulate",
    "norm_modulate",
    "taken",
]

Part = Literal["shift", "scale", "gate"]
"""What a row of modulation holds, end to end. Example: ``("scale", "gate")``."""


def modulate(
    x: Float[Tensor, "*lead d"], shift: Rows | None = None, scale: Rows | None = None
) -> Float[Tensor, "*lead d"]:
    """``x·(1 + scale) + shift`` with one row per sample, frame or token; None leaves its part out.

    Raises:
        ValueError: the rows are those of other tokens than ``x``.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> modulate(torch.ones(3, 2), one, one).tolist()[0]
        [3.0, 3.0]
    """
    shifted = x if shift is None else _expand(shift, x) + x
    return shifted if scale is None else torch.addcmul(shifted, x, _expand(scale, x))


def norm_modulate(
    norm: Callable[[Tensor], Tensor], x: Float[Tensor, "*lead d"], shift: Rows | None = None, scale: Rows | None = None
) -> Float[Tensor, "*lead d"]:
    """``norm(x)·(1 + scale) + shift``, rounded once to the dtype of ``x`` where the rows are wider.

    What :func:`tubelet.fused.use_kernels` replaces by one kernel.

    Example:
        >>> rows = Rows(torch.zeros(1, 2))
        >>> norm_modulate(nn.LayerNorm(2), torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16), rows, rows).dtype
        torch.bfloat16
    """
    return modulate(norm(x.to(_widest(x, shift, scale))), shift, scale).to(x.dtype)


def gated(
    x: Float[Tensor, "*lead d"], update: Float[Tensor, "*lead d"], gate: Rows | None = None
) -> Float[Tensor, "*lead d"]:
    """``x + gate · update`` in the wider dtype of ``x`` and the gate, returned in that of ``x``; None: no gate.

    What :func:`tubelet.fused.use_kernels` replaces by one kernel.

    Raises:
        ValueError: the rows are those of other tokens than ``x``.

    Example:
        >>> gated(torch.ones(1, 2), torch.ones(1, 2), Rows(torch.tensor([[0.0, 2.0]]))).tolist()
        [[1.0, 3.0]]
    """
    if gate is None:
        return (x + update).to(x.dtype)
    wide = _widest(x, gate)
    return torch.addcmul(x.to(wide), _expand(gate, x).to(wide), update.to(wide)).to(x.dtype)


class Branch(nn.Module):
    """One residual branch.

    Args:
        inner: the function of the branch (attention, cross-attention, MLP).
        norm: the norm before it; None for none.
        modulation: gives rows of ``parts`` from the conditioning; None for an unmodulated branch.
        parts: what those rows hold, end to end: shift, scale and gate, or some of them.
        post_norm: a norm of the inner result, before the gate (sandwich); None for none.
        gate: what the gate passes through, such as ``torch.tanh``; None for the gate itself.
        takes: names of the context entries handed to ``inner`` as keywords.

    Raises:
        ValueError: ``parts`` names a part twice or one that does not exist.

    Example:
        >>> branch = Branch(nn.Linear(8, 8), nn.LayerNorm(8))
        >>> branch(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    norm_modulate: Callable[..., Tensor] = staticmethod(norm_modulate)
    gated: Callable[..., Tensor] = staticmethod(gated)

    def __init__(
        self,
        inner: nn.Module,
        norm: nn.Module | None = None,
        *,
        modulation: nn.Module | None = None,
        parts: Sequence[Part] = ("shift", "scale", "gate"),
        post_norm: nn.Module | None = None,
        gate: Callable[[Tensor], Tensor] | None = None,
        takes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if len(set(parts)) != len(parts) or not set(parts) <= set(get_args(Part)):
            raise ValueError(f"parts must be different ones of {get_args(Part)}, got {tuple(parts)}")
        self.inner = inner
        self.norm = nn.Identity() if norm is None else norm
        self.post_norm = nn.Identity() if post_norm is None else post_norm
        self.modulation: ModulationSource | None = modulation
        self.parts, self.gate, self.takes = tuple(parts), gate, tuple(takes)

    def forward(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Add the branch to ``x``.

        Raises:
            ValueError: the branch is modulated but ``cond`` is None or of other tokens, or ``context`` lacks a name it
                takes.
        """
        h, gate = self.enter(x, cond)
        return self.leave(x, self.run(h, context), gate)

    def enter(self, x: Float[Tensor, "*lead d"], cond: Rows | None) -> tuple[Float[Tensor, "*lead d"], Rows | None]:
        """What ``inner`` is given, and the gate of what it returns."""
        rows = self.rows(cond)
        return self.norm_modulate(self.norm, x, rows.get("shift"), rows.get("scale")), rows.get("gate")

    def leave(
        self, x: Float[Tensor, "*lead d"], update: Float[Tensor, "*lead d"], gate: Rows | None
    ) -> Float[Tensor, "*lead d"]:
        """Add what ``inner`` returned to ``x``, through the norm behind it and the gate."""
        return self.gated(x, self.post_norm(update), gate)

    def rows(self, cond: Rows | None) -> dict[Part, Rows]:
        """The parts of the modulation by name; none for an unmodulated branch."""
        if self.modulation is None:
            return {}
        if cond is None:
            raise ValueError("cond is None, but this branch is modulated: give Rows of conditioning")
        rows = dict(zip(self.parts, self.modulation(cond).chunk(len(self.parts)), strict=True))
        if self.gate is not None and "gate" in rows:
            rows["gate"] = rows["gate"].map(self.gate)
        return rows

    def run(self, h: Float[Tensor, "*lead d"], context: Mapping[str, Any] | None) -> Float[Tensor, "*lead d"]:
        """What ``inner`` makes of ``h`` and the entries of the context that it takes."""
        out: Tensor = self.inner(h, **taken(context, self.takes))
        return out

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
        ) -> Float[Tensor, "*lead d"]: ...


def in_turn(
    branches: Iterable[nn.Module], x: Float[Tensor, "*lead d"], cond: Rows | None, context: Mapping[str, Any] | None
) -> Float[Tensor, "*lead d"]:
    """Every branch in turn.

    What :func:`tubelet.fused.use_kernels` replaces by one kernel for the end of a branch and the start of the next.

    Example:
        >>> in_turn([Branch(nn.Identity()), Branch(nn.Identity())], torch.ones(1, 2), None, None).tolist()
        [[4.0, 4.0]]
    """
    for branch in branches:
        x = branch(x, cond, context)
    return x


class TransformerBlock(nn.Module):
    """Residual branches in order.

    Args:
        branches: e.g. self-attention, cross-attention, MLP.
        modulation: what the branches share of the modulation, such as an ``AdaLNSingle``: the branches get its rows as
            their conditioning, each its part through a ``ModulationSlice``; None hands them the block's conditioning.

    Example:
        >>> from tubelet import Attention, MLP
        >>> block = TransformerBlock([Branch(Attention(8, 2), nn.LayerNorm(8)), Branch(MLP(8), nn.LayerNorm(8))])
        >>> block(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    in_turn: Callable[..., Tensor] = staticmethod(in_turn)

    def __init__(self, branches: Sequence[nn.Module], modulation: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.modulation: ModulationSource | None = modulation

    def forward(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Apply every branch in turn.

        Raises:
            ValueError: the block is modulated but ``cond`` is None; what a branch refuses.
        """
        if self.modulation is not None:
            if cond is None:
                raise ValueError("cond is None, but this block is modulated: give Rows of conditioning")
            cond = self.modulation(cond)
        return self.in_turn(self.branches, x, cond, context)

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows | None = None, context: Mapping[str, Any] | None = None
        ) -> Float[Tensor, "*lead d"]: ...


def taken(context: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """The named entries of a context.

    Raises:
        ValueError: the context lacks some.

    Example:
        >>> taken({"layout": None, "rope": 3}, ["rope"])
        {'rope': 3}
    """
    given = {} if context is None else context
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"context lacks {missing}: this branch takes {list(names)}, got {sorted(given)}")
    return {name: given[name] for name in names}


class LongSkip(nn.Module):
    """A block behind a long skip connection: ``block(linear([x, skip]))``.

    U-ViT (Bao et al., 2022, arXiv:2209.12152, section 3.1), whose later blocks each take the tokens that an earlier one
    made, the last of them first.

    Args:
        dim: width of the tokens and of the skip.
        block: what follows.

    Example:
        >>> LongSkip(8, Branch(nn.Linear(8, 8)))(torch.randn(2, 5, 8), torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, dim: int, block: nn.Module, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.join = nn.Linear(2 * dim, dim, device=device, dtype=dtype)
        self.block = block
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 0.02, zero bias; the block initialises itself."""
        nn.init.normal_(self.join.weight, std=0.02)
        nn.init.zeros_(self.join.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        skip: Float[Tensor, "*lead d"],
        cond: Rows | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "*lead d"]:
        """Join ``x`` and ``skip``, then the block as usual."""
        out: Tensor = self.block(self.join(torch.cat([x, skip], dim=-1)), cond, context)
        return out

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            skip: Float[Tensor, "*lead d"],
            cond: Rows | None = None,
            context: Mapping[str, Any] | None = None,
        ) -> Float[Tensor, "*lead d"]: ...


class ModulatedNorm(nn.Module):
    """``norm(x)·(1 + scale) + shift``, DiT's last norm; a plain norm without a modulation.

    Args:
        norm: the norm.
        modulation: gives rows of shift and scale, end to end, from the conditioning; None for none.

    Example:
        >>> ModulatedNorm(nn.LayerNorm(8))(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, norm: nn.Module, modulation: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.modulation: ModulationSource | None = modulation

    def forward(self, x: Float[Tensor, "*lead d"], cond: Rows | None = None) -> Float[Tensor, "*lead d"]:
        """Norm, then modulate.

        Raises:
            ValueError: the norm is modulated but ``cond`` is None.
        """
        if self.modulation is None:
            return norm_modulate(self.norm, x)
        if cond is None:
            raise ValueError("cond is None, but this norm is modulated: give Rows of conditioning")
        shift, scale = self.modulation(cond).chunk(2)
        return norm_modulate(self.norm, x, shift, scale)

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"], cond: Rows | None = None) -> Float[Tensor, "*lead d"]: ...


def _expand(rows: Rows, x: Tensor) -> Tensor:
    """The value of each token; rows of other tokens, which would make a larger tensor of ``x``, are an error."""
    values = rows.expand()
    sides = zip(reversed(values.shape), reversed(x.shape), strict=False)
    if values.ndim > x.ndim or any(side not in (1, own) for side, own in sides):
        raise ValueError(f"rows expand to shape {tuple(values.shape)}, which does not fit x of {tuple(x.shape)}")
    return values


def _widest(x: Tensor, *rows: Rows | None) -> torch.dtype:
    """The dtype that holds ``x`` and all rows."""
    dtype = x.dtype
    for each in rows:
        dtype = dtype if each is None else torch.promote_types(dtype, each.values.dtype)
    return dtype
