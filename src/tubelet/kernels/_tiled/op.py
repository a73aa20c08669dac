"""Attention of tiles as one operation and one launch: ragged joint attention, neighbourhoods, causal frames.

Segments of any lengths (``varlen_attention``), and patterns that are a span of keys on every axis of a grid
(neighbourhoods, sliding tiles, windows, causal frames), on packed mixtures with text. A program owns a tile of queries
and walks the keys that it may attend; which those are is a small table (:mod:`tubelet.kernels._tiled.table`), so that
samples of every size share a launch, pairs in the interior of a pattern need no mask, and nothing is gathered first.
The backward is deterministic: one kernel by queries, one by keys, and no program writes what another one does.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.kernels._checks import check_attention, check_starts
from tubelet.kernels._choice import Backend, use_triton
from tubelet.kernels._launching import dense
from tubelet.kernels._tiled import launches
from tubelet.kernels._tiled.reference import reference
from tubelet.kernels._tiled.table import Tiles, TileSizes, segment_tiles
from tubelet.kernels._tuning import choose

__all__ = ["tiled_attention", "tiled_backward", "tiled_forward", "tiled_refusal", "tiled_sizes", "varlen_attention"]


def varlen_attention(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    cu_q: Int[Tensor, " s1"],
    cu_k: Int[Tensor, " s2"] | None = None,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "n h e"]:
    """Softmax attention of segments end to end: queries of segment ``i`` attend the keys of segment ``i``.

    Args:
        q: queries, of any strides.
        k, v: keys and values with ``hk`` heads; ``h`` is a multiple of ``hk`` (grouped-query attention).
        cu_q: where the segments of queries begin, from 0, and the last one ends, on any device; on a GPU it is never
            read by the host, and what lies out of range is clamped.
        cu_k: the same of keys; None: as the queries.
        scale: factor of the scores; None means ``1/sqrt(d)``.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``(n, h, e)`` in the dtype of q, contiguous; 0 for a segment without keys and behind the last segment.

    Raises:
        ValueError: shapes disagree, or ``triton`` was asked for and cannot serve, with the reason; on the CPU also
            where ``cu_q`` or ``cu_k`` decreases, or does not begin at 0, or ends behind the last token.

    Example:
        >>> q, k, v = torch.randn(3, 12, 2, 8)
        >>> varlen_attention(q, k, v, torch.tensor([0, 5, 12])).shape
        torch.Size([12, 2, 8])
    """
    cu_k = cu_q if cu_k is None else cu_k
    check_attention(q, k, v)
    check_starts("cu_q", cu_q, len(q))
    check_starts("cu_k", cu_k, len(k))
    if cu_q.shape != cu_k.shape:
        raise ValueError(
            f"cu_q and cu_k must be as long as each other, got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
        )
    sizes = tiled_sizes(q.dtype, max(q.shape[-1], v.shape[-1]), boxes=False, device=str(q.device))
    tiles = segment_tiles(cu_q.to(q.device), cu_k.to(q.device), len(q), len(k), sizes)
    return tiled_attention(q, k, v, tiles, scale=scale, backend=backend)


def tiled_attention(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    tiles: Tiles,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "n h e"]:
    """Softmax attention of the pairs that ``tiles`` name; queries without keys give 0.

    Args:
        q, k, v, scale, backend: as in :func:`varlen_attention`.
        tiles: tables on the device of q, of segments (``segment_tiles``) or of a pattern (``tubelet.attention.boxes``).

    Raises:
        ValueError: shapes disagree, the tiles are of other numbers of tokens, or ``triton`` was asked for and cannot
            serve, with the reason.

    Example:
        >>> q, cu = torch.randn(6, 2, 8), torch.tensor([0, 6])
        >>> tiled_attention(q, q, q, segment_tiles(cu, cu, 6, 6, TileSizes(*[16] * 6))).shape
        torch.Size([6, 2, 8])
    """
    check_attention(q, k, v)
    if tiles.tokens != (len(q), len(k)):
        made = f"{tiles.tokens[0]} queries and {tiles.tokens[1]} keys"
        raise ValueError(f"tiles are of {made}, but there are {len(q)} queries and {len(k)} keys")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    refusal = tiled_refusal(q.shape[-1], v.shape[-1], scale)
    if not use_triton(backend, "tiled_attention", (q, k, v, *tiles[:5]), refusal):
        return reference(q, k, v, scale, tiles)
    out: Tensor = _tiled_attention(q, k, v, *tiles[:5], scale, tiles.sizes)[0]
    return out


def tiled_refusal(width: int, v_width: int, scale: float) -> str | None:
    """Why the kernels cannot serve these sizes; None where they can.

    Example:
        >>> tiled_refusal(264, 64, 1.0)
        'its heads have at most 256 features, got 264 and 64'
    """
    if max(width, v_width) > launches.LARGEST:
        return f"its heads have at most {launches.LARGEST} features, got {width} and {v_width}"
    if scale <= 0:
        return f"its scale is above 0, got {scale}"
    return None


def tiled_sizes(dtype: torch.dtype, width: int, boxes: bool, device: str = "cpu") -> TileSizes:
    """Tokens of the tiles that tables are made of, by precision, the wider of q's and v's heads, and by need of boxes.

    Measured ones where ``tubelet kernels tune`` has measured the device, else fixed ones.

    Example:
        >>> tiled_sizes(torch.float32, 64, boxes=True).rows
        16
    """
    return TileSizes(*_chosen(dtype, width, boxes, device))


def _chosen(dtype: torch.dtype, width: int, boxes: bool, device: str) -> tuple[int, ...]:
    fixed = launches.fixed_sizes(dtype, width, boxes)
    return tuple(choose("tiled_boxes" if boxes else "tiled_lines", torch.device(device), width, dtype, fixed))


_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what a file says is read once


def tiled_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """The kernels' output ``(n, h, e)`` and the queries' log-sum-exp ``(n, h)``, without a derivative.

    Example:
        >>> empty, cu = torch.ones(0, 1, 8), torch.zeros(1, dtype=torch.int32)
        >>> tiles = segment_tiles(cu, cu, 0, 0, TileSizes(*[16] * 6))
        >>> [tuple(x.shape) for x in tiled_forward(empty, empty, empty, 1.0, tiles)]
        [(0, 1, 8), (0, 1)]
    """
    return launches.forward(launches.Given(dense(q), dense(k), dense(v), scale, tiles))


def tiled_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, tiles: Tiles
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from what :func:`tiled_forward` gave.

    Example:
        >>> empty, cu = torch.ones(0, 1, 8), torch.zeros(1, dtype=torch.int32)
        >>> tiles = segment_tiles(cu, cu, 0, 0, TileSizes(*[16] * 6))
        >>> [tuple(x.shape) for x in tiled_backward(*[empty] * 5, empty[..., 0], 1.0, tiles)]
        [(0, 1, 8), (0, 1, 8), (0, 1, 8)]
    """
    return launches.backward(dense(grad), launches.Given(dense(q), dense(k), dense(v), scale, tiles), out, lse)


