"""What the conformance matrix asks of every backend: patterns and packings by name, and the faults they stand for.

A packing draws q, k and v, hands them to a backend as its users would, and knows the answer: each sample alone, by the
definition, in float64. Sizes are tiny, so that thousands of requests take seconds; the numbers are multiples of an
eighth, which every floating-point dtype holds exactly, so that one answer serves them all.

Shapes: q ``(*lead, h, d)``, k and v ``(*kv_lead, hk, d)``; the matrix uses h = 4 and d = 16.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelet.attention import (
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    VideoOnly,
    Window,
)
from tubelet.attention.backends.reference import mask_of
from tubelet.layout import Grid, Kind, LayoutIndex, TokenInfo, TokenLayout
from tubelet.protocols import AttentionRequest, Pattern
from tubelet.testing.mixtures import alone

__all__ = ["Packing", "known_faults", "matrix_packings", "matrix_patterns"]

HEADS, HEAD_DIM = 4, 16

Call = Callable[[Tensor, Tensor, Tensor, AttentionRequest], Tensor]


class _Diagonal:
    """A user's pattern, of which only the predicate is known: rows that differ by at most one, or text."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Rows at most one apart, and more of them for later heads."""
        near = (q.coords[..., 1] - k.coords[..., 1]).abs() <= 1 + head
        return near | (q.kind == Kind.TEXT) | (k.kind == Kind.TEXT)


_DIAGONAL = _Diagonal()


def matrix_patterns() -> dict[str, Pattern]:
    """Every pattern of the library at sizes that cut the packings' grids unevenly, and one of a user's, by name.

    Example:
        >>> matrix_patterns()["Temporal"]
        Temporal()
    """
    return {
        "Joint": Joint(),
        "Spatial": Spatial(),
        "Temporal": Temporal(),
        "Window": Window((2, 2, 2)),
        "Window, shifted": Window((2, 2, 2), shift=(1, 0, 1)),
        "Window, videos only": VideoOnly(Window((2, 2, 2))),
        "Strided": Strided(2),
        "Strided, runs": Strided(2, run=2),
        "Neighborhood": Neighborhood((2, 3, 3)),
        "Neighborhood, causal": Neighborhood((2, 3, 3), causal=(True, False, False)),
        "Neighborhood, causal line": Neighborhood((1, 1, 64), causal=(False, False, True)),
        "SlidingTile": SlidingTile((1, 2, 2), tile=(1, 1, 2)),
        "FrameCausal": FrameCausal(),
        "FrameCausal, sink": FrameCausal(window=1, sink=1),
        "union": Spatial() | Temporal(),
        "intersection": FrameCausal() & Window((2, 2, 2)),
        "HeadSplit": HeadSplit((Spatial(), FrameCausal()), (1, 3)),
        "user's predicate": _DIAGONAL,
    }


