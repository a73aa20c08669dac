"""Long video: windows against a loop, and a causal model with its cache against the same model without."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tubelet.attention import Attention, FrameCache, FrameCausal
from tubelet.diffusion import Known, Process, noise_like, sample
from tubelet.diffusion.tasks import causal_rollout, rollout
from tubelet.layout import Grid, Rows, TokenLayout


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_windows_go_on_from_the_last_frames(window: int, overlap: int, more: int, extra: int) -> None:
    """Each made frame is one more than the one before it, so that the video counts on."""
    overlap = min(overlap, window - 1)
    first = overlap + more
    starts = [torch.arange(float(first)).reshape(1, -1, 1, 1) + base for base in (0, 100)]
    numbers: list[int] = []

    def make(knowns: list[Known], number: int) -> list[Tensor]:
        numbers.append(number)
        for known in knowns:
            assert known.tokens.flatten().tolist() == [True] * overlap + [False] * (window - overlap)
        return [known.video[:, :1] + torch.arange(float(window)).reshape(1, -1, 1, 1) for known in knowns]

    videos = rollout(make, starts, first + extra, window=window, overlap=overlap)
    for video, base in zip(videos, (0, 100), strict=True):
        assert video.flatten().tolist() == [base + i for i in range(first + extra)]
    assert numbers == list(range(-(-extra // (window - overlap))))


def test_bad_windows_are_refused() -> None:
    start = torch.zeros(1, 2, 1, 1)
    with pytest.raises(ValueError, match="overlap must be from 1 to window - 1 = 3, got 4"):
        rollout(lambda k, i: [], [start], 9, window=4, overlap=4)
    with pytest.raises(ValueError, match=r"from overlap=3 to 9, got \[2\]"):
        rollout(lambda k, i: [], [start], 9, window=4, overlap=3)
    with pytest.raises(ValueError, match=r"got \[2, 3\]"):
        rollout(lambda k, i: [], [start, torch.zeros(1, 3, 1, 1)], 9, window=4, overlap=1)
    with pytest.raises(ValueError, match=r"\[\(1, 4, 1, 1\)\] were asked for, got \[\(1, 2, 1, 1\)\]"):
        rollout(lambda k, i: [start], [start], 9, window=4, overlap=1)


class Caches(NamedTuple):
    """One cache a layer."""

    layers: tuple[FrameCache, ...]


class Causal(nn.Module):
    """Two frame-causal layers that see the noise level, over frames of ``tokens`` tokens, whole or streamed."""

    def __init__(self, pattern: FrameCausal, tokens: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(8, 2, pattern=pattern) for _ in range(2))
        self.tokens, self.pattern = tokens, pattern

    def whole(self, x: Tensor, t: Rows) -> Tensor:
        layout = TokenLayout.packed([Grid(x.shape[0] // self.tokens, 1, self.tokens)])
        h = self._levelled(x, t)
        for layer in self.layers:
            h = h + layer(h, layout=layout)
        return h

    def streamed(self, x: Tensor, t: Rows, cache: Caches) -> tuple[Tensor, Caches]:
        h, after = self._levelled(x, t), []
        for layer, before in zip(self.layers, cache.layers, strict=True):
            out, new = layer.stream(h, before, tokens=self.tokens)
            h, after = h + out, [*after, new]
        return h, Caches(tuple(after))

    def _levelled(self, x: Tensor, t: Rows) -> Tensor:
        return x + t.expand()[..., None] * torch.linspace(-1, 1, 8, dtype=x.dtype)


@pytest.mark.parametrize("pattern", [FrameCausal(), FrameCausal(window=3, sink=1)])
def test_a_cache_is_the_whole_video_with_earlier_frames_clean(pattern: FrameCausal) -> None:
    """Five chunks of two frames: each equals sampling it with all earlier frames known at level 0."""
    torch.manual_seed(0)
    tokens, chunk, process = 3, 2, Process()
    model = Causal(pattern, tokens).double()
    noise = noise_like(TokenLayout.packed([Grid(10, 1, tokens)]), 8, [1], dtype=torch.float64)
    parts, times = noise.split(chunk * tokens), process.times(4, dtype=torch.float64)
    empty = Caches(tuple(FrameCache(pattern) for _ in model.layers))
    with torch.no_grad():
        streamed = list(causal_rollout(model.streamed, parts, times, process=process, cache=empty))
        done = torch.zeros(0, 8, dtype=torch.float64)
        for part, (got, cache) in zip(parts, streamed, strict=True):
            frames = (len(done) + len(part)) // tokens
            layout = TokenLayout.packed([Grid(frames, 1, tokens)])
            earlier = layout.rows(torch.arange(frames) < len(done) // tokens, "frame")
            known = Known(earlier, torch.cat([done, torch.zeros_like(part)]))
            start = known.apply(torch.cat([torch.zeros_like(done), part]))
            whole = sample(model.whole, start, times, process=process, rows=known.levels)
            torch.testing.assert_close(got, whole[len(done) :], rtol=1e-11, atol=1e-11)
            done = torch.cat([done, got])
            assert [layer.seen for layer in cache.layers] == [frames] * 2
    assert empty.layers[0].seen == 0
