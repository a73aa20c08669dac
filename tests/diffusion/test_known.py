"""Known tokens: levels against a loop, and bit-preservation through whole runs on random layouts."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    Known,
    Process,
    ddim_step,
    euler_step,
    fold_known,
    heun_step,
    noise_like,
    noise_stream,
    sample,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.patchify import fold_packed
from tubelet.protocols import SamplerStep

grids = st.lists(st.builds(Grid, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


def known_frames(layout: TokenLayout, seed: int) -> tuple[Known, torch.Tensor]:
    """Random known frames of random values, and the mask per token found by a loop."""
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(sum(g.t for g in layout.grids if g), generator=generator) < 0.5
    tokens, row = [], 0
    for grid in layout.grids:
        assert grid is not None
        for _ in range(grid.t):
            tokens += [bool(flags[row])] * (grid.h * grid.w)
            row += 1
    values = torch.randn(*layout.shape, 3, generator=generator)
    return Known(layout.rows(flags, "frame"), values), torch.tensor(tokens)


@given(grids, st.integers(0, 99), st.sampled_from([euler_step, heun_step, ddim_step]))
def test_known_frames_are_kept_bit_for_bit(sides: list[Grid], seed: int, step: SamplerStep) -> None:
    layout, process = TokenLayout.packed(sides), Process()
    known, tokens = known_frames(layout, seed)
    assert torch.equal(known.tokens, tokens)
    start = known.apply(noise_like(layout, 3, range(len(sides))))
    seen: list[torch.Tensor] = []

    def denoiser(x: torch.Tensor, t: Rows) -> torch.Tensor:
        seen.append(x)
        assert torch.equal(t.expand() == 0, tokens | (t.values.max() == 0))
        return x.cumsum(0) + 1e30 * tokens[:, None]

    got = sample(denoiser, start, process.times(3), process=process, rows=known.levels, step=step)
    assert torch.equal(got[tokens], known.values[tokens])
    assert all(torch.equal(x[tokens], known.values[tokens]) for x in seen)
    assert not bool((got[~tokens] == start[~tokens]).all(-1).any())


def test_known_frames_survive_ancestral_sampling() -> None:
    layout, process = TokenLayout.packed([Grid(3, 2, 2), Grid(2, 1, 2)]), Process(prediction="v")
    known, tokens = known_frames(layout, 3)
    step = partial(ddim_step, eta=1.0, noise=noise_stream(layout, 3, [8, 9]))
    start = known.apply(noise_like(layout, 3, [1, 2]))
    got = sample(lambda x, t: x, start, process.times(3), process=process, rows=known.levels, step=step)
    assert torch.equal(got[tokens], known.values[tokens])
    assert bool(got.isfinite().all())


def test_levels_serve_one_time_or_one_per_row() -> None:
    known = Known(Rows(torch.tensor([True, False, False]), torch.tensor([0, 1, 1, 2])), torch.zeros(4, 1))
    assert known.levels(torch.tensor(0.5)).expand().tolist() == [0.0, 0.5, 0.5, 0.5]
    got = known.levels(torch.tensor([0.25, 0.5, 0.75])).expand()
    assert got.tolist() == [0.0, 0.5, 0.5, 0.75]


def test_dense_rows_per_sample() -> None:
    known = Known(Rows(torch.tensor([True, False])), torch.full((2, 3, 1), 7.0))
    assert known.tokens.tolist() == [[True] * 3, [False] * 3]
    assert known.apply(torch.zeros(2, 3, 1))[:, :, 0].tolist() == [[7.0] * 3, [0.0] * 3]


def test_a_noise_level_of_their_own_is_what_the_denoiser_meets_and_the_values_come_back() -> None:
    layout, process = TokenLayout.packed([Grid(3, 2, 1), Grid(1, 1, 2)]), Process()
    known, tokens = known_frames(layout, 3)
    known = replace(known, noise_level=0.25)
    noise, levels, states = noise_like(layout, 3, [1, 2]), [], []

    def denoiser(x: torch.Tensor, t: Rows) -> torch.Tensor:
        levels.append(t.expand())
        states.append(x)
        return x

    start = known.noised(process, noise).apply(noise)
    end = sample(denoiser, start, process.times(4), process=process, rows=known.levels)
    for t, x, time in zip(levels, states, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert torch.equal(t, torch.where(tokens, 0.25, time))
        torch.testing.assert_close(x[tokens], 0.75 * known.values[tokens] + 0.25 * noise[tokens])
    assert torch.equal(known.apply(end)[tokens], known.values[tokens])


def test_values_and_mask_as_channels() -> None:
    known = Known(Rows(torch.tensor([True, False]), torch.tensor([0, 1])), torch.tensor([[2.0, 3.0], [4.0, torch.nan]]))
    assert known.channels.tolist() == [[2.0, 3.0, 1.0], [0.0, 0.0, 0.0]]


@given(grids, st.integers(0, 99), st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 3)]))
def test_folding_keeps_a_patch_where_all_its_cells_are_known(sides: list[Grid], seed: int, patch) -> None:
    """Against a loop over patches, and values against the folded video."""
    generator, knowns, expected = torch.Generator().manual_seed(seed), [], []
    pt, ph, pw = patch
    for side in sides:
        mask = torch.rand(side.t * pt, side.h * ph, side.w * pw, generator=generator) < 0.8
        knowns.append(Known.of_video(torch.randn(2, *mask.shape, generator=generator), mask))
        expected += [
            bool(mask[t * pt : (t + 1) * pt, h * ph : (h + 1) * ph, w * pw : (w + 1) * pw].all())
            for t in range(side.t)
            for h in range(side.h)
            for w in range(side.w)
        ]
    known, layout = fold_known(knowns, patch)
    assert layout == TokenLayout.packed(sides)
    assert known.tokens.tolist() == expected
    assert torch.equal(known.values, fold_packed([each.video for each in knowns], patch)[0])
    assert known.mask.values.tolist() == [False, True] * len(sides)
    assert known.mask.owner is not None  # models add text per sample
    assert torch.equal(known.mask.owner[known.mask.index], layout.on("cpu").sample)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must hold torch\.bool, got torch\.float32"):
        Known(Rows(torch.ones(1)), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"noise_level must lie in \[0, 1\], got 1\.5"):
        Known(Rows(torch.tensor([True])), torch.zeros(1, 1), noise_level=1.5)
    video, mask = torch.zeros(1, 2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="knowns must share a noise level, got 0.0 and 0.5"):
        fold_known([Known.of_video(video, mask, noise) for noise in (0.0, 0.5)], (1, 1, 1))


@pytest.mark.graph  # run-time shape checks off, as for users
def test_a_mask_of_other_sides_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask has sides \(2, 2, 1\), but the video has \(2, 2, 2\)"):
        Known.of_video(torch.zeros(1, 2, 2, 2), torch.ones(2, 2, 1, dtype=torch.bool))


@pytest.mark.graph  # run-time shape checks off, as for users
def test_states_and_levels_that_only_broadcast_are_refused() -> None:
    known = Known(Rows(torch.tensor([True])), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x has shape \(4, 1\), but the known values have \(4, 3\)"):
        known.apply(torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"t has shape \(2,\), but the mask has rows of shape \(1,\)"):
        known.levels(torch.zeros(2))
