"""The autoencoder that begins as block PCA: equal to numpy's before training, streams, and learns what PCA leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

from tubelet import hub
from tubelet.vae import CausalAutoencoderConfig, ChannelCovariance, decode_stream, encode_stream
from tubelet.vae.families import PrincipalAutoencoder, PrincipalAutoencoderConfig, principal_vae, start_from

SIZES = PrincipalAutoencoderConfig(latent_channels=5, widths=(8, 12), depths=(1, 2), decoder_depths=(2, 1))


def videos(count: int = 3) -> list[torch.Tensor]:
    """Smooth noise, so that some components matter more than others."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(count, 2, 3, 9, 16, 24, generator=generator)
    return list((rough.cumsum(4).cumsum(5) / 20 + 0.3).clamp(-1, 1))


def made(sizes: PrincipalAutoencoderConfig = SIZES) -> PrincipalAutoencoder:
    torch.manual_seed(0)
    vae = PrincipalAutoencoder(sizes).eval()
    start_from(vae, videos())
    return vae


def numpy_pca(cells: np.ndarray, fitted: np.ndarray, count: int) -> np.ndarray:
    """Cells through the first components of others, by numpy's singular values."""
    mean = fitted.mean(0)
    _, _, rows = np.linalg.svd(fitted - mean, full_matrices=False)
    return mean + (cells - mean) @ rows[:count].T @ rows[:count]


def cells(video: torch.Tensor, frames: int) -> np.ndarray:
    order = "b c (t pt) (h ph) (w pw) -> (b t h w) (c pt ph pw)"
    return rearrange(video, order, pt=frames, ph=8, pw=8).double().numpy()


@torch.no_grad()
def test_it_begins_as_numpys_block_pca() -> None:
    vae, seen = made(), videos()
    video = torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(9)) * 2 - 1
    decoded = vae(video)
    for frames, part in ((1, slice(0, 1)), (4, slice(1, None))):
        fitted = np.concatenate([cells(each[:, :, part], frames) for each in seen])
        expected = numpy_pca(cells(video[:, :, part], frames), fitted, 5)
        assert np.abs(cells(decoded[:, :, part], frames) - expected).max() < 1e-4


@torch.no_grad()
def test_its_latents_have_unit_variance_and_little_noise() -> None:
    vae, seen = made(), videos()
    posteriors = [vae.encode(video) for video in seen]
    rest = torch.cat([p.mean[:, :, 1:].transpose(0, 1).flatten(1) for p in posteriors], 1)
    assert rest.mean(1).abs().max() < 1e-3
    assert (rest.std(1, correction=0) - 1).abs().max() < 1e-3
    assert posteriors[0].logvar.eq(-8).all()


@torch.no_grad()
def test_chunks_equal_the_whole() -> None:
    vae = made().double()
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(1, 3, 13, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = vae.encode(x).mean
    parts = torch.cat([p.mean for p in encode_stream(vae, x.split([5, 8], 2))], 2)
    assert (parts - whole).norm() <= 1e-11 * whole.norm()
    y = vae.decode(whole)
    assert (torch.cat(list(decode_stream(vae, whole.split([1, 2, 1], 2))), 2) - y).norm() <= 1e-11 * y.norm()


def test_convolutions_learn_what_the_linear_code_leaves() -> None:
    vae, seen = made(), videos()
    branches = [*vae.encoder.branch.parameters(), *vae.decoder.branch.parameters()]
    optimizer = torch.optim.Adam(branches, 3e-3)
    errors = []
    for _ in range(6):
        error = (vae(seen[0]) - seen[0]).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.98 * errors[0]


def test_statistics_are_saved_with_it(tmp_path) -> None:
    vae = made()
    vae.set_latent_stats(torch.arange(5.0), torch.arange(1.0, 6.0))
    loaded = hub.load(hub.save(vae, tmp_path / "vae"))
    assert loaded.config == replace(SIZES, latent_mean=(0.0, 1.0, 2.0, 3.0, 4.0), latent_std=(1.0, 2.0, 3.0, 4.0, 5.0))
    z = torch.ones(1, 5, 1, 2, 2)
    assert torch.equal(loaded.scale(z)[0, :, 0, 0, 0], (1 - torch.arange(5.0)) / torch.arange(1.0, 6.0))
    with torch.no_grad():
        assert torch.equal(loaded(videos()[0]), vae(videos()[0]))
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(4,\), but there are 5 channels"):
        vae.set_latent_stats(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="latent_std must be positive"):
        vae.set_latent_stats(torch.ones(5), torch.zeros(5))


def test_a_config_without_a_place_for_statistics_says_so() -> None:
    from tubelet.vae import Chain, Depatch, Patch, PerFrame, VideoAutoencoder

    class Sizes(CausalAutoencoderConfig):
        latent_mean = latent_std = ()

    vae = VideoAutoencoder(Sizes(in_channels=3), Chain(PerFrame(Patch(2))), Chain(PerFrame(Depatch(2))))
    with pytest.raises(ValueError, match="Sizes has no field latent_mean"):
        vae.set_latent_stats(torch.ones(16), torch.ones(16))


def test_it_is_drawn_anew_as_it_is_made() -> None:
    vae = made()
    vae.reset_parameters()
    with torch.no_grad():
        assert not vae.encode(videos()[0]).mean.any()
        assert not vae(videos()[0]).any()
    start_from(vae, videos())
    with torch.no_grad():
        assert vae(videos()[0]).any()


def test_what_it_cannot_start_from_is_refused() -> None:
    vae = PrincipalAutoencoder(SIZES)
    with pytest.raises(ValueError, match="more than one frame, got none"):
        start_from(vae, [])
    with pytest.raises(ValueError, match="more than one frame, got images only"):
        start_from(vae, [torch.zeros(1, 3, 1, 16, 16)])
    with pytest.raises(ValueError, match="videos must have 3 channels, not 1"):
        start_from(vae, [torch.zeros(1, 1, 5, 16, 16)])
    with pytest.raises(ValueError, match="height must be a multiple"):
        start_from(vae, [torch.zeros(1, 3, 5, 12, 16)])
    with pytest.raises(ValueError, match="latent_mean has 3 values for 5"):
        replace(SIZES, latent_mean=(0.0,) * 3)
    assert sum(p.numel() for p in PrincipalAutoencoder(principal_vae(), device="meta").parameters()) <= 3_000_000


def test_covariances_of_parts_add_up() -> None:
    rows = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 100
    seen = ChannelCovariance.of(rows[:7]) + ChannelCovariance.of(rows[7:30]) + ChannelCovariance.of(rows[30:])
    expected = np.cov(rows.numpy().T, bias=True)
    assert np.abs(seen.products.numpy() / seen.count - expected).max() < 1e-11
    basis, std = seen.principal(2)
    variances, _ = np.linalg.eigh(expected)
    assert np.allclose(std.numpy() ** 2, variances[::-1][:2])
    assert torch.allclose(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    assert np.allclose(expected @ basis.numpy(), basis.numpy() * std.numpy() ** 2)
    with pytest.raises(ValueError, match=r"count must lie in \[1, 4\], got 5"):
        seen.principal(5)
    with pytest.raises(ValueError, match="covariances of 4 and 3 channels"):
        seen + ChannelCovariance.of(rows[:, :3])
