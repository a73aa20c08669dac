"""An autoencoder of each family, small, in float64 and with random weights."""

from typing import Any

import torch
from torch import nn

from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, families

_LTX: dict[str, Any] = {"latent_channels": 3, "widths": (4, 8), "depths": (1, 1), "changes": ("conv",)}
_LTX |= {"decoder_widths": (8,), "decoder_depths": (1, 1), "doubles": (True,), "narrows": (1,), "shortcuts": (True,)}
_LTX |= {"noise": (False, False)}
_COSMOS: dict[str, Any] = {"widths": (4,) * 4, "decoder_widths": (4,) * 4, "depth": 1, "attention": (256,)}
_SIZES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "CausalAutoencoder": (
        CausalAutoencoder,
        CausalAutoencoderConfig,
        {"in_channels": 3, "widths": (4, 8), "depths": (1, 1)},
    ),
    "PrincipalAutoencoder": (
        families.PrincipalAutoencoder,
        families.PrincipalAutoencoderConfig,
        {"latent_channels": 4, "widths": (8, 16), "depths": (1, 1)},
    ),
    "WaltAutoencoder": (families.WaltAutoencoder, families.WaltAutoencoderConfig, {"widths": (4, 4, 4, 4), "depth": 1}),
    "WanAutoencoder": (
        families.WanAutoencoder,
        families.WanAutoencoderConfig,
        {"latent_channels": 4, "widths": (4, 8), "depth": 1, "halve_time": (True,)},
    ),
    "HunyuanAutoencoder": (
        families.HunyuanAutoencoder,
        families.HunyuanAutoencoderConfig,
        {"widths": (4, 4, 4, 4), "depth": 1, "groups": 2},
    ),
    "CogVideoXAutoencoder": (
        families.CogVideoXAutoencoder,
        families.CogVideoXAutoencoderConfig,
        {"widths": (4, 4, 4, 4), "depth": 1, "groups": 2},
    ),
    "MochiAutoencoder": (
        families.MochiAutoencoder,
        families.MochiAutoencoderConfig,
        {
            "widths": (32, 32),
            "decoder_widths": (32, 64),
            "temporal": (3,),
            "spatial": (2,),
            "depths": (1, 1, 1),
            "attends": (False, True, True),
        },
    ),
    "KLAutoencoder": (
        families.KLAutoencoder,
        families.KLAutoencoderConfig,
        {"widths": (4, 4), "depth": 1, "groups": 2},
    ),
    "SVDAutoencoder": (
        families.SVDAutoencoder,
        families.SVDAutoencoderConfig,
        {"widths": (4, 4), "depth": 1, "groups": 2},
    ),
    "TinyAutoencoder": (
        families.TinyAutoencoder,
        families.TinyAutoencoderConfig,
        {"width": 4, "depths": (1, 1), "decoder_depths": (1, 1)},
    ),
    "DCAutoencoder": (
        families.DCAutoencoder,
        families.DCAutoencoderConfig,
        {
            "latent_channels": 4,
            "widths": (8, 8),
            "depths": (1, 1),
            "decoder_depths": (1, 1),
            "attends": (False, True),
            "head_dim": 4,
        },
    ),
    "LTXAutoencoder": (families.LTXAutoencoder, families.LTXAutoencoderConfig, _LTX),
    "CosmosAutoencoder": (families.CosmosAutoencoder, families.CosmosAutoencoderConfig, _COSMOS),
    "AllegroAutoencoder": (
        families.AllegroAutoencoder,
        families.AllegroAutoencoderConfig,
        {"widths": (4,) * 4, "depth": 1, "groups": 2},
    ),
    "MagvitAutoencoder": (
        families.MagvitAutoencoder,
        families.MagvitAutoencoderConfig,
        {"widths": (4,) * 4, "depth": 1, "groups": 2},
    ),
}
NAMES = tuple(_SIZES)


def small(name: str) -> Any:
    """Weights by their fan-in, so that activations keep their size; gains near 1."""
    make, config, sizes = _SIZES[name]
    vae = make(config(**sizes)).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in vae.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=fan**-0.5 if fan > 1 else 0.4, generator=generator)
    return vae
