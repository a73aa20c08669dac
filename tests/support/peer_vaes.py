"""Tiny autoencoders of HunyuanVideo, CogVideoX and Mochi as diffusers has them, with drawn sizes and random weights."""

import random
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_mochi import FourierFeatures
from torch import Tensor, nn

from tubelet.hub import from_diffusers
from tubelet.vae import VideoAutoencoder


def hunyuan(seed: int = 0, **sizes: Any) -> AutoencoderKLHunyuanVideo:
    """A peer of HunyuanVideo's kind; ``sizes`` replace those that are drawn."""
    draw = random.Random(seed)
    groups = draw.choice([2, 4])
    widths = [groups * draw.randint(2, 4) for _ in range(3 + seed % 2)] if "block_out_channels" not in sizes else []
    drawn: dict[str, Any] = {
        "latent_channels": draw.randint(2, 4),
        "block_out_channels": widths,
        "layers_per_block": draw.randint(1, 2),
        "norm_num_groups": groups,
        "scaling_factor": draw.uniform(0.3, 2),
    } | sizes
    scales = len(drawn["block_out_channels"])
    blocks = {f"{way.lower()}_block_types": (f"HunyuanVideo{way}Block3D",) * scales for way in ("Down", "Up")}
    return drawn_weights(
        AutoencoderKLHunyuanVideo(**drawn, **blocks, spatial_compression_ratio=2 ** (scales - 1)), seed
    )


def cogvideox(seed: int = 0, **sizes: Any) -> AutoencoderKLCogVideoX:
    """A peer of CogVideoX's kind."""
    draw = random.Random(seed)
    groups = draw.choice([2, 4])
    drawn: dict[str, Any] = {
        "latent_channels": draw.randint(2, 4),
        "block_out_channels": [groups * draw.randint(2, 4) for _ in range(3 + seed % 2)],
        "layers_per_block": draw.randint(1, 2),
        "norm_num_groups": groups,
        "temporal_compression_ratio": [4, 4, 2][seed % 3],
        "scaling_factor": draw.uniform(0.3, 2),
        "invert_scale_latents": draw.random() < 0.5,
    } | sizes
    scales = len(drawn["block_out_channels"])
    blocks = {f"{way.lower()}_block_types": (f"CogVideoX{way}Block3D",) * scales for way in ("Down", "Up")}
    return drawn_weights(AutoencoderKLCogVideoX(**drawn, **blocks), seed)


def mochi(seed: int = 0, **sizes: Any) -> AutoencoderKLMochi:
    """A peer of Mochi's kind."""
    draw = random.Random(seed)
    scales, z = 2 + seed % 2, draw.randint(2, 4)
    drawn: dict[str, Any] = {
        "encoder_block_out_channels": [32 * draw.randint(2, 3) for _ in range(scales)],
        "decoder_block_out_channels": [32 * draw.randint(2, 3) for _ in range(scales)],
        "latent_channels": z,
        "layers_per_block": [draw.randint(1, 2) for _ in range(scales + 1)],
        "temporal_expansions": draw.sample([1, 2, 3], scales - 1),
        "spatial_expansions": [2] * (scales - 1),
        "add_attention_block": [draw.random() < 0.7 for _ in range(scales + 1)],
        "latents_mean": [draw.uniform(-1, 1) for _ in range(z)],
        "latents_std": [draw.uniform(0.5, 2) for _ in range(z)],
    } | sizes
    return drawn_weights(AutoencoderKLMochi(**drawn), seed)


PEERS = {"hunyuan": hunyuan, "cogvideox": cogvideox, "mochi": mochi}


def drawn_weights(model: Any, seed: int = 0) -> Any:
    """Every parameter random, scaled by its fan-in; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=fan**-0.5 if fan > 1 else 0.5, generator=generator)
    return model.eval()


def ours(model: Any) -> Any:
    """The same autoencoder as ours."""
    return from_diffusers(dict(model.config) | {"_class_name": type(model).__name__}, model.state_dict())


def video(vae: VideoAutoencoder, latent: tuple[int, int, int], seed: int = 0, batch: int = 2) -> Tensor:
    """Random videos in float64 of a latent size."""
    factors, (t, h, w) = vae.config.factors, latent
    shape = [batch, vae.config.in_channels, 1 + factors.temporal * (t - 1), factors.spatial * h, factors.spatial * w]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(vae: VideoAutoencoder, latent: tuple[int, int, int], seed: int = 0, batch: int = 2) -> Tensor:
    """Random latents in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vae.config.latent_channels, *latent, generator=generator, dtype=torch.float64)


def lift(monkeypatch: Any) -> None:
    """Keep Mochi's peer from rounding its angles to float32."""

    def forward(self: FourierFeatures, x: Tensor) -> Tensor:
        angles = torch.stack([x * (2 * torch.pi * 2.0**k) for k in range(self.start, self.stop)], 2).flatten(1, 2)
        return torch.cat([x, angles.sin(), angles.cos()], 1)

    monkeypatch.setattr(FourierFeatures, "forward", forward)
