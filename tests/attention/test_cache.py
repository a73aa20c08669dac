"""The cache of frame-causal attention: any portions equal the whole, with memory that does not grow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet import RMSNorm, Rope3d
from tubelet.attention import Attention, FrameCache, FrameCausal, Joint, attend
from tubelet.layout import Grid, TokenLayout

TOKENS = 6


def portions(frames: int, sizes: list[int]) -> list[int]:
    """Frames at a time, repeating ``sizes`` until all have come."""
    found: list[int] = []
    while sum(found) < frames:
        found.append(min(sizes[len(found) % len(sizes)], frames - sum(found)))
    return found


@given(
    frames=st.integers(1, 8),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 4),
    sink=st.integers(0, 3),
    text=st.integers(0, 2),
    batch=st.sampled_from([(), (2,)]),
    kv_heads=st.sampled_from([1, 2]),
)
def test_any_portions_equal_the_whole(
    frames: int, sizes: list[int], window: int | None, sink: int, text: int, batch: tuple[int, ...], kv_heads: int
) -> None:
    pattern, grid = FrameCausal(window, sink), Grid(frames, 2, 3)
    n = text + grid.tokens
    layout = TokenLayout.dense(2, grid, text) if batch else TokenLayout.packed([grid], [text])
    shapes = [(*batch, n, h, 4) for h in (2, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    whole = attend(q, k, v, pattern=pattern, layout=layout, scale=0.3, backend="reference")
    cache, parts = FrameCache(pattern, scale=0.3), []
    if text:
        out, cache = cache.prefix(*(x[..., :text, :, :] for x in (q, k, v)))
        parts.append(out)
    first = text
    for count in portions(frames, sizes):
        last = first + count * TOKENS
        out, cache = cache.frames(*(x[..., first:last, :, :] for x in (q, k, v)), tokens=TOKENS)
        parts.append(out)
        first = last
    got = torch.cat(parts, dim=-3)
    assert (got - whole).norm() <= 1e-11 * whole.norm()
    cotangent = torch.randn_like(whole)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), cotangent) for x in (got, whole)), strict=True):
        assert (a - b).norm() <= 1e-11 * max(b.norm(), 1)
    assert cache.seen == frames
    if window is not None:
        assert len(cache.sink) == min(sink, frames) and len(cache.recent) == min(max(frames - sink, 0), window - 1)


def test_a_module_streams() -> None:
    """Text, then frames one at a time, with norms and rotations, equal the module on all tokens."""
    torch.manual_seed(0)
    grid, text = Grid(5, 2, 3), 3
    attention = Attention(48, 2, qk_norm=RMSNorm, pattern=FrameCausal(window=2, sink=1), dtype=torch.float64)
    index = TokenLayout.dense(2, grid, text).on("cpu")
    rope = Rope3d(24)(index.coords)
    x = torch.randn(*index.shape, 48, dtype=torch.float64)
    whole = attention(x, index, rope)

    def rotary(first: int, last: int) -> object:
        return Rope3d(24)(index.coords[:, first:last])

    y, cache = attention.stream(x[:, :text], FrameCache(attention.pattern), None, rotary(0, text))
    parts = [y]
    for first in range(text, x.shape[1], grid.h * grid.w):
        rows = slice(first, first + TOKENS)
        y, cache = attention.stream(x[:, rows], cache, TOKENS, rotary(first, first + TOKENS))
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).norm() <= 1e-11 * whole.norm()


def test_a_cache_holds_its_frames_alone() -> None:
    """Frames cut from one long chunk do not keep the chunk alive."""
    x = torch.randn(400 * 2, 1, 4)
    _, cache = FrameCache(FrameCausal(window=2, sink=1)).frames(x, x, x, tokens=2)
    held = [part.untyped_storage().nbytes() for frame in (*cache.sink, *cache.recent) for part in frame]
    assert held == [2 * 4 * 4] * 4


def rows(n: int, heads: int = 1) -> list[Tensor]:
    return [torch.zeros(n, heads, 4)] * 3


@pytest.mark.graph  # without type checks, as users run it
def test_misuse_is_named() -> None:
    cache = FrameCache(FrameCausal())
    for q, k in ((5, 5), (0, 0), (4, 3), (4, 6)):
        with pytest.raises(ValueError, match=rf"tokens=2, got tokens q {q}, k {k}"):
            cache.frames(*rows(q)[:1], *rows(k)[:2], tokens=2)
    _, later = cache.frames(*rows(4), tokens=2)
    with pytest.raises(ValueError, match="2 frames"):
        later.prefix(*rows(4))
    with pytest.raises(ValueError, match=r"\(2, 4\), but the cache holds \(1, 4\)"):
        later.frames(*rows(4, heads=2), tokens=2)
    with pytest.raises(ValueError, match="tokens=4, but those in the cache have 2"):
        later.frames(*rows(4), tokens=4)
    with pytest.raises(ValueError, match=r"must be a FrameCausal, got Joint"):
        FrameCache(Joint())
    with pytest.raises(ValueError, match=r"cache is for FrameCausal.*module attends by Joint"):
        Attention(4, 1).stream(torch.zeros(1, 2, 4), cache, tokens=2)
