"""Offset noise: constant where it should be, one number a channel, the right variance."""

import pytest
import torch
from einops import rearrange

from tubelet.diffusion import offset_noise
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.patchify import unfold

GRID, PATCH = Grid(2, 3, 2), (1, 2, 2)


@pytest.mark.parametrize("level", ["sample", "frame"])
def test_it_is_constant_over_the_pixels_of_a_row_and_differs_by_channel(level: str) -> None:
    layout = TokenLayout.dense(2, GRID).on("cpu")
    rows, _ = layout.row_counts(level)
    offset = torch.randn(rows, 3, dtype=torch.float64)
    noise = torch.randn(2, 12, 12, dtype=torch.float64)
    got = offset_noise(noise, layout.rows(offset, level), 0.3) - noise
    video = unfold(got, GRID, PATCH)  # b c t h w
    expected = rearrange(offset, "(b t) c -> b c t 1 1", b=2).expand_as(video)
    torch.testing.assert_close(video, 0.3 * expected)


def test_packed_equals_separate_and_one_row_serves_all() -> None:
    layout = TokenLayout.packed([GRID, Grid(1, 1, 2)]).on("cpu")
    offset, noise = torch.randn(2, 2), torch.randn(14, 4)
    together = offset_noise(noise, layout.rows(offset, "sample"))
    for part, i in ((slice(0, 12), 0), (slice(12, 14), 1)):
        torch.testing.assert_close(together[part], offset_noise(noise[part], Rows(offset[i : i + 1])))


def test_the_variance_grows_by_the_square_of_the_strength() -> None:
    noise, offset = torch.randn(4000, 5, 4), torch.randn(4000, 2)
    got = offset_noise(noise, Rows(offset), 0.5)
    assert float(got.var()) == pytest.approx(1.25, abs=0.03)
    assert got.dtype == noise.dtype


def test_features_that_are_not_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="noise has 4 features a patch, not a multiple of the offset's 3 channels"):
        offset_noise(torch.zeros(2, 4), Rows(torch.zeros(1, 3)))
