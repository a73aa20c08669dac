"""Discriminators against a plain 2-D transcription, the paper's counts of weights and its receptive fields."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.objectives import PatchDiscriminator


def per_frame(weights: list[Tensor], norms: list[tuple[Tensor, Tensor]], images: Tensor) -> Tensor:
    """Patch scores of images by 2-D convolutions with batch norms, written out; weights and biases in turn."""
    last = len(norms) + 1
    x = F.leaky_relu(F.conv2d(images, weights[0][:, :, 0], weights[1], stride=2, padding=1), 0.2)
    for i, (scale, shift) in enumerate(norms):
        x = F.conv2d(x, weights[2 + i][:, :, 0], stride=1 if i == last - 2 else 2, padding=1)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        x = F.leaky_relu(x, 0.2)
    return F.conv2d(x, weights[-2][:, :, 0], weights[-1], padding=1)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_frames_are_judged_as_images_are(n_layers: int) -> None:
    ours = PatchDiscriminator(3, 4, n_layers).double()
    norms = [layer for layer in ours.layers if isinstance(layer, nn.BatchNorm3d)]
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    nn.init.normal_(ours.layers[0].bias), nn.init.normal_(ours.layers[-1].bias)
    weights = [p for layer in ours.layers if isinstance(layer, nn.Conv3d) for p in layer.parameters()]
    video = torch.randn(2, 3, 3, 41, 36, dtype=torch.float64)
    images = video.transpose(1, 2).flatten(0, 1)
    expected = per_frame(weights, [(norm.weight, norm.bias) for norm in norms], images)
    found = ours(video).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_clips_are_judged_as_by_tats() -> None:
    """Kernels of 4x4x4 and zeros of 2 on each side, batch norms in eval mode."""
    ours = PatchDiscriminator(3, 4, 2, kernel=(4, 4, 4), padding=(2, 2, 2)).double().eval()
    convs = [layer for layer in ours.layers if isinstance(layer, nn.Conv3d)]
    video = torch.randn(1, 3, 1, 9, 12, dtype=torch.float64)
    x = video
    for i, conv in enumerate(convs):
        x = F.conv3d(F.pad(x, (2,) * 6), conv.weight, conv.bias, stride=2 if i < 2 else 1)
        if 0 < i < 3:
            x = x / (1 + 1e-5) ** 0.5
        x = F.leaky_relu(x, 0.2) if i < 3 else x
    torch.testing.assert_close(ours(video), x, rtol=1e-9, atol=1e-15)


def test_the_published_networks_have_as_many_weights() -> None:
    """pix2pix's of an image and a label (2.769 M), and CycleGAN's with instance norms (2.765 M)."""

    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    def by_hand(inputs: int, base: int, area: int, layers: int, per_norm: int) -> int:
        widths = [base * min(2**i, 8) for i in range(layers + 1)]
        inner = sum(area * a * b + per_norm * b for a, b in pairwise(widths))
        return area * inputs * base + base + inner + area * widths[-1] + 1

    pix2pix = count(PatchDiscriminator(6, device="meta"))
    cyclegan = count(PatchDiscriminator(3, norm=nn.InstanceNorm3d, device="meta"))
    assert (pix2pix, cyclegan) == (2_768_705, 2_764_737)
    assert (by_hand(6, 64, 16, 3, 2), by_hand(3, 64, 16, 3, 1)) == (pix2pix, cyclegan)
    deep = PatchDiscriminator(1, 16, 5, kernel=(3, 4, 4), norm=lambda n: nn.GroupNorm(8, n), device="meta")
    assert count(deep) == by_hand(1, 16, 48, 5, 2)


@pytest.mark.parametrize(("n_layers", "pixels"), [(1, 16), (3, 70), (5, 286)])
def test_a_score_sees_as_much_as_in_the_paper(n_layers: int, pixels: int) -> None:
    ours = PatchDiscriminator(1, 1, n_layers, norm=lambda n: nn.Identity())
    for p in ours.parameters():
        nn.init.ones_(p)
    video = torch.ones(1, 1, 1, 24, 3 * pixels).requires_grad_()
    scores = ours(F.pad(video, (0, 0, 12 * n_layers**2, 12 * n_layers**2)))
    scores[0, 0, 0, scores.shape[3] // 2, scores.shape[4] // 2].backward()
    assert int((video.grad[0, 0, 0].sum(0) != 0).sum()) == pixels


@pytest.mark.parametrize("kernel", [(1, 4, 4), (3, 4, 4), (4, 4, 4)])
def test_the_smallest_video_has_one_score_and_a_smaller_one_is_refused(kernel: tuple[int, int, int]) -> None:
    ours = PatchDiscriminator(1, 2, 2, kernel=kernel, norm=nn.InstanceNorm3d).eval()
    assert ours(torch.randn(1, 1, *ours.least)).shape == (1, 1, 1, 1, 1)
    assert ours.least[0] == (1 if kernel[0] < 4 else ours.least[1])
    for axis in range(3 if ours.least[0] > 1 else 2):
        sides = list(ours.least)
        sides[2 - axis] -= 1
        with pytest.raises(
            ValueError, match=rf"at least \(t, h, w\) = \({ours.least[0]}, .*got \({sides[0]}, {sides[1]}"
        ):
            ours(torch.randn(1, 1, *sides))


def test_frames_alone_or_together() -> None:
    """Of two clips that differ in one frame, scores differ there alone, or around it."""
    a = torch.randn(1, 3, 9, 24, 24)
    b = a.clone()
    b[:, :, 4] += 1
    frames = PatchDiscriminator(3, 4, 2, norm=lambda n: nn.Identity())
    moved = (frames(a) != frames(b)).flatten(3).any(-1).flatten().tolist()
    assert moved == [i == 4 for i in range(9)]
    clips = PatchDiscriminator(3, 4, 2, kernel=(3, 4, 4), norm=lambda n: nn.Identity())
    assert (clips(a) != clips(b)).flatten(3).any(-1).sum() > 1


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n_layers must be a whole number of at least 1, got 0"):
        PatchDiscriminator(n_layers=0)
    with pytest.raises(ValueError, match="video must have 3 channels, not 1"):
        PatchDiscriminator(3, 2, 1)(torch.zeros(1, 1, 1, 24, 24))
