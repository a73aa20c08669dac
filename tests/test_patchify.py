"""Patches against explicit indexing, F.conv3d, and the image models that ViViT starts from."""

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tubelet.layout import Grid
from tubelet.patchify import (
    Patchify,
    Unpatchify,
    central_frame_,
    conv3d_weight_to_linear,
    crop_padding,
    fold,
    fold_packed,
    grid_of,
    inflate_,
    linear_weight_to_conv3d,
    pad_to_patch,
    unfold,
    unfold_packed,
)

patches = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
grids = st.builds(Grid, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def video_for(grid: Grid, patch: tuple[int, int, int], channels: int) -> torch.Tensor:
    return numbered(channels, grid.t * patch[0], grid.h * patch[1], grid.w * patch[2])


@given(grids, patches, st.integers(1, 2), st.integers(1, 3))
def test_fold_is_raster_order_of_pt_ph_pw_c(grid: Grid, patch: tuple[int, int, int], batch: int, channels: int) -> None:
    video = torch.stack([video_for(grid, patch, channels) * (i + 1) for i in range(batch)])
    expected = torch.empty(batch, grid.tokens, patch[0] * patch[1] * patch[2] * channels)
    for n, (t, h, w) in enumerate(itertools.product(range(grid.t), range(grid.h), range(grid.w))):
        cells = itertools.product(*(range(p) for p in patch), range(channels))
        for feature, (dt, dh, dw, c) in enumerate(cells):
            place = (t * patch[0] + dt, h * patch[1] + dh, w * patch[2] + dw)
            expected[:, n, feature] = video[:, c, place[0], place[1], place[2]]
    assert torch.equal(fold(video, patch), expected)


@given(grids, patches, st.integers(1, 3), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.bool]))
def test_unfold_is_the_exact_inverse(
    grid: Grid, patch: tuple[int, int, int], channels: int, dtype: torch.dtype
) -> None:
    video = torch.stack([video_for(grid, patch, channels), -video_for(grid, patch, channels)]).to(torch.int64).to(dtype)
    folded = fold(video, patch)
    assert grid_of(video.shape, patch) == grid
    assert torch.equal(unfold(folded, grid, patch), video)
    assert torch.equal(fold(unfold(folded, grid, patch), patch), folded)


@given(st.lists(grids, min_size=1, max_size=4), patches, st.integers(1, 3))
def test_packed_is_each_video_alone(sizes: list[Grid], patch: tuple[int, int, int], channels: int) -> None:
    videos = [video_for(grid, patch, channels) + 1000 * i for i, grid in enumerate(sizes)]
    tokens, found = fold_packed(videos, patch)
    assert found == tuple(sizes)
    assert torch.equal(tokens, torch.cat([fold(video[None], patch)[0] for video in videos]))
    back = unfold_packed(tokens, found, patch)
    assert all(torch.equal(a, b) for a, b in zip(back, videos, strict=True))


@given(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), patches, st.sampled_from([(), (2,), (1, 2)]))
def test_padding_repeats_the_first_frame_and_the_far_border(
    sides: tuple[int, int, int], patch: tuple[int, int, int], lead: tuple[int, ...]
) -> None:
    video = numbered(*lead, *sides)
    padded, (t, h, w) = pad_to_patch(video, patch)
    grid_of(padded.shape, patch)
    assert (t, h, w) >= (0, 0, 0)
    assert all(n < p for n, p in zip((t, h, w), patch, strict=True))
    assert torch.equal(crop_padding(padded, (t, h, w)), video)
    for i, j, k in itertools.product(range(sides[0] + t), range(sides[1] + h), range(sides[2] + w)):
        source = (max(i - t, 0), min(j, sides[1] - 1), min(k, sides[2] - 1))
        assert torch.equal(padded[..., i, j, k], video[..., source[0], source[1], source[2]])


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 3, 1), (3, 1, 2)])
def test_patchify_equals_conv3d(patch: tuple[int, int, int]) -> None:
    grid = Grid(2, 3, 4)
    weight = torch.randn(5, 3, *patch, dtype=torch.float64)
    patchify = Patchify(patch, channels=3, dim=5, dtype=torch.float64)
    with torch.no_grad():
        patchify.proj.weight.copy_(conv3d_weight_to_linear(weight))
        patchify.proj.bias.normal_()
    video = torch.randn(2, 3, *(g * p for g, p in zip((2, 3, 4), patch, strict=True)), dtype=torch.float64)
    expected = F.conv3d(video, weight, patchify.proj.bias, stride=patch)
    assert expected.shape[2:] == (grid.t, grid.h, grid.w)
    torch.testing.assert_close(patchify(video), expected.flatten(2).mT, rtol=1e-12, atol=1e-12)
    assert torch.equal(linear_weight_to_conv3d(patchify.proj.weight, patch), weight)


def test_unpatchify_equals_transposed_conv3d() -> None:
    patch, grid = (2, 3, 1), Grid(2, 2, 3)
    unpatchify = Unpatchify(patch, channels=2, dim=4, bias=False, dtype=torch.float64)
    tokens = torch.randn(2, grid.tokens, 4, dtype=torch.float64)
    weight = linear_weight_to_conv3d(unpatchify.proj.weight.T, patch)
    expected = F.conv_transpose3d(tokens.mT.reshape(2, 4, grid.t, grid.h, grid.w), weight, stride=patch)
    torch.testing.assert_close(unpatchify(tokens, grid), expected, rtol=1e-12, atol=1e-12)


