"""Video autoencoders of the open models, each one file of the blocks of :mod:`tubelet.vae`."""

from tubelet.vae.families.wan_vae import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2

__all__ = ["WanAutoencoder", "WanAutoencoderConfig", "wan_vae_2_1", "wan_vae_2_2"]
