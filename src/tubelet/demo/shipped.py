"""The checkpoint that ships with the package: an autoencoder, a text encoder and a denoiser in one safetensors file.

``tubelet demo --full`` made it; the JSON beside it records how: command, plan, versions and metrics.
"""

from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tubelet import hub
from tubelet.pipeline import TextToVideo

__all__ = ["NAME", "load_model"]

NAME = "drifting-digits"
"""Stem of the shipped files. Example: ``files("tubelet.demo") / f"{NAME}.safetensors"``."""


def load_model(path: Path | None = None) -> TextToVideo:
    """The models of a bundle, in float32; the shipped one where no path is given.

    Raises:
        ValueError: no such file, a folder, a training's resume state, or something else.

    Example:
        >>> load_model().vae.config.latent_channels
        16
    """
    if path is None:
        with as_file(files("tubelet.demo") / f"{NAME}.safetensors") as shipped:
            return load_model(Path(shipped))
    if path.is_dir():
        found = [file.name for file in sorted(path.glob("*.safetensors")) if not file.name.endswith(".run.safetensors")]
        raise ValueError(
            f"{path} is a folder: name the checkpoint in it{', such as ' * bool(found)}{''.join(found[:1])}"
        )
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    _check_kind(path)
    return TextToVideo.of(hub.load_bundle(path, dtype=torch.float32)).eval()


def _check_kind(path: Path) -> None:
    """Refuse, by name, the safetensors files that lie beside a checkpoint or come from elsewhere."""
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if "tubelet_checkpoint" in keys:
        raise ValueError(
            f"{path} is the state of a training that --resume goes on with, no model: a finished one leaves "
            "model.safetensors (tubelet train) or checkpoint.safetensors (tubelet demo) beside it"
        )
    if "tubelet_bundle" not in keys:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of tubelet demo or tubelet train")
