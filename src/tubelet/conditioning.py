"""Conditioning: embeddings of noise levels and labels, and the sources of modulation.

The timestep embedding is DiT's (Peebles & Xie, 2022, arXiv:2212.09748, section 3.2; sinusoid of Vaswani et al. in
``[cos, sin]`` order, then a two-layer MLP); adaLN-Zero is its zero-initialised shift, scale and gate. AdaLN-single
shares the projection among all blocks, each of which adds a table (PixArt-alpha, arXiv:2310.00426, section 2.3);
adaLN-LoRA lets each add a low-rank term instead (W.A.L.T, arXiv:2312.06662). All modules act on rows,
``(r, ...)``: once per distinct noise level, never once per token.
"""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.layout import Rows

__all__ = [
    "AdaLNLoRA",
    "AdaLNSingle",
    "AdaLNZero",
    "LabelEmbedding",
    "ModulationSlice",
    "NumbersEmbedding",
    "TimestepEmbedding",
    "timestep_sinusoid",
]


def timestep_sinusoid(
    t: Float[Tensor, " r"], dim: int, max_period: float = 10000.0, freq_shift: int = 0
) -> Float[Tensor, "r dim"]:
    """``[cos(t·f), sin(t·f)]`` with ``f_i = max_period^(-i / (dim/2 - freq_shift))``, in float32 or better.

    Args:
        t: model times, one per row; in whatever unit the network was trained with (DiT: 0..1000).
        dim: even number of features.
        freq_shift: 0 ends before the frequency ``1/max_period``, 1 at it (as DDPM, and diffusers' DiT).

    Raises:
        ValueError: ``dim`` is odd, or ``freq_shift`` leaves no frequency to divide by.

    Example:
        >>> timestep_sinusoid(torch.tensor([0.0]), 4).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    if freq_shift >= dim // 2:
        raise ValueError(f"freq_shift={freq_shift} must be less than half of dim={dim}")
    wide = torch.promote_types(t.dtype, torch.float32)
    slope = -math.log(max_period) / (dim // 2 - freq_shift)
    frequencies = torch.exp(torch.arange(dim // 2, device=t.device, dtype=wide) * slope)
    angles = t.to(wide)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Model times to conditioning vectors: sinusoid, Linear, SiLU, Linear (DiT, section 3.2).

    Args:
        dim: width of the result.
        frequencies: width of the sinusoid.
        freq_shift: as in :func:`timestep_sinusoid`.

    Example:
        >>> TimestepEmbedding(32)(torch.tensor([0.0, 500.0])).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        dim: int,
        frequencies: int = 256,
        *,
        freq_shift: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.frequencies, self.freq_shift = frequencies, freq_shift
        self.up = nn.Linear(frequencies, dim, device=device, dtype=dtype)
        self.down = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 0.02, zero biases."""
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, t: Float[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """``(r,)`` model times to ``(r, dim)``."""
        features = timestep_sinusoid(t, self.frequencies, freq_shift=self.freq_shift).to(self.up.weight.dtype)
        out: Tensor = self.down(F.silu(self.up(features)))
        return out

    if TYPE_CHECKING:

        def __call__(self, t: Float[Tensor, " r"]) -> Float[Tensor, "r d"]: ...


class NumbersEmbedding(nn.Module):
    """A few numbers of a sample (frames a second, height and width, aspect) to one vector, to add to its conditioning.

    Each number has its own part of the vector, and all share one sinusoid and MLP (PixArt-alpha, arXiv:2310.00426, and
    SDXL, arXiv:2307.01952, section 2.2).

    Args:
        dim: width of the result, a multiple of ``count``.
        count: how many numbers.
        frequencies: width of the sinusoid of each.

    Raises:
        ValueError: ``dim`` is not a multiple of ``count``; at the call, other than ``count`` numbers are given.

    Example:
        >>> NumbersEmbedding(32, count=2)(torch.tensor([[480.0, 832.0], [256.0, 256.0]])).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        dim: int,
        count: int,
        frequencies: int = 256,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if count < 1 or dim % count:
            raise ValueError(f"dim={dim} is not a multiple of count={count}")
        self.count = count
        self.each = TimestepEmbedding(dim // count, frequencies, device=device, dtype=dtype)

    def forward(self, numbers: Float[Tensor, "r count"]) -> Float[Tensor, "r d"]:
        """``(r, count)`` numbers to ``(r, dim)``."""
        if numbers.shape[-1] != self.count:
            raise ValueError(f"numbers has {numbers.shape[-1]} a row, but the module was made for count={self.count}")
        return self.each(numbers.flatten()).reshape(numbers.shape[0], -1)

    if TYPE_CHECKING:

        def __call__(self, numbers: Float[Tensor, "r count"]) -> Float[Tensor, "r d"]: ...


class LabelEmbedding(nn.Module):
    """A table of class vectors with one more row, the last, for the null condition of classifier-free guidance.

    Args:
        classes: number of labels; label ``classes`` is the null one (arXiv:2207.12598, section 3).
        dim: width of the vectors.
        null: whether there is a null label; without, the attribute ``null`` is None.

    Raises:
        ValueError: at the call on the CPU, a label is outside the table (on other devices the lookup itself fails).

    Example:
        >>> table = LabelEmbedding(10, 8)
        >>> table(torch.tensor([3, table.null])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        null: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.null = classes if null else None
        self.table = nn.Embedding(classes + null, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal rows of standard deviation 0.02."""
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """``(r,)`` labels to ``(r, dim)``."""
        if labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"labels must be whole numbers, int64 or int32, got {labels.dtype}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            (low, high), last = (int(side) for side in labels.aminmax()), self.table.num_embeddings - 1
            if low < 0 or high > last:
                raise ValueError(f"labels lie between {low} and {high}, but the table has 0 to {last}")
        out: Tensor = self.table(labels)
        return out

    if TYPE_CHECKING:

        def __call__(self, labels: Int[Tensor, " r"]) -> Float[Tensor, "r d"]: ...


class AdaLNZero(nn.Module):
    """Rows of conditioning to rows of shift, scale and gate: ``Linear(SiLU(c))``, zero-initialised (DiT, section 3.2).

    Args:
        dim: width of the tokens it modulates.
        cond_dim: width of the conditioning.
        parts: 3 for a branch (shift, scale, gate), 2 for a final layer (shift, scale), 1 for a gate alone.

    Example:
        >>> AdaLNZero(8, 16)(Rows(torch.randn(2, 16))).values.abs().max().item()
        0.0
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        parts: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(cond_dim, parts * dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zeros: at the start every branch is closed and every block the identity."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, cond: Rows) -> Rows:
        """Rows ``(r, cond_dim)`` to rows ``(r, parts·dim)``, same index."""
        return cond.map(lambda c: self.proj(F.silu(c)))

    if TYPE_CHECKING:

        def __call__(self, cond: Rows) -> Rows: ...


class AdaLNSingle(nn.Module):
    """Rows of modulation that all blocks share, plus a table of this block's own, in float32 or better.

    The shared rows come from one projection in the model, such as ``Linear(SiLU(c))``.

    Args:
        dim: width of the tokens it modulates.
        parts: rows of the table: 6 for the two modulated branches of a block, 2 for a final layer.

    Raises:
        ValueError: at the call, the rows are not ``parts·dim`` wide.

    Example:
        >>> source = AdaLNSingle(8, parts=6)
        >>> source(Rows(torch.zeros(2, 48))).values.shape, source.table.shape
        (torch.Size([2, 48]), torch.Size([6, 8]))
    """

    def __init__(
        self,
        dim: int,
        parts: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(parts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal rows of standard deviation ``1/sqrt(dim)``."""
        nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5)

    def forward(self, cond: Rows) -> Rows:
        """Shared rows ``(r, parts·dim)`` to rows of the same shape, same index."""
        if cond.values.shape[-1] != self.table.numel():
            raise ValueError(f"cond is {cond.values.shape[-1]} wide, but the table holds {self.table.numel()}")
        wide = torch.promote_types(cond.values.dtype, torch.float32)
        return cond.map(lambda c: c.to(wide) + self.table.flatten().to(wide))

    if TYPE_CHECKING:

        def __call__(self, cond: Rows) -> Rows: ...


class AdaLNLoRA(nn.Module):
    """Modulation that all blocks share plus a low-rank term of this one: ``A + up(down(SiLU(c)))``.

    Its rows of conditioning hold ``c`` and, behind it, the shared modulation ``A``, which the model computes once.

    Args:
        dim: width of the tokens it modulates.
        cond_dim: width of ``c``.
        rank: width between the two projections (Cosmos: 256).
        parts: as in :class:`AdaLNZero`; the first ``parts·dim`` numbers of ``A`` are used.

    Raises:
        ValueError: at the call, the rows are narrower than ``cond_dim + parts·dim``.

    Example:
        >>> source = AdaLNLoRA(8, cond_dim=16, rank=2)
        >>> source(Rows(torch.randn(5, 16 + 24))).values.shape
        torch.Size([5, 24])
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        rank: int,
        parts: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(cond_dim, rank, False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, parts * dim, False, device=device, dtype=dtype)
        self.width = parts * dim
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A zero term: every block starts with the shared modulation."""
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)

    def forward(self, cond: Rows) -> Rows:
        """Rows ``(r, cond_dim + shared)`` to rows ``(r, parts·dim)``, same index."""
        width = self.down.in_features
        if cond.values.shape[-1] < width + self.width:
            found = f"cond is {cond.values.shape[-1]} wide"
            raise ValueError(f"{found}, but holds c of {width} and a shared modulation of {self.width} or more")
        return cond.map(lambda c: c[..., width : width + self.width] + self.up(self.down(F.silu(c[..., :width]))))

    if TYPE_CHECKING:

        def __call__(self, cond: Rows) -> Rows: ...


class ModulationSlice(nn.Module):
    """The part of one branch in the modulation of its whole block; it has no parameters.

    Args:
        dim: width of the tokens.
        start: how many parts stand before it: 0 for the first branch, 3 for the second.
        parts: how many it takes.

    Raises:
        ValueError: at the call, the rows end before the part does.

    Example:
        >>> ModulationSlice(2, start=3)(Rows(torch.arange(12.0)[None])).values.tolist()
        [[6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]
    """

    def __init__(self, dim: int, start: int, parts: int = 3) -> None:
        super().__init__()
        self.dim, self.start, self.stop = dim, start, start + parts

    def forward(self, cond: Rows) -> Rows:
        """Rows ``(r, k·dim)`` to rows ``(r, parts·dim)``, same index."""
        if cond.values.shape[-1] < self.stop * self.dim:
            raise ValueError(f"cond is {cond.values.shape[-1]} wide, but the part ends at {self.stop * self.dim}")
        return cond.map(lambda c: c[..., self.start * self.dim : self.stop * self.dim])

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, start={self.start}, parts={self.stop - self.start}"

    if TYPE_CHECKING:

        def __call__(self, cond: Rows) -> Rows: ...