def test_lists_give_packed_tokens_and_back() -> None:
    patch, sizes = (1, 2, 2), [Grid(2, 1, 2), Grid(1, 2, 2)]
    patchify, unpatchify = Patchify(patch, 3, 8), Unpatchify(patch, 3, 8)
    videos = [torch.randn(3, 2, 2, 4), torch.randn(3, 1, 4, 4)]
    tokens = patchify(videos)
    torch.testing.assert_close(tokens, torch.cat([patchify(v[None])[0] for v in videos]))
    for video, alone, grid in zip(unpatchify(tokens, sizes), tokens.split([4, 4]), sizes, strict=True):
        torch.testing.assert_close(video, unpatchify(alone[None], grid)[0])


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_central_frame_is_the_image_model_on_the_middle_frame(frames: int) -> None:
    image, patchify = torch.nn.Conv2d(3, 6, (2, 3), (2, 3)), Patchify((frames, 2, 3), 3, 6)
    central_frame_(patchify, image.weight, image.bias)
    kernel = linear_weight_to_conv3d(patchify.proj.weight, patchify.patch)
    assert torch.equal(kernel[:, :, frames // 2], image.weight)
    assert kernel.abs().sum((0, 1, 3, 4)).nonzero().tolist() == [[frames // 2]]
    video = torch.randn(2, 3, 2 * frames, 4, 6)
    tokens = patchify(video).reshape(2, 2, 4, 6)
    for tubelet in range(2):
        middle = video[:, :, tubelet * frames + frames // 2]
        torch.testing.assert_close(tokens[:, tubelet], image(middle).flatten(2).mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("initialise", [central_frame_, inflate_])
def test_both_equal_the_image_model_on_replicated_video(initialise: Callable[..., None], frames: int) -> None:
    image, patchify = torch.nn.Conv2d(3, 6, 2, 2), Patchify((frames, 2, 2), 3, 6)
    initialise(patchify, image.weight, image.bias)
    picture = torch.randn(2, 3, 4, 6)
    video = picture[:, :, None].expand(-1, -1, frames, -1, -1)
    torch.testing.assert_close(patchify(video), image(picture).flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_inflation_spreads_over_every_frame_and_no_bias_means_zero() -> None:
    weight, patchify = torch.randn(6, 3, 2, 2), Patchify((4, 2, 2), 3, 6)
    torch.nn.init.ones_(patchify.proj.bias)
    inflate_(patchify, weight)
    kernel = linear_weight_to_conv3d(patchify.proj.weight, (4, 2, 2))
    assert all(torch.equal(kernel[:, :, t], weight / 4) for t in range(4))
    assert patchify.proj.bias.abs().max() == 0
    assert patchify.proj.weight.requires_grad


def test_meta_construction_and_xavier_bounds() -> None:
    for module in (Patchify((1, 4, 4), 4, 96, device="meta"), Unpatchify((1, 4, 4), 4, 96, device="meta")):
        assert module.proj.weight.is_meta
        real = module.to_empty(device="cpu")
        real.reset_parameters()
        bound = (6 / (64 + 96)) ** 0.5
        assert 0.95 * bound < real.proj.weight.abs().max() <= bound
        assert real.proj.bias.abs().max() == 0


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_input_names_both_values() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*patch=\(2, 2, 2\)"):
        fold(torch.zeros(1, 1, 3, 4, 4), (2, 2, 2))
    for call, shape in (
        (lambda x: fold(x, (1, 1, 1)), (3, 4, 4, 4)),
        (lambda x: fold_packed([x], (1, 1, 1)), (1, 3, 4, 4, 4)),
        (lambda x: unfold(x, Grid(1, 2, 2), (1, 1, 1)), (4, 4)),
        (lambda x: unfold_packed(x, [Grid(1, 2, 2)], (1, 1, 1)), (1, 4, 4)),
    ):
        with pytest.raises(ValueError, match=rf"must be \([a-z, ]+\), got shape {re.escape(str(shape))}"):
            call(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"5 tokens.*has 4"):
        unfold(torch.zeros(1, 5, 4), Grid(1, 2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match=r"width 6.*patch=\(1, 2, 2\)"):
        unfold(torch.zeros(1, 4, 6), Grid(1, 2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match=r"5 tokens.*4 together"):
        unfold_packed(torch.zeros(5, 4), [Grid(1, 2, 2)], (1, 2, 2))
    with pytest.raises(ValueError, match="empty"):
        fold_packed([], (1, 2, 2))
    with pytest.raises(ValueError, match="same channels, got 2 and 3"):
        fold_packed([torch.zeros(3, 1, 2, 2), torch.zeros(2, 1, 2, 2)], (1, 2, 2))
    with pytest.raises(ValueError, match=r"width 6.*patch=\(1, 2, 2\)"):
        linear_weight_to_conv3d(torch.zeros(2, 6), (1, 2, 2))
    with pytest.raises(ValueError, match=r"3 channels.*channels=4"):
        Patchify((1, 2, 2), 4, 8)(torch.zeros(1, 3, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\(8, 3, 2, 3, 3\).*\(8, 4, 2, 3, 3\)"):
        inflate_(Patchify((2, 3, 3), 4, 8), torch.zeros(8, 3, 3, 3))
    with pytest.raises(ValueError, match=r"bias has shape \(8,\).*bias=False"):
        central_frame_(Patchify((2, 3, 3), 4, 8, bias=False), torch.zeros(8, 4, 3, 3), torch.zeros(8))


@pytest.mark.graph
def test_folding_and_embedding_trace_as_one_graph() -> None:
    patchify, unpatchify, video = Patchify((1, 2, 2), 3, 8), Unpatchify((1, 2, 2), 3, 8), torch.randn(2, 3, 2, 4, 4)

    grid = Grid(2, 2, 2)

    def both(v: torch.Tensor) -> torch.Tensor:
        return unpatchify(patchify(v), grid)

    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="eager")(video), both(video))
