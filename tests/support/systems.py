"""A tiny text-to-video system of random weights, the zero-initialised ones included."""

import torch

from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.pipeline import TextToVideo
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

WORDS = ("a", "down", "seven", "two", "up")


def tiny_system(patch: tuple[int, int, int] = (1, 1, 1)) -> TextToVideo:
    """With latent statistics that matter, in evaluation mode; the same weights at each call."""
    generator = torch.Generator().manual_seed(1)
    vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1)))
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=8, patch=patch))
    made = TextToVideo(vae, WordEncoder(WordEncoderConfig(words=WORDS, dim=8)), dit).eval()
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.vae.set_latent_stats(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    return made
