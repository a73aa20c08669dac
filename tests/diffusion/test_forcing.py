"""Diffusion forcing: independent levels per frame, staircases against the definition, a run along one."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import Process, draw_levels, euler_step, shift_warp, staircase, uniform
from tubelet.layout import Grid, TokenLayout


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("level", ["sample", "frame", "token"])
def test_each_row_has_a_level_of_its_own_and_capacity_changes_none(level: str) -> None:
    grids = [Grid(2, 1, 3), Grid(3, 2, 1), Grid(1, 2, 2)]
    process = Process(warp=shift_warp(3.0))
    got = draw_levels(process, TokenLayout.packed(grids).on("cpu"), level, seeded())
    expected = process.warp(uniform((got.values.shape[0],), seeded())).float()
    torch.testing.assert_close(got.values, expected)
    roomy = draw_levels(process, TokenLayout.packed(grids, capacity=40).on("cpu"), level, seeded())
    if level != "token":
        torch.testing.assert_close(roomy.expand()[:16], got.expand())
    distinct = {"sample": 3, "frame": 6, "token": 16}[level]
    assert len(got.expand().unique()) == distinct


def test_levels_of_frames_are_independent() -> None:
    layout = TokenLayout.dense(4000, Grid(2, 1, 1)).on("cpu")
    levels = draw_levels(Process(), layout, "frame", seeded(), dtype=torch.float64).expand()
    assert abs(float(torch.corrcoef(levels.T)[0, 1])) < 5 / 4000**0.5
    assert levels.shape == (4000, 2)


@given(frames=st.lists(st.integers(0, 5), min_size=1, max_size=6), steps=st.integers(1, 6), delay=st.integers(0, 7))
def test_a_staircase_moves_each_frame_by_its_delay(frames: list[int], steps: int, delay: int) -> None:
    times = staircase(torch.tensor(frames), steps, delay)
    assert times.shape == (max(frames) * delay + steps + 1, len(frames))
    for row, frame in enumerate(frames):
        for m, value in enumerate(times[:, row].tolist()):
            done = min(max(m - frame * delay, 0), steps)
            assert value == pytest.approx(1 - done / steps, abs=1e-15)
    assert bool((times[0] == 1).all())
    assert bool((times[-1] == 0).all())


def test_a_run_along_a_staircase_reaches_the_data_and_holds_what_is_done() -> None:
    grids = [Grid(3, 1, 2), Grid(2, 2, 1)]
    layout, process = TokenLayout.packed(grids).on("cpu"), Process(warp=shift_warp(2.0))
    frame = torch.cat([torch.arange(grid.t) for grid in grids])
    times = process.warp(staircase(frame, steps=4, delay=2))
    goal = torch.randn(10, 3, dtype=torch.float64)
    x = torch.randn(10, 3, dtype=torch.float64)

    def denoiser(x: torch.Tensor, t) -> torch.Tensor:
        return (x - goal) / t.expand().clamp(min=1e-9)[:, None]

    rows = partial(layout.rows, level="frame")
    for a, b in itertools.pairwise(times):
        before, x = x, euler_step(denoiser, x, rows(a), rows(b), process)
        still = (rows(a).expand() == rows(b).expand())[:, None].expand_as(x)
        assert torch.equal(x[still], before[still])
    torch.testing.assert_close(x, goal)


def test_bad_numbers_are_refused() -> None:
    for steps, delay in ((0, 1), (3, -1)):
        with pytest.raises(ValueError, match=f"got {steps} and {delay}"):
            staircase(torch.arange(2), steps, delay)
