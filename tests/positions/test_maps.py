"""Coordinate maps and scaled bases against the peers that use them, and against what they promise."""

import itertools

import pytest
import torch
from diffusers.models import embeddings
from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.layout import Grid, TokenLayout
from tubelet.positions import (
    CentralFit,
    FirstPixel,
    FrameRate,
    Interpolation,
    Rope3d,
    Stretched,
    apply_rope,
    ntk_theta,
    rope_angles,
    rope_axes,
    sincos_2d,
)


def cells(t: int, h: int, w: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(t), range(h), range(w))))


@pytest.mark.parametrize("fps", [None, 12])
def test_frame_rate_and_ntk_bases_equal_cosmos(fps: int | None) -> None:
    scale = (2.0, 1.0, 3.0)
    cos, sin = CosmosRotaryPosEmbed(128, rope_scale=scale)(torch.empty(1, 1, 5, 8, 12), fps)
    coords = cells(5, 4, 6) if fps is None else FrameRate(24.0)(cells(5, 4, 6), float(fps))
    x = torch.randn(120, 3, 128)
    rope = Rope3d(128, theta=ntk_theta(rope_axes(128), scale), layout="half")
    expected = embeddings.apply_rotary_emb(x[None], (cos, sin), use_real_unbind_dim=-2, sequence_dim=1)[0]
    torch.testing.assert_close(apply_rope(x, rope(coords)), expected, rtol=0, atol=1e-5)


def test_interpolation_in_halves_per_axis_equals_allegro() -> None:
    scale, (t, h, w) = (2.0, 3.0, 1.5), (5, 4, 6)
    *tables, _, _, _ = embeddings.get_3d_rotary_pos_embed_allegro(96, ((0, 0), (h, w)), (h, w), t, scale)
    x, coords = torch.randn(t * h * w, 2, 96), cells(t, h, w)
    rope = Rope3d(96, (32, 32, 32), layout="half_per_axis", place=Interpolation(scale))
    # the peer holds (batch, heads, n, d) and looks each axis up by its own positions (batch, n)
    places = [coords[None, :, axis] for axis in range(3)]
    expected = embeddings.apply_rotary_emb_allegro(x.transpose(0, 1)[None], tables, places)[0].transpose(0, 1)
    torch.testing.assert_close(apply_rope(x, rope(coords)), expected, rtol=0, atol=1e-5)
    assert repr(rope).endswith("layout='half_per_axis', place=Interpolation(scale=(2.0, 3.0, 1.5)))")


sides = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(sides, sides)
def test_central_fit_equals_the_grid_of_cogvideox(base: tuple[int, int], grid: tuple[int, int]) -> None:
    """Its crop region of the base grid, cut into as many steps as the grid has rows and columns."""
    start, stop = get_resize_crop_region_for_grid(grid, base[1], base[0])
    spans = [
        torch.linspace(start[i], stop[i] * (side - 1) / side, side, dtype=torch.float64) for i, side in enumerate(grid)
    ]
    coords = cells(1, *grid)
    expected = torch.stack([spans[0][coords[:, 1]], spans[1][coords[:, 2]]], -1)
    places = CentralFit(base)(coords + torch.tensor([2, 0, 0]), torch.tensor([4, *grid]).expand_as(coords))
    torch.testing.assert_close(places[:, 1:], expected, rtol=0, atol=1e-12)
    assert (places[:, 0] == 2).all()


@pytest.mark.parametrize("grid", [(2, 6, 4), (1, 3, 9), (3, 8, 8)])
def test_stretched_planes_equal_pixart(grid: tuple[int, int, int]) -> None:
    """The table of PatchEmbed, whose places span a base size shrunk by a scale; frames keep their numbers."""
    t, h, w = grid
    coords = cells(t, h, w)
    places = Stretched((8 / 1.5, 8 / 1.5))(coords, torch.tensor(grid).expand_as(coords))
    table = embeddings.get_2d_sincos_pos_embed(16, (h, w), interpolation_scale=1.5, base_size=8)
    torch.testing.assert_close(sincos_2d(places[:, 1:], 16), table.float().repeat(t, 1), rtol=0, atol=1e-6)
    assert torch.equal(places[:, 0], coords[:, 0].double())


def test_fractions_of_the_sides_are_each_sample_s_own() -> None:
    """NaViT's ``r = p / side``, on every axis, in a mixture; text stays before the first frame."""
    index = TokenLayout.packed([Grid(2, 1, 4), Grid(1, 2, 2)], [1, 0], capacity=16).on("cpu")
    places = Stretched((1.0, 1.0), time=1.0)(index.coords, index.extent)
    by_hand = [[t / 2, 0, w / 4] for t in range(2) for w in range(4)] + [[0, h / 2, w / 2] for h, w in ((0, 0), (0, 1))]
    assert places[1:11].tolist() == by_hand
    assert (places[0, 0], places[15, 0]) == (-1, -1)
    assert torch.equal(Stretched((1.0, 1.0))(index.coords, index.extent)[:, 0], index.coords[:, 0].double())