@torch.library.custom_op("tubelet::tiled_attention", mutates_args=())
def _tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    back_queries: Tensor,
    keys: Tensor,
    boxes: Tensor | None,
    spans: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    tiles = Tiles(queries, back_queries, keys, boxes, spans, TileSizes(*sizes), (len(q), len(k)))
    return tiled_forward(q, k, v, scale, tiles)


@_tiled_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    back_queries: Tensor,
    keys: Tensor,
    boxes: Tensor | None,
    spans: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("tubelet::tiled_attention_backward", mutates_args=())
def _tiled_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Tensor,
    back_queries: Tensor,
    keys: Tensor,
    boxes: Tensor | None,
    spans: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    tiles = Tiles(queries, back_queries, keys, boxes, spans, TileSizes(*sizes), (len(q), len(k)))
    return tiled_backward(grad, q, k, v, out, lse, scale, tiles)


@_tiled_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Tensor,
    back_queries: Tensor,
    keys: Tensor,
    boxes: Tensor | None,
    spans: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *tables, ctx.scale, ctx.sizes = inputs
    ctx.save_for_backward(q, k, v, *output, *tables)


def _backward(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _tiled_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.sizes)
    return *grads, *(None,) * 7


_tiled_attention.register_autograd(_backward, setup_context=_save)
