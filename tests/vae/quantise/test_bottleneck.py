"""Quantisers inside an autoencoder: the conformance check, positions, streams, gradients, saving."""

from pathlib import Path

import pytest
import torch

from tubelet import hub
from tubelet.testing import check_autoencoder
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, encode_stream
from tubelet.vae.quantise import (
    CodeBottleneck,
    CodeStatistics,
    FiniteScalar,
    LookupFree,
    Quantiser,
    ResidualScalar,
    VectorQuantiser,
    commitment_loss,
)

QUANTISERS = {
    "fsq": lambda: FiniteScalar((5, 4, 3, 3)),
    "lfq": lambda: LookupFree(4),
    "vq": lambda: VectorQuantiser(16, 4),
    "rfsq": lambda: ResidualScalar((5, 4, 3, 3), 2),
}
SMALL = CausalAutoencoderConfig(in_channels=2, latent_channels=4, widths=(6, 8), depths=(1, 1), temporal=4, spatial=4)


def make(quantiser: Quantiser) -> CausalAutoencoder:
    torch.manual_seed(0)
    return CausalAutoencoder(SMALL, posterior=CodeBottleneck(quantiser))


@pytest.mark.parametrize("name", QUANTISERS)
def test_the_autoencoder_conforms_and_streams(name: str) -> None:
    vae = make(QUANTISERS[name]()).eval()
    check_autoencoder(vae, 2)
    video = torch.randn(2, 2, 13, 8, 8)
    whole = vae.encode(video)
    parts = list(encode_stream(vae, video.split([3, 4, 6], 2)))
    assert torch.equal(torch.cat([part.indices for part in parts], 1), whole.indices)
    assert torch.equal(whole.mode(), whole.sample())
    again = vae.posterior.codes(whole.indices)
    assert torch.equal(vae.decode(again), vae.decode(whole.mode()))
    assert vae.encoder.project.out_features == 4  # no log variances


@pytest.mark.parametrize("name", QUANTISERS)
def test_positions_are_quantised_alone(name: str) -> None:
    quantiser = QUANTISERS[name]()
    quantiser.eval()
    x = torch.randn(2, 4, 3, 5, 6)
    codes = CodeBottleneck(quantiser)(x)
    one = quantiser(x[1, :, 2, 4, 5])
    assert torch.equal(codes.indices[1, 2, 4, 5], one.indices)
    assert torch.equal(codes.codes[1, :, 2, 4, 5], one.codes)


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_step_of_training_reaches_the_encoder(name: str) -> None:
    vae = make(QUANTISERS[name]()).train()
    video = torch.randn(2, 2, 5, 8, 8)
    codes = vae.encode(video)
    (vae.decode(codes.mode()).square().mean() + 0.25 * commitment_loss(codes.latents, codes.codes)).backward()
    assert vae.encoder.project.weight.grad.abs().max() > 0
    assert CodeStatistics.of(codes.indices, vae.posterior.quantiser.size).usage > 0


def test_a_quantised_autoencoder_is_saved_and_loaded(tmp_path: Path) -> None:
    vae = make(QUANTISERS["vq"]()).train()
    vae.encode(torch.randn(2, 2, 5, 8, 8))
    vae.eval()
    hub.save(vae, tmp_path / "vae")
    again = hub.load(tmp_path / "vae", posterior=CodeBottleneck(VectorQuantiser(16, 4))).eval()
    assert torch.equal(again.posterior.quantiser.codebook, vae.posterior.quantiser.codebook)
    video = torch.randn(1, 2, 5, 8, 8)
    assert torch.equal(again(video), vae(video))


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"posterior gives 3 latent channels, but the config has 4"):
        CausalAutoencoder(SMALL, posterior=CodeBottleneck(LookupFree(3)))
