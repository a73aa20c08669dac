"""Which autoencoder a command is to make: by the name of a preset, or by a file in the form of a saved config."""

import json
from difflib import get_close_matches
from inspect import isclass, isfunction, signature
from pathlib import Path
from typing import Any

from torch import nn

from tubelet.files import parsing

__all__ = ["autoencoder"]


def autoencoder(text: str) -> nn.Module:
    """A fresh autoencoder.

    Args:
        text: the function of a config in :mod:`tubelet.vae` or its families, such as ``principal_vae``; or a JSON file
            that names a class of tubelet's and its config, as the ``config.json`` of a saved model does.

    Raises:
        ValueError: no such preset, or a file that describes no autoencoder of tubelet's.

    Example:
        >>> type(autoencoder("digits")).__name__
        'CausalAutoencoder'
    """
    return _described(Path(text)) if Path(text).suffix == ".json" else _preset(text)


def _described(path: Path) -> nn.Module:
    from tubelet.hub import from_dict
    from tubelet.hub.weights import config_type, resolve

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with parsing(path):
        description = json.loads(path.read_text(encoding="utf-8"))
        named, values = description["_class"], description["config"]
        cls = resolve(named)
        if not hasattr(cls, "encode"):
            raise ValueError(f"{path} names {named}, which is no autoencoder")
        try:
            config = from_dict(config_type(cls), values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        made: Any = cls
        model: nn.Module = made(config)
        return model


def _preset(name: str) -> nn.Module:
    from tubelet import vae
    from tubelet.hub.weights import config_type
    from tubelet.vae import families

    named = {key: getattr(module, key) for module in (vae, families) for key in module.__all__}
    classes = (cls for cls in named.values() if isclass(cls) and issubclass(cls, nn.Module) and hasattr(cls, "encode"))
    makers: dict[Any, Any] = {config_type(cls): cls for cls in classes if cls is not vae.VideoAutoencoder}
    presets = {
        key: made
        for key, value in named.items()
        if isfunction(value) and not signature(value).parameters and type(made := value()) in makers
    }
    if name not in presets:
        near = get_close_matches(name, presets, 5, 0.5) or presets
        raise ValueError(f"no autoencoder is called {name}; there are {', '.join(near)}")
    model: nn.Module = makers[type(presets[name])](presets[name])
    return model
