"""NATTEN's neighbourhood attention: :class:`tubelet.attention.Neighborhood` on whole grids.

NATTEN is Hassani et al. (arXiv:2204.07143, 2504.16922); its windows slide inside at the borders and lean to the front
where they are even, as ours do.
"""

import importlib
import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.backends.sdpa import forward_mode, tables_of
from tubelet.attention.patterns import Neighborhood
from tubelet.attention.tiles import Sample
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["NattenBackend"]


class NattenBackend:
    """``natten.na1d``, ``na2d``, ``na3d`` on each run of equal grids: dense batches, packed grids one by one.

    An axis on which the window is 1 is one more axis of the batch, as NATTEN's windows begin at 2. Requests with text,
    dropped tokens or cross-attention are not its: ``sdpa`` and ``flex`` serve those.

    Example:
        >>> from tubelet.attention import backends
        >>> backends()["natten"].name
        'natten'
    """

    name = "natten"

    def supports(self, request: AttentionRequest) -> Answer:
        """Neighbourhoods on grids without text, on CUDA, in eager code; no bias."""
        pattern = request.pattern
        if not _on_cuda(request.device):
            return Answer(f"natten serves CUDA, not {request.device}")
        if not isinstance(pattern, Neighborhood):
            return Answer(f"natten serves Neighborhood, not {type(pattern).__name__}")
        if torch.compiler.is_compiling():
            return Answer("natten needs the grids of the host's table, which compiled code cannot read; flex does not")
        if request.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return Answer(f"natten serves float32 and half precisions, not {request.dtype}")
        if request.bias is not None:
            return Answer("natten takes no bias; backend='flex' does")
        if forward_mode():
            return Answer("natten has no forward-mode derivative; backend='reference' has")
        if request.shape[-1] % 8 or request.v_dim not in (None, request.shape[-1]):
            return Answer(
                f"natten serves one width of q, k and v, a multiple of 8, got {request.shape[-1]} and {request.v_dim}"
            )
        if request.kv_index is not None or request.shape[:-2] != request.kv_shape[:-2]:
            return Answer("natten has no cross-attention")
        if request.index is not None and request.index.kept is not None:
            return Answer("natten needs whole grids, and tokens were dropped by layout.keep(...)")
        samples = _samples(request)
        if any(sample.text for sample in samples):
            return Answer("natten serves grids without text; backend='flex' serves both")
        if not any(max(_window(pattern, sample)) > 1 for sample in samples):
            return Answer(f"{pattern} lets tokens see themselves alone here; backend='sdpa' serves it")
        if _package() is None:
            return Answer("natten is not installed; its wheels are listed at https://natten.org/install")
        return Answer()

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk d"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h d"]:
        """Serve a supported request."""
        pattern = request.pattern
        assert isinstance(pattern, Neighborhood)
        flat = [x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)]
        parts, end = [], 0
        for first, count, step in _runs(_samples(request)):
            if first.start > end:
                parts.append(flat[0].new_zeros(first.start - end, *flat[0].shape[1:]))
            part = slice(first.start, first.start + count * step)
            parts.append(_grids([x[part] for x in flat], first, count, pattern, request.scale))
            end = part.stop
        parts.append(flat[0].new_zeros(len(flat[0]) - end, *flat[0].shape[1:]))
        return torch.cat(parts).reshape(q.shape)


def _samples(request: AttentionRequest) -> list[Sample]:
    """The samples with tokens."""
    rows = (Sample(*row) for row in tables_of(request).q.tolist())
    return [sample for sample in rows if sample.length]


def _runs(samples: list[Sample]) -> Iterator[tuple[Sample, int, int]]:
    """Neighbouring samples of one grid, end to end: the first, how many, and how long each is."""
    numbered = enumerate(samples)
    # equal for neighbours of one length exactly where each begins at the end of the one before
    for _, group in itertools.groupby(numbered, lambda item: (item[1][1:], item[1].start - item[0] * item[1].length)):
        run = [sample for _, sample in group]
        yield run[0], len(run), run[0].length


def _window(pattern: Neighborhood, sample: Sample) -> tuple[int, int, int]:
    """The window cut to the grid, beyond which it changes nothing."""
    t, h, w = (min(pair) for pair in zip(pattern.window, sample[3:], strict=True))
    return t, h, w


def _grids(x: list[Tensor], sample: Sample, count: int, pattern: Neighborhood, scale: float) -> Tensor:
    """Attention of ``count`` equal grids, end to end: axes without a window go to the batch."""
    window = _window(pattern, sample)
    inside = [axis for axis in range(3) if window[axis] > 1]
    if not inside:
        return x[2].repeat_interleave(x[0].shape[1] // x[2].shape[1], dim=1)  # each token's own value
    alone = [axis for axis in range(3) if axis not in inside]
    order = [0, *(1 + axis for axis in alone), *(1 + axis for axis in inside), 4, 5]
    boxes = [part.view(count, *sample[3:], *part.shape[1:]).permute(order) for part in x]
    inner = [sample[3:][axis] for axis in inside]
    q, k, v = (box.reshape(-1, *inner, *box.shape[-2:]) for box in boxes)
    function = getattr(_package(), f"na{len(inside)}d")
    options = {
        "kernel_size": tuple(window[axis] for axis in inside),
        "is_causal": tuple(pattern.causal[axis] for axis in inside),
    }
    out = function(q, k, v, **options, scale=scale)
    back = [order.index(axis) for axis in range(6)]
    whole: Tensor = out.reshape(boxes[0].shape).permute(back).reshape(-1, *x[0].shape[1:])
    return whole


def _on_cuda(device: str) -> bool:
    return device.startswith("cuda")


@lru_cache(maxsize=1)
def _package() -> Any:
    """``natten``; None where it is missing or broken."""
    try:
        return importlib.import_module("natten")
    except ImportError:
        return None
