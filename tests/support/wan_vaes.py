"""Tiny autoencoders of Wan's as diffusers has them, with drawn sizes and random weights."""

import random
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn

from tubelet.hub import from_diffusers
from tubelet.hub.wan_vae import wan_vae_keys
from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig

KINDS = ("2.1", "decoder", "short", "2.2")
"""As Wan 2.1's; with other widths in the decoder; two scales, each halving time; as Wan 2.2's."""


def peer(kind: str, seed: int = 0, **sizes: Any) -> AutoencoderKLWan:
    """A model of diffusers' in float32 whose every parameter is random; ``sizes`` replace those that are drawn.

    Weights are scaled by their fan-in, so that decoded pixels stay within [-1, 1], where nothing is clamped.
    """
    draw = random.Random(seed)
    z = draw.randint(2, 3)
    drawn: dict[str, Any] = {
        "base_dim": draw.choice([4, 6]),
        "z_dim": z,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": draw.randint(1, 2),
        "temperal_downsample": draw.choice([[False, True], [True, False]]),
        "latents_mean": [draw.uniform(-1, 1) for _ in range(z)],
        "latents_std": [draw.uniform(0.5, 2) for _ in range(z)],
        "in_channels": 3,
    }
    if kind == "2.1":
        drawn |= {"dim_mult": [1, 2, 2, 4], "temperal_downsample": [False, True, True]}
    if kind == "decoder":
        drawn |= {"decoder_base_dim": 8}
    if kind == "short":
        drawn |= {"dim_mult": [1, 3, 2], "temperal_downsample": [True, True], "in_channels": 1}
    if kind == "2.2":
        drawn |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "decoder_base_dim": 8}
        drawn |= {"dim_mult": [1, 2, 2], "temperal_downsample": [False, True]}
    drawn |= sizes
    drawn["out_channels"] = drawn["in_channels"]
    drawn["scale_factor_temporal"] = 2 ** sum(drawn["temperal_downsample"])
    drawn["scale_factor_spatial"] = (drawn.get("patch_size") or 1) * 2 ** len(drawn["temperal_downsample"])
    model, generator = AutoencoderKLWan(**drawn), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=0.8 * fan**-0.5 if fan > 1 else 0.4, generator=generator)
    for parameter in model.decoder.conv_out.parameters():
        parameter.data *= 0.25
    return model.eval()


def ours(model: AutoencoderKLWan) -> WanAutoencoder:
    """The same autoencoder as ours."""
    return from_diffusers(dict(model.config) | {"_class_name": "AutoencoderKLWan"}, model.state_dict())


def video(vae: WanAutoencoder, latent: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Two random videos in float64 of a latent size."""
    factors, (t, h, w) = vae.config.factors, latent
    shape = [2, vae.config.in_channels, 1 + factors.temporal * (t - 1), factors.spatial * h, factors.spatial * w]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(vae: WanAutoencoder, latent: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Two random latents in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, vae.config.latent_channels, *latent, generator=generator, dtype=torch.float64)


def lift(monkeypatch: Any) -> None:
    """Keep the peer from rounding to float32 where it copies positions."""
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)


def from_theirs(config: WanAutoencoderConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors under our names."""
    return wan_vae_keys(config).to_ours(state)
