"""Small autoencoders all of whose weights are random, the ones that start at zero as well."""

from typing import TypeVar

import torch
from torch import nn

from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig

Module = TypeVar("Module", bound=nn.Module)


def randomised(module: Module, seed: int = 3) -> Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan**0.5)
    return module.eval()


def causal(dtype: torch.dtype = torch.float64, **sizes: object) -> CausalAutoencoder:
    config = {"in_channels": 2, "latent_channels": 3, "widths": (6, 8), "depths": (2, 1), "spatial": 4} | sizes
    return randomised(CausalAutoencoder(CausalAutoencoderConfig(**config), dtype=dtype))


def wan(dtype: torch.dtype = torch.float64) -> WanAutoencoder:
    config = WanAutoencoderConfig(latent_channels=4, widths=(4, 8), depth=1, halve_time=(True,))
    return randomised(WanAutoencoder(config, dtype=dtype))
