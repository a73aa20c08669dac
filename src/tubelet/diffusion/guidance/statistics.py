"""Sums, deviations and quantiles over each sample of a batch, packed or not. Shapes: ``(*lead, c)``.

A guidance with norms or quantiles means those of one video; taken over a whole packed axis, a sample would depend on
its neighbours.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelet.layout import LayoutIndex, Rows

__all__ = ["PerSample"]


@dataclass(frozen=True, eq=False)
class PerSample:
    """Statistics of each sample over its tokens and channels, as tensors that broadcast against ``(*lead, c)``.

    They are computed in at least float32 and read nothing on the host.

    Args:
        layout: where the samples lie; padding counts for nothing. Rows of a packed layout say it too, but not which
            tokens are padding. None: ``(n, c)`` is one sample, and of any other tensor each entry of the first axis.
        counted: False at tokens that shall not count, such as given frames: ``~known.tokens``. They may hold anything.

    Raises:
        ValueError: ``layout`` is none on a device, or rows of none; at the call, it or ``counted`` have other tokens
            than the values.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)]).on("cpu")
        >>> PerSample(layout).sum(torch.tensor([[1.0], [2.0], [5.0]])).tolist()
        [[3.0], [3.0], [5.0]]
    """

    layout: LayoutIndex | Rows | None = None
    counted: Bool[Tensor, "*lead"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layout, Rows) and (self.layout.index is None or self.layout.owner is None):
            raise ValueError("layout must be rows of a packed layout, got rows that name no samples")
        if not isinstance(self.layout, LayoutIndex | Rows | None):
            raise ValueError(f"layout must be that of a device, layout.on(device), got {type(self.layout).__name__}")

    def at(self, t: Rows) -> "PerSample":
        """These statistics; where there is no layout, those of the samples that noise levels of a packed axis name.

        Raises:
            ValueError: ``t`` has several rows on one axis, and names no samples.

        Example:
            >>> from tubelet.layout import Grid, TokenLayout
            >>> layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)])
            >>> t = layout.rows(torch.tensor([0.1, 0.5]), "sample")
            >>> PerSample().at(t).sum(torch.tensor([[1.0], [2.0], [5.0]])).tolist()
            [[3.0], [3.0], [5.0]]
        """
        if self.layout is not None or t.index is None or t.index.ndim > 1 or t.values.shape[0] == 1:
            return self
        if t.owner is None:
            raise ValueError(
                f"t has {t.values.shape[0]} rows on one axis and names no samples: give samples=PerSample(layout)"
            )
        return replace(self, layout=t)

    def sum(self, values: Float[Tensor, "*lead c"]) -> Float[Tensor, "..."]:
        """The sum over each sample."""
        return self._total(self._where(values).to(_wide(values)).sum(dim=-1), values)

    def dot(self, a: Float[Tensor, "*lead c"], b: Float[Tensor, "*lead c"]) -> Float[Tensor, "..."]:
        """The scalar product of each sample of ``a`` with that of ``b``.

        Example:
            >>> PerSample().dot(torch.ones(2, 3), torch.full((2, 3), 2.0))
            tensor([[12.]])
        """
        dtype = _wide(a)
        return self.sum(self._where(a).to(dtype) * self._where(b).to(dtype))

    def norm(self, values: Float[Tensor, "*lead c"]) -> Float[Tensor, "..."]:
        """The Euclidean norm of each sample."""
        return self.dot(values, values).sqrt()

    def std(self, values: Float[Tensor, "*lead c"]) -> Float[Tensor, "..."]:
        """The standard deviation of each sample, unbiased; NaN for a sample of one number.

        Example:
            >>> PerSample().std(torch.tensor([[1.0, 3.0]]))
            tensor([[1.4142]])
        """
        values = values.to(_wide(values))
        count = self._count(values)
        centred = values - self.sum(values) / count.clamp(min=1)
        return (self.dot(centred, centred) / (count - 1)).sqrt()

    def quantile(self, values: Float[Tensor, "*lead c"], q: float) -> Float[Tensor, "..."]:
        """The quantile of each sample, linear between its neighbours; 0 for a sample without numbers.

        Example:
            >>> PerSample().quantile(torch.tensor([[1.0, 2.0, 4.0]]), 0.75)
            tensor([[3.]])
        """
        width, owner, rows = values.shape[-1], self._owner(values), self._rows(values)
        counted = self._counted(values)
        owner = owner if counted is None else torch.where(counted, owner, rows)  # behind all samples
        flat, order = values.to(_wide(values)).flatten().sort()
        of = owner.flatten().repeat_interleave(width, output_size=flat.numel())[order]
        flat = flat[of.argsort(stable=True)]
        ends = torch.searchsorted(of.sort().values, torch.arange(rows + 1, device=flat.device))
        start, last = ends[:-1], (ends.diff() - 1).clamp(min=0)
        place = last.double() * q
        low, high = (flat[(start + side.long()).clamp(max=flat.numel() - 1)] for side in (place.floor(), place.ceil()))
        found = torch.where(ends.diff() > 0, torch.lerp(low, high, place.frac().to(flat.dtype)), 0)
        return self._spread(found, values)

    def _count(self, values: Tensor) -> Tensor:
        """How many numbers of each sample count."""
        return self.sum(torch.ones_like(values))

    def _where(self, values: Tensor) -> Tensor:
        counted = self._counted(values)
        return values if counted is None else torch.where(counted[..., None], values, 0)

    def _counted(self, values: Tensor) -> Tensor | None:
        """True where a token counts; None where all do."""
        lead = tuple(values.shape[:-1])
        for name, shape in (("layout", _tokens(self.layout)), ("counted", _shape(self.counted))):
            if shape is not None and shape != lead:
                raise ValueError(f"{name} has tokens {shape}, but the predictions have {lead}")
        if not isinstance(self.layout, LayoutIndex) or self.layout.dense:
            return self.counted
        return self.layout.valid if self.counted is None else self.layout.valid & self.counted

    def _total(self, tokens: Float[Tensor, "*lead"], values: Tensor) -> Tensor:
        """One number per token, summed over each sample."""
        if self.layout is None or (isinstance(self.layout, LayoutIndex) and self.layout.dense):
            return tokens.sum(dim=tuple(range(int(values.ndim > 2), tokens.ndim)), keepdim=True)[..., None]
        total = tokens.new_zeros(self._rows(values))
        return self._spread(total.index_add(0, self._owner(values).flatten(), tokens.flatten()), values)

    def _spread(self, per_sample: Float[Tensor, " s"], values: Tensor) -> Tensor:
        """The number of each token's sample."""
        return per_sample[self._owner(values)][..., None]

    def _owner(self, values: Tensor) -> Int[Tensor, "*lead"]:
        """The sample of each token; padding has a row of its own, so that it reaches no sample's gradient."""
        if isinstance(self.layout, Rows):
            assert self.layout.owner is not None
            return self.layout.owner[self.layout.index]
        if self.layout is not None:
            return torch.where(self.layout.valid, self.layout.sample, self.layout.seqlens.shape[0])
        lead = values.shape[:-1]
        rows = torch.arange(self._rows(values), device=values.device)
        return rows.view(-1, *(1,) * (len(lead) - 1)).expand(lead)

    def _rows(self, values: Tensor) -> int:
        """How many samples there are, with that of padding."""
        if isinstance(self.layout, Rows):
            return self.layout.values.shape[0] + 1  # no sample has a number as high as that of its last row
        if self.layout is not None:
            return self.layout.seqlens.shape[0] + 1
        return values.shape[0] if values.ndim > 2 else 1


def _tokens(layout: LayoutIndex | Rows | None) -> tuple[int, ...] | None:
    return layout.shape if isinstance(layout, LayoutIndex) else _shape(layout.index if layout else None)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