@given(st.floats(1.0, 16.0), st.sampled_from([(44, 42, 42), (16, 56, 56), (4, 4, 4), (2, 4, 6)]))
def test_ntk_slows_the_lowest_frequency_by_the_factor_and_keeps_the_highest(
    factor: float, axes: tuple[int, int, int]
) -> None:
    coords = torch.ones(1, 3)
    plain = rope_angles(coords, sum(axes), axes)[0]
    scaled = rope_angles(coords, sum(axes), axes, ntk_theta(axes, (factor,) * 3))[0]
    start = 0
    for width in axes:
        ratio = plain[start : start + width // 2] / scaled[start : start + width // 2]
        assert ratio[0].item() == pytest.approx(1)
        assert width == 2 or ratio[-1].item() == pytest.approx(factor)
        start += width // 2


def test_text_stays_unrotated_under_every_map() -> None:
    index = TokenLayout.packed([Grid(2, 1, 2), Grid(1, 2, 1)], [2, 1]).on("cpu")
    fps = index.rows(torch.tensor([12.0, 48.0]), "sample").expand()
    fitted = CentralFit((3, 5))(index.coords, index.extent)
    maps = Interpolation((0.5, 2.0, 3.0)), FirstPixel((8, 2, 2)), lambda coords: FrameRate()(coords, fps)
    for places in (fitted, *(place(index.coords) for place in maps)):
        rotary = Rope3d(12)(places)
        assert not rotary.sin[index.frame < 0].any()
        assert rotary.sin[index.frame > 0].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [(8, 32, 32), (4, 16, 8), (1, 1, 1)])
def test_the_first_pixels_are_where_the_frames_of_a_cell_begin(stride: tuple[int, int, int], causal: bool) -> None:
    """By counting: the cells' lengths, the first of one frame in a causal autoencoder, added up."""
    frames = [1 if causal else stride[0], stride[0], stride[0], stride[0]]
    starts = [sum(frames[:t]) for t in range(4)]
    expected = [[starts[t], h * stride[1], w * stride[2]] for t, h, w in cells(4, 2, 3).tolist()]
    assert FirstPixel(stride, causal)(cells(4, 2, 3)).tolist() == expected


def test_rates_differ_sample_by_sample() -> None:
    index = TokenLayout.packed([Grid(2, 1, 1), Grid(2, 1, 1)]).on("cpu")
    places = FrameRate(24.0)(index.coords, index.rows(torch.tensor([12.0, 48.0]), "sample").expand())
    assert places[:, 0].tolist() == [0.0, 2.0, 0.0, 0.5]
    dense = TokenLayout.dense(2, Grid(2, 1, 1)).on("cpu")
    by_view = FrameRate(24.0)(dense.coords, dense.rows(torch.tensor([12.0, 48.0]), "sample").expand())
    assert by_view[..., 0].tolist() == [[0.0, 2.0], [0.0, 0.5]]


def test_bad_input_names_the_values() -> None:
    for make, message in [
        (lambda: Stretched((1.0, 0.0)), r"sides must be positive, got \(1.0, 0.0\)"),
        (lambda: Stretched((1.0, 1.0), time=0.0), r"time must be positive, got 0.0 beside sides=\(1.0, 1.0\)"),
        (lambda: Interpolation((1.0, 0.0, 1.0)), r"positive.*\(1.0, 0.0, 1.0\)"),
        (lambda: CentralFit((3, 0)), r"base must be positive on both axes, got \(3, 0\)"),
        (lambda: FrameRate(-1.0), "positive, got -1.0"),
        (lambda: FrameRate()(torch.zeros(3, 3), torch.ones(2, 1)), r"fps of shape \(2, 1\) for tokens \(3,\)"),
        (lambda: FrameRate()(torch.zeros(3, 3), torch.ones(2)), r"fps of shape \(2,\) for tokens \(3,\)"),
        (lambda: FrameRate()(torch.zeros(1, 3), torch.ones(2)), r"fps of shape \(2,\) for tokens \(1,\)"),
        (lambda: FirstPixel((8, 0, 32)), r"stride must be positive on each axis, got \(8, 0, 32\)"),
        (lambda: ntk_theta((4, 4, 4), (1.0, -1.0, 1.0)), r"positive.*-1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
