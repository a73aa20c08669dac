"""Guidance on some channels and at some levels; elsewhere the plain prediction to the bit."""

import math
from functools import partial

import pytest
import torch
from denoisers import C, U, randn
from torch import Tensor

from tubelet.diffusion import cfg, only_channels, within
from tubelet.layout import Grid, Rows
from tubelet.patchify import fold, unfold

LEVELS = Rows(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0]))


def test_three_channels_are_those_of_dit() -> None:
    """DiT's code, written out on a doubled batch of latents (2b, c, h, w) whose output has noise, then variance."""
    latents, patch, grid = randn(2, 4, 1, 4, 6, seed=1), (1, 2, 2), Grid(1, 2, 3)
    weight = randn(2, 8, 4, seed=2)

    def network(latents: Tensor, kind: int) -> Tensor:
        return torch.einsum("oc,bcthw->bothw", weight[kind], torch.sin(latents))

    doubled = torch.cat([network(latents, 0), network(latents, 1)])
    noise, rest = doubled[:, :3], doubled[:, 3:]
    with_condition, without = noise.chunk(2)
    half = without + 4.0 * (with_condition - without)
    expected = torch.cat([torch.cat([half, half]), rest], dim=1)[:2]

    def on_patches(x: Tensor, t: Rows, kind: int) -> Tensor:
        out = network(unfold(x, grid, patch), kind)
        return torch.cat([fold(out[:, :4], patch), fold(out[:, 4:], patch)], dim=-1)

    c, u = (partial(on_patches, kind=kind) for kind in (0, 1))
    guided = only_channels(cfg(c, u, 4.0), c, 3, 4)(fold(latents, patch), Rows(torch.tensor([0.5])))
    got = torch.cat([unfold(part, grid, patch) for part in guided.split([16, 16], dim=-1)], dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(got[:, 3:], expected[:, 3:])


def test_within_acts_per_row_with_both_ends_inside() -> None:
    x = randn(5, 4)
    guided = cfg(C, U, 4.0)
    got = within(guided, C, 0.5, 0.9)(x, LEVELS)
    inside = torch.tensor([False, True, True, True, False])
    assert torch.equal(got[inside], guided(x, LEVELS)[inside])
    assert torch.equal(got[~inside], C(x, LEVELS)[~inside])


def test_bad_input_is_refused() -> None:
    for count, channels in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"got count={count} and channels={channels}"):
            only_channels(C, U, count, channels)
    with pytest.raises(ValueError, match="x has 4 numbers a patch, no multiple of channels=3"):
        only_channels(C, U, 1, 3)(randn(5, 4), LEVELS)
    with pytest.raises(ValueError, match=r"low must not be above high, got 0\.8 and nan"):
        within(C, U, 0.8, math.nan)
