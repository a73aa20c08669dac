"""What holds for the open families alike: construction on the meta device, fresh weights, sizes named."""

from typing import Any

import pytest
import torch

from tubelet.vae import VideoAutoencoder, families

LTX: dict[str, Any] = {"widths": (8, 8), "depths": (1, 1), "changes": ("both",), "decoder_widths": (8,)}
LTX |= {"decoder_depths": (1, 1), "doubles": (True,), "narrows": (1,), "shortcuts": (True,), "noise": (True, True)}
SMALL: dict[str, tuple[Any, Any]] = {
    "allegro": (families.AllegroAutoencoder, families.AllegroAutoencoderConfig(widths=(4,) * 4, depth=1, groups=2)),
    "cosmos": (
        families.CosmosAutoencoder,
        families.CosmosAutoencoderConfig(widths=(4,) * 4, decoder_widths=(4,) * 4, depth=1, attention=(256,)),
    ),
    "kl": (families.KLAutoencoder, families.KLAutoencoderConfig(widths=(4, 4), depth=1, groups=2)),
    "ltx": (families.LTXAutoencoder, families.LTXAutoencoderConfig(**LTX)),
    "ltx timed": (families.LTXAutoencoder, families.LTXAutoencoderConfig(**LTX, timed=True, causal=True)),
    "magvit": (families.MagvitAutoencoder, families.MagvitAutoencoderConfig(widths=(4,) * 4, depth=1, groups=2)),
    "svd": (families.SVDAutoencoder, families.SVDAutoencoderConfig(widths=(4, 4), depth=1, groups=2)),
}


def small(name: str, **made: Any) -> VideoAutoencoder:
    family, config = SMALL[name]
    vae: VideoAutoencoder = family(config, **made)
    return vae


@pytest.mark.parametrize("name", SMALL)
def test_meta_construction_and_reset(name: str) -> None:
    vae = small(name, device="meta").to_empty(device="cpu")
    for tensor in (*vae.parameters(), *vae.buffers()):
        torch.nn.init.constant_(tensor, torch.nan)
    vae.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*vae.parameters(), *vae.buffers()))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_weight_and_bfloat16_stays(name: str) -> None:
    vae = small(name)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    factors = vae.config.factors
    video = torch.randn(1, 3, factors.first + factors.temporal, 2 * factors.spatial, factors.spatial)
    posterior = vae.encode(video)
    loss = vae.decode(posterior.mode()).square().mean() + sum(p.mean() for p in vars(posterior).values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    half = vae.bfloat16()
    with torch.no_grad():
        z = half.encode(video.bfloat16()).mode()
        assert (z.dtype, half.decode(z).dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("name", SMALL)
def test_bad_input_is_named(name: str) -> None:
    vae = small(name)
    with pytest.raises(ValueError, match="video must have 3 channels, not 1"):
        vae.encode(torch.zeros(1, 1, 8, 32, 32))
    with pytest.raises(ValueError, match=rf"z must have {vae.config.latent_channels} channels, not 3"):
        vae.decode(torch.zeros(1, 3, 1, 4, 4))
