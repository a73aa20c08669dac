"""Video autoencoders: causal 3-D convolutions with explicit state, an autoencoder of them, its posterior and losses.

Videos ``(b, c, T, H, W)`` in [-1, 1] and latents ``(b, z, t, h, w)`` with T = 1 + 4k frames for t = 1 + k latent frames
(the factors are configurable); an image is a video of one frame. Nothing is cached in a module: whoever streams a video
carries the state from one call to the next, so any number of streams can share one model.
"""

from tubelet.vae.autoencoder import CausalAutoencoder
from tubelet.vae.blocks import CausalResBlock, ChannelNorm, Downsample, FrameGroups, FrameUngroups, Upsample
from tubelet.vae.causal import CausalConv3d, State
from tubelet.vae.coders import Decoder, Encoder, Stage
from tubelet.vae.config import CausalAutoencoderConfig, digits
from tubelet.vae.losses import kl_loss, reconstruction_loss
from tubelet.vae.posterior import DiagonalGaussian

__all__ = [
    "CausalAutoencoder",
    "CausalAutoencoderConfig",
    "CausalConv3d",
    "CausalResBlock",
    "ChannelNorm",
    "Decoder",
    "DiagonalGaussian",
    "Downsample",
    "Encoder",
    "FrameGroups",
    "FrameUngroups",
    "Stage",
    "State",
    "Upsample",
    "digits",
    "kl_loss",
    "reconstruction_loss",
]
