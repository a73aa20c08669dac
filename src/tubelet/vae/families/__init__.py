"""Video autoencoders of the open models, each one file of the blocks of :mod:`tubelet.vae`."""

from tubelet.vae.families.cogvideox_vae import (
    CogVideoXAutoencoder,
    CogVideoXAutoencoderConfig,
    cogvideox_vae_2b,
    cogvideox_vae_5b,
)
from tubelet.vae.families.hunyuan_vae import HunyuanAutoencoder, HunyuanAutoencoderConfig, hunyuan_vae
from tubelet.vae.families.mochi_vae import MochiAutoencoder, MochiAutoencoderConfig, mochi_vae
from tubelet.vae.families.walt_vae import WaltAutoencoder, WaltAutoencoderConfig, walt_vae
from tubelet.vae.families.wan_vae import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2

__all__ = [
    "CogVideoXAutoencoder",
    "CogVideoXAutoencoderConfig",
    "HunyuanAutoencoder",
    "HunyuanAutoencoderConfig",
    "MochiAutoencoder",
    "MochiAutoencoderConfig",
    "WaltAutoencoder",
    "WaltAutoencoderConfig",
    "WanAutoencoder",
    "WanAutoencoderConfig",
    "cogvideox_vae_2b",
    "cogvideox_vae_5b",
    "hunyuan_vae",
    "mochi_vae",
    "walt_vae",
    "wan_vae_2_1",
    "wan_vae_2_2",
]
