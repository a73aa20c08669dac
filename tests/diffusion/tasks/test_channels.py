"""Channels of image to video: those of diffusers' I2VGen-XL."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import I2VGenXLPipeline

from tubelet.diffusion.tasks import image_channels


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_the_channels_of_i2vgen_xl(frames: int) -> None:
    latents = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: latents))
    vae = SimpleNamespace(encode=lambda image: encoded, config=SimpleNamespace(scaling_factor=1.0))
    pipe = SimpleNamespace(vae=vae, do_classifier_free_guidance=False)
    expected = I2VGenXLPipeline.prepare_image_latents(pipe, latents, "cpu", frames, 1)[0]
    torch.testing.assert_close(image_channels(latents.transpose(0, 1), frames), expected)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="image must be one frame of at least one, got 2 and frames=5"):
        image_channels(torch.zeros(1, 2, 4, 4), 5)
    with pytest.raises(ValueError, match="got 1 and frames=0"):
        image_channels(torch.zeros(1, 1, 4, 4), 0)
