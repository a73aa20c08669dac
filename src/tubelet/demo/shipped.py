"""The checkpoint that ships with the package: an autoencoder, a text encoder and a denoiser in one safetensors file.

``tubelet demo --full`` made it; the JSON beside it records how: command, plan, versions and metrics.
"""

from importlib.resources import as_file, files
from pathlib import Path

import torch

from tubelet import hub
from tubelet.pipeline import TextToVideo

__all__ = ["NAME", "load_model"]

NAME = "drifting-digits"
"""Stem of the shipped files. Example: ``files("tubelet.demo") / f"{NAME}.safetensors"``."""


def load_model(path: Path | None = None) -> TextToVideo:
    """The models of a bundle, in float32; the shipped one where no path is given.

    Raises:
        ValueError: no such file, or it holds something else.

    Example:
        >>> load_model().vae.config.latent_channels
        16
    """
    if path is None:
        with as_file(files("tubelet.demo") / f"{NAME}.safetensors") as shipped:
            return load_model(Path(shipped))
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    return TextToVideo.of(hub.load_bundle(path, dtype=torch.float32)).eval()
