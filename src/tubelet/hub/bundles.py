"""Several models in one safetensors file, to ship what belongs together: an autoencoder, a DiT and a text encoder.

Tensors are named ``<model>.<tensor>``. The file's metadata has one JSON value, ``tubelet_bundle``, with the format,
each model's class and config, and your own metadata.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.files import parsing, replacing
from tubelet.hub.foreign import islands
from tubelet.hub.tensors import held
from tubelet.hub.translation import recast
from tubelet.hub.weights import FORMAT_VERSION, build, check_dtype, check_format, describe, gather, resolve, to_json
from tubelet.protocols import Pattern

__all__ = ["load_bundle", "save_bundle"]

_KEY = "tubelet_bundle"


def save_bundle(
    path: str | os.PathLike[str],
    models: Mapping[str, nn.Module],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write several models to one file, atomically.

    Args:
        path: the file, by custom ``*.safetensors``.
        models: by name; each has a dataclass ``config`` and is built by ``Cls(config, device=, dtype=)``.
        dtype: to store floating-point weights in, float32 islands aside, for instance ``torch.bfloat16`` for half the
            size; None keeps theirs.
        metadata: JSON values to note in the file (a seed, versions, metrics).

    Returns:
        ``path``.

    Raises:
        ValueError: a name with a dot or without letters, no dataclass config, a ``dtype`` that is not floating-point,
            or what JSON cannot hold.

    Example:
        >>> import tempfile
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> file = save_bundle(Path(tempfile.mkdtemp()) / "all.safetensors", {"text": encoder}, dtype=torch.bfloat16)
        >>> load_bundle(file)["text"].embed.weight.dtype
        torch.bfloat16
    """
    from safetensors.torch import save_file

    if wrong := [name for name in models if not name.isidentifier()]:
        raise ValueError(f"models must be named by identifiers, got {wrong}")
    check_dtype(dtype)
    header = {
        "format_version": FORMAT_VERSION,
        "models": {name: describe(model) for name, model in models.items()},
        "metadata": dict(metadata or {}),
    }
    tensors: dict[str, Tensor] = {}
    for name, model in models.items():
        own = recast(held(gather(model)), dtype, islands(type(model)))
        tensors |= {f"{name}.{key}": own.read(key) for key in own.like}
    text = to_json(header)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _KEY: text})
    return Path(path)


def load_bundle(
    path: str | os.PathLike[str],
    classes: Mapping[str, type[nn.Module]] | None = None,
    *,
    patterns: Mapping[str, Pattern | Sequence[Pattern]] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, nn.Module]:
    """Read every model of a bundle.

    Args:
        path: a file that :func:`save_bundle` wrote.
        classes: the class of each model by name; those left out are the ones the file names, which must be tubelet's.
        patterns: what the attention of a model attends, by the model's name, instead of what was saved, as in
            :func:`tubelet.hub.load`.
        device: where the weights go; the CPU by default.
        dtype: of floating-point weights, float32 islands aside; None keeps the file's.

    Returns:
        The models by name, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, names in ``classes`` or ``patterns`` that the file lacks, a
            model that does not fit its tensors, or one that needs code that is not tubelet's.

    Example:
        >>> import tempfile
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> file = save_bundle(Path(tempfile.mkdtemp()) / "all.safetensors", {"text": encoder})
        >>> list(load_bundle(file))
        ['text']
    """
    from safetensors import safe_open

    header, classes, patterns = read_header(path), classes or {}, patterns or {}
    for argument, named in (("classes", set(classes)), ("patterns", set(patterns))):
        if unknown := sorted(named - set(header["models"])):
            raise ValueError(f"{argument} names {unknown}, but {path} holds {sorted(header['models'])}")
    models: dict[str, nn.Module] = {}
    with safe_open(path, "pt", device=str(device or "cpu")) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, description in header["models"].items():
            check_format(description, {"_class", "format_version", "config"}, f"{path}: {name}")
            cls = classes[name] if name in classes else resolve(description["_class"])
            own = {key.removeprefix(f"{name}."): shape for key, shape in shapes.items() if key.startswith(f"{name}.")}
            more = (own, _reader(file, name), device, dtype, patterns.get(name))
            models[name] = build(cls, f"{path}: {name}", description, *more, wide=islands(cls))
    return models


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON value of a bundle, checked."""
    from safetensors import safe_open

    with parsing(path), safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    check_format(header, {"format_version", "models", "metadata"}, str(path))
    checked: dict[str, Any] = header
    return checked


def _reader(file: Any, name: str) -> Callable[[str], Tensor]:
    def read(key: str) -> Tensor:
        tensor: Tensor = file.get_tensor(f"{name}.{key}")
        return tensor

    return read