class Packing(NamedTuple):
    """One way for samples to lie in q, k and v, and to be said to ``attend``.

    ``form`` is "layout" where the layouts say it all; "plain" where the tensors are rows without a layout; "left" where
    the samples of a packed layout stand at the right end of padded rows, from which their tokens are gathered.
    ``padding`` is what padding holds.

    Example:
        >>> matrix_packings()["padded left"].q_lead
        (3, 8)
    """

    layout: TokenLayout
    kv_layout: TokenLayout | None = None
    form: Literal["layout", "plain", "left"] = "layout"
    padding: float = 2.0

    @property
    def keys(self) -> TokenLayout:
        """The layout of the keys."""
        return self.layout if self.kv_layout is None else self.kv_layout

    @property
    def q_lead(self) -> tuple[int, ...]:
        """The shape of the tokens of q."""
        return (len(self.layout.grids), max(self.layout.lengths)) if self.form == "left" else self.layout.shape

    @property
    def kv_lead(self) -> tuple[int, ...]:
        """The shape of the tokens of k and v."""
        return self.q_lead if self.kv_layout is None else self.kv_layout.shape

    def starts(self) -> tuple[int, ...]:
        """Where each sample's queries begin on the flattened axis."""
        if self.form != "left":
            return self.layout.starts
        width = max(self.layout.lengths)
        return tuple((i + 1) * width - length for i, length in enumerate(self.layout.lengths))

    def inputs(self, kv_heads: int) -> list[Float[Tensor, "..."]]:
        """q, k, v and a cotangent of the output, in float64."""
        draw = torch.Generator().manual_seed(0)
        shapes = [(*self.q_lead, HEADS), (*self.kv_lead, kv_heads), (*self.kv_lead, kv_heads), (*self.q_lead, HEADS)]
        tensors = [torch.randint(-16, 17, (*s, HEAD_DIM), generator=draw).double() / 8 for s in shapes]
        real_q, real_k = _real(self.q_lead, self.starts(), self.layout), self._real_keys()
        for x, real in zip(tensors[:3], (real_q, real_k, real_k), strict=True):
            x.view(-1, *x.shape[-2:])[~real] = self.padding
        return tensors

    def request(
        self, pattern: Pattern, kv_heads: int, dtype: torch.dtype, device: str, grad: bool = False
    ) -> AttentionRequest:
        """What the backend is asked; ``grad`` where gradients will be."""
        index = None if self.form == "plain" else _index(self.layout, device)
        kv_index = None if self.kv_layout is None else _index(self.kv_layout, device)
        shapes = (*self.layout.shape, HEADS, HEAD_DIM), (*self.keys.shape, kv_heads, HEAD_DIM)
        request = AttentionRequest(pattern, index, kv_index, *shapes, dtype, device, HEAD_DIM**-0.5, None)
        return replace(request, grad=grad)

    def run(self, call: Call, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Float[Tensor, "..."]:
        """The output, where q has its tokens; left padding is gathered, and 0 in the output."""
        if self.form != "left":
            return call(q, k, v, request)
        places = torch.cat([torch.arange(s, s + n) for s, n in zip(self.starts(), self.layout.lengths, strict=True)])
        places = places.to(q.device)
        real_q, real_k, real_v = (x.flatten(0, 1)[places] for x in (q, k, v))
        out = call(real_q, real_k, real_v, request)
        rows = out.new_zeros(q.shape[0] * q.shape[1], *out.shape[1:])
        return rows.index_copy(0, places, out).view(*q.shape[:2], *out.shape[1:])

    def answer(self, pattern: Pattern, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "..."]:
        """The definition, each sample alone: what no other sample can have touched."""
        flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        out = flat_q.new_zeros(flat_q.shape)
        kv_starts = self.starts() if self.kv_layout is None else self.kv_layout.starts
        for i, (start, kv_start) in enumerate(zip(self.starts(), kv_starts, strict=True)):
            queries, keys = self.layout.lengths[i], self.keys.lengths[i]
            if queries and keys:
                mask = self._mask(pattern, i, q.shape[-2])
                where, kv_where = slice(start, start + queries), slice(kv_start, kv_start + keys)
                out[where] = _softmax_attention(flat_q[where], flat_k[kv_where], flat_v[kv_where], mask)
        return out.view(q.shape)

    def _mask(self, pattern: Pattern, i: int, heads: int) -> Tensor:
        one = alone(self.layout, i)
        other = one if self.kv_layout is None else alone(self.kv_layout, i)
        shapes = (*one.shape, heads, 1), (*other.shape, heads, 1)
        kv_index = None if self.kv_layout is None else _index(other, "cpu")
        return mask_of(
            AttentionRequest(pattern, _index(one, "cpu"), kv_index, *shapes, torch.float64, "cpu", 1.0, None)
        )

    def _real_keys(self) -> Tensor:
        if self.kv_layout is None:
            return _real(self.q_lead, self.starts(), self.layout)
        return _real(self.kv_layout.shape, self.kv_layout.starts, self.kv_layout)


def matrix_packings() -> dict[str, Packing]:
    """Every way to pack, by name: dense, padded, packed, with text, without, with dropped tokens, and cross-attention.

    Example:
        >>> matrix_packings()["cross, padded text"].kv_layout.lengths
        (3, 0)
    """
    grids = [Grid(3, 2, 1), Grid(1, 1, 1), Grid(2, 3, 2), None]
    text = [2, 0, 1, 3]
    packed, padded = TokenLayout.packed, TokenLayout.padded
    square = TokenLayout.dense(4, Grid(2, 2, 1))
    ragged = TokenLayout((Grid(2, 2, 1), Grid(1, 2, 3), Grid(3, 1, 1)), (1, 2, 0), 8, batched=True)
    return {
        "plain rows": Packing(TokenLayout.dense(2, Grid(1, 1, 6)), form="plain"),
        "plain rows, batch = length": Packing(TokenLayout.dense(4, Grid(1, 1, 4)), form="plain"),
        "dense": Packing(TokenLayout.dense(2, Grid(3, 2, 2))),
        "dense, batch = length": Packing(square),
        "dense + text": Packing(TokenLayout.dense(2, Grid(2, 2, 2), text_length=3)),
        "padded right": Packing(ragged, padding=torch.nan),
        "padded right, batch = length": Packing(padded([4, 2, 3, 1], 4)),
        "padded left": Packing(packed(ragged.grids, ragged.text_lengths), form="left", padding=torch.nan),
        "packed": Packing(packed(grids[:3])),
        "packed + text": Packing(packed(grids, text)),
        "capacity": Packing(packed(grids, text, capacity=32), padding=torch.nan),
        "dropped tokens": Packing(packed(grids, text).keep([0, 1, 2, 5, 6, 9, 10, 11, 14, 17, 19, 20, 22])),
        "cross, packed text": Packing(packed(grids, text), packed([None] * 4, [3, 1, 0, 5], capacity=12)),
        "cross, padded text": Packing(TokenLayout.dense(2, Grid(2, 2, 1)), padded([3, 0], 3)),
        "cross, batch = length": Packing(square, padded([4, 1, 3, 0], 4)),
    }


def known_faults() -> dict[str, tuple[str, str]]:
    """Faults of attention code in the field, and the pattern and packing of the matrix in which each would show.

    Example:
        >>> known_faults()["text at batch > 1"]
        ('Spatial', 'dense + text')
    """
    return {
        "causal, without a mask": ("FrameCausal", "dense"),
        "causal, without a mask or a layout": ("Neighborhood, causal line", "plain rows"),
        "a two-dimensional mask at batch = length": ("Joint", "padded right, batch = length"),
        "a two-dimensional mask of text at batch = length": ("Joint", "cross, batch = length"),
        "a causal mask at batch = length": ("FrameCausal", "dense, batch = length"),
        "key padding on the right": ("Joint", "padded right"),
        "key padding on the left": ("Joint", "padded left"),
        "key padding under a causal pattern": ("FrameCausal", "padded left"),
        "text at batch > 1": ("Spatial", "dense + text"),
        "text under a causal pattern": ("FrameCausal", "dense + text"),
        "an empty text beside others": ("Joint", "packed + text"),
        "an empty text in cross-attention": ("Joint", "cross, padded text"),
    }


@lru_cache(maxsize=128)
def _index(layout: TokenLayout, device: str) -> LayoutIndex:
    return layout.on(device)


def _real(lead: tuple[int, ...], starts: tuple[int, ...], layout: TokenLayout) -> Bool[Tensor, " n"]:
    """Which places of the flattened tokens are real."""
    real = torch.zeros(torch.Size(lead).numel(), dtype=torch.bool)
    for start, length in zip(starts, layout.lengths, strict=True):
        real[start : start + length] = True
    return real


def _softmax_attention(
    q: Float[Tensor, "n h d"], k: Float[Tensor, "m hk d"], v: Float[Tensor, "m hk d"], mask: Bool[Tensor, "h n m"]
) -> Float[Tensor, "n h d"]:
    """One head after another; a query without keys gives 0."""
    out = []
    for head in range(q.shape[1]):
        shared = head // (q.shape[1] // k.shape[1])
        scores = (q[:, head] @ k[:, shared].T * q.shape[-1] ** -0.5).masked_fill(~mask[head], -torch.inf)
        weights = torch.where(mask[head].any(-1, keepdim=True), scores, 0).softmax(-1)
        out.append(torch.where(mask[head], weights, 0) @ v[:, shared])
    return torch.stack(out, 1)
