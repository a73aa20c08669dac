"""A causal VideoDiT with caches against the same model on the whole video, and against sampling with known frames."""

from itertools import pairwise

import pytest
import torch

from tubelet.attention import Attention, FrameCausal
from tubelet.diffusion import Known, Process, noise_like, sample
from tubelet.diffusion.tasks import causal_rollout
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import StreamedVideoDiT, VideoDiT, VideoDiTConfig

GRID = Grid(7, 2, 3)
TOKENS = GRID.h * GRID.w


def causal(pattern: FrameCausal, patch: tuple[int, int, int] = (1, 1, 1)) -> VideoDiT:
    config = VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=8, patch=patch)
    model, generator = VideoDiT(config, dtype=torch.float64), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    for layer in (module for module in model.modules() if isinstance(module, Attention)):
        layer.pattern = pattern
    return model


def text() -> torch.Tensor:
    return torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


PATTERNS = [FrameCausal(), FrameCausal(window=3, sink=1)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("cuts", [(0, 1, 2, 7), (0, 3, 7), (0, 7)])
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 1, 2)])
def test_frames_in_any_portions_are_the_whole(pattern: FrameCausal, cuts: tuple[int, ...], patch) -> None:
    """At a level per frame, one of them 0."""
    model, layout, words = causal(pattern, patch), TokenLayout.packed([GRID]), TokenLayout.packed([None], [3])
    x = torch.randn(GRID.tokens, model.config.patch_dim, dtype=torch.float64)
    levels = torch.linspace(0, 1, GRID.t, dtype=torch.float64)
    t = layout.rows(levels, "frame")
    known = (t.expand() == 0).double()[:, None].expand(-1, patch[2])
    streamed = StreamedVideoDiT(model, GRID, text())
    with torch.no_grad():
        whole = model(x, t, text(), layout, words, known)
        cache, parts = streamed.start(), []
        for a, b in pairwise(cuts):
            here = TokenLayout.packed([Grid(b - a, GRID.h, GRID.w)]).rows(levels[a:b], "frame")
            part, cache = streamed(x[a * TOKENS : b * TOKENS], here, cache)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-11)
    assert {each.seen for each in cache} == {GRID.t}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_rollout_is_sampling_with_all_earlier_frames_known(pattern: FrameCausal) -> None:
    model, process, words = causal(pattern), Process(), TokenLayout.packed([None], [3])
    layout, times = TokenLayout.packed([GRID]), process.times(3, dtype=torch.float64)
    noise = noise_like(layout, 4, [5], dtype=torch.float64)
    streamed = StreamedVideoDiT(model, GRID, text())
    with torch.no_grad():
        chunks = noise.split([2 * TOKENS, 3 * TOKENS, 2 * TOKENS])
        made = [x for x, _ in causal_rollout(streamed, chunks, times, process=process, cache=streamed.start())]
        done = torch.zeros_like(noise)
        for frames, part in zip((0, 2, 5), made, strict=True):
            known = Known(layout.rows(torch.arange(GRID.t) < frames, "frame"), done)
            cells = known.tokens[:, None].double()
            denoiser = lambda x, t, cells=cells: model(x, t, text(), layout, words, cells)  # noqa: E731
            whole = sample(denoiser, known.apply(noise), times, process=process, rows=known.levels)
            here = slice(frames * TOKENS, frames * TOKENS + len(part))
            torch.testing.assert_close(part, whole[here], rtol=1e-11, atol=1e-11)
            done[here] = part


def test_the_model_itself_is_left_as_it_was() -> None:
    model = causal(FrameCausal())
    before = dict(model.named_modules())
    streamed = StreamedVideoDiT(model, GRID, text())
    start = streamed.start()
    _, after = streamed(torch.randn(TOKENS, 4, dtype=torch.float64), Rows(torch.zeros(1, dtype=torch.float64)), start)
    assert dict(model.named_modules()) == before
    assert [each.seen for each in start] == [0, 0]
    assert [each.seen for each in after] == [1, 1]


def test_bad_input_is_refused() -> None:
    joint = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=2, text_dim=8))
    with pytest.raises(ValueError, match=r"every layer must be FrameCausal, but blocks\.0.* attends by Joint"):
        StreamedVideoDiT(joint, GRID, text())
    streamed, level = StreamedVideoDiT(causal(FrameCausal()), GRID, text()), Rows(torch.ones(1, dtype=torch.float64))
    for tokens in (TOKENS + 1, 8 * TOKENS, 0):
        with pytest.raises(ValueError, match=f"x has {tokens} tokens, but .* has 7 frames left"):
            streamed(torch.zeros(tokens, 4, dtype=torch.float64), level, streamed.start())
