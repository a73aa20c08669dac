"""Video autoencoders of the open models, each one file of the blocks of :mod:`tubelet.vae`."""

from tubelet.vae.families.walt_vae import WaltAutoencoder, WaltAutoencoderConfig, walt_vae
from tubelet.vae.families.wan_vae import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2

__all__ = [
    "WaltAutoencoder",
    "WaltAutoencoderConfig",
    "WanAutoencoder",
    "WanAutoencoderConfig",
    "walt_vae",
    "wan_vae_2_1",
    "wan_vae_2_2",
]
