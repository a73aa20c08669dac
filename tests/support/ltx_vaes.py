"""Tiny autoencoders of LTX-Video's as diffusers has them, with drawn sizes and random weights."""

import random
from typing import Any

import torch
import vae_parity as vaes
from diffusers import AutoencoderKLLTXVideo
from diffusers.models import embeddings
from diffusers.models.autoencoders.autoencoder_kl_ltx import RMSNorm
from torch import Tensor

from tubelet.conditioning import timestep_sinusoid

KINDS = ("0.9", "0.9.1", "0.9.5", "causal")
"""As 0.9.0's; with a time and noise; as 0.9.5's; as 0.9.0's with noise, shortcuts and a causal decoder."""


def peer(kind: str, seed: int = 0, **sizes: Any) -> AutoencoderKLLTXVideo:
    """A model of diffusers' in float32 whose every parameter is random; ``sizes`` replace those that are drawn."""
    draw = random.Random(seed)
    drawn: dict[str, Any] = {"latent_channels": draw.randint(3, 5), "patch_size": draw.choice([2, 4])}
    drawn["in_channels"] = drawn["out_channels"] = draw.choice([1, 3])
    drawn |= plain(draw) if kind in ("0.9", "causal") else timed(draw)
    if kind == "causal":
        drawn |= {"decoder_causal": True, "decoder_inject_noise": (False, False, True, True)}
        drawn |= {"upsample_residual": (False, True, False)}
    if kind == "0.9.1":
        drawn |= {"decoder_inject_noise": (True, False, True)}
    if kind == "0.9.5":
        drawn |= folded(draw)
    model = vaes.drawn(AutoencoderKLLTXVideo(**drawn | sizes), seed)
    generator = torch.Generator().manual_seed(seed)
    model.latents_mean.normal_(generator=generator)
    model.latents_std.uniform_(0.5, 2, generator=generator)
    if model.config.timestep_conditioning:
        torch.nn.init.constant_(model.decoder.timestep_scale_multiplier, 900.0)
    return model


def plain(draw: random.Random) -> dict[str, Any]:
    """Three scales, of which two double; the widths of the decoder change but where there is noise."""
    depths = tuple(draw.randint(1, 2) for _ in range(4))
    return {
        "block_out_channels": (4, 6, 8),
        "down_block_types": ("LTXVideoDownBlock3D",) * 3,
        "layers_per_block": depths,
        "spatio_temporal_scaling": (True, True, False),
        "downsample_type": ("conv",) * 3,
        "decoder_block_out_channels": (6, 8, 8),
        "decoder_layers_per_block": depths[::-1],
        "decoder_spatio_temporal_scaling": (True, True, False),
        "decoder_inject_noise": (False,) * 4,
        "upsample_residual": (False,) * 3,
        "upsample_factor": (1,) * 3,
    }


def timed(draw: random.Random) -> dict[str, Any]:
    """Two scales that double and halve their channels, with a time."""
    return plain(draw) | {
        "decoder_block_out_channels": (8, 16),
        "decoder_layers_per_block": (1, draw.randint(1, 2), 1),
        "decoder_spatio_temporal_scaling": (True, True),
        "decoder_inject_noise": (False,) * 3,
        "upsample_residual": (True, True),
        "upsample_factor": (2, 2),
        "timestep_conditioning": True,
    }


def folded(draw: random.Random) -> dict[str, Any]:
    """Space and time through channels, together twice each."""
    types = draw.choice([("spatial", "temporal", "spatiotemporal"), ("temporal", "spatiotemporal", "spatial")])
    return {
        "block_out_channels": (8, 8, 16, 32),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
        "spatio_temporal_scaling": (True,) * 3,
        "downsample_type": types,
        "spatial_compression_ratio": None,
        "temporal_compression_ratio": None,
    }


def time(model: AutoencoderKLLTXVideo) -> Tensor | None:
    """Noise levels of two samples, for a model that knows them."""
    return torch.tensor([0.05, 0.3]) if model.config.timestep_conditioning else None


def lift(monkeypatch: Any) -> None:
    """Keep the peer from rounding to float32 in its norms and the sinusoid of times."""

    def norm(self: RMSNorm, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def sinusoid(times: Tensor, dim: int, **_: Any) -> Tensor:
        return timestep_sinusoid(times, dim)

    monkeypatch.setattr(RMSNorm, "forward", norm)
    monkeypatch.setattr(embeddings, "get_timestep_embedding", sinusoid)
