"""One model in one folder: ``config.json`` and ``model*.safetensors``, as the Hugging Face Hub expects them.

``config.json`` holds ``_class`` (the dotted name), ``format_version``, ``config`` (the dataclass), ``metadata``
(yours) and, where there are such, ``patterns`` of attention and ``injected`` functions. Large models are split into
shards with an index. The folder is written beside its place and renamed, so a crash leaves the old model or the new
one, never a mixture.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload
from uuid import uuid4

import torch
from torch import nn

from tubelet.files import parsing
from tubelet.hub.foreign import islands
from tubelet.hub.tensors import SHARD_SIZE, fetch, held, opened, weight_files, write
from tubelet.hub.weights import build, check_dtype, check_format, describe, gather, resolve, to_json
from tubelet.protocols import Pattern

__all__ = ["load", "read_metadata", "save"]

M = TypeVar("M", bound=nn.Module)
_CONFIG, STEM = "config.json", "model"
_OURS = re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def save(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = SHARD_SIZE,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to a folder that :func:`load` reads.

    The patterns of its attention are noted, and functions of tubelet's that it was made with (``conditioning`` of a
    :class:`tubelet.models.DiT`); of your own the file notes that there were some, and :func:`load` asks for them.

    Args:
        model: has a dataclass ``config`` and is built by ``Cls(config, device=, dtype=)``. Weights keep their dtypes.
        directory: made, or replaced if it holds a saved model and nothing else.
        max_shard_size: bytes, or a text such as ``"500MB"``.
        metadata: JSON values to note beside the config (a seed, versions, metrics).

    Returns:
        ``directory``.

    Raises:
        ValueError: no dataclass config, a config or metadata that JSON cannot hold, or a folder with other files in it.

    Example:
        >>> import tempfile
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> folder = save(encoder, Path(tempfile.mkdtemp()) / "encoder", metadata={"seed": 0})
        >>> sorted(file.name for file in folder.iterdir())
        ['config.json', 'model.safetensors']
    """
    text = to_json({**describe(model), "metadata": dict(metadata or {})})
    with _replacing_folder(directory) as folder:
        write(folder, held(gather(model)), STEM, max_shard_size)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
    return Path(directory)


@overload
def load(
    source: str | os.PathLike[str],
    cls: type[M],
    *,
    subfolder: str = "",
    pattern: Pattern | Sequence[Pattern] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **injected: Any,
) -> M: ...


@overload
def load(
    source: str | os.PathLike[str],
    cls: None = None,
    *,
    subfolder: str = "",
    pattern: Pattern | Sequence[Pattern] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **injected: Any,
) -> nn.Module: ...


def load(
    source: str | os.PathLike[str],
    cls: type[nn.Module] | None = None,
    *,
    subfolder: str = "",
    pattern: Pattern | Sequence[Pattern] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **injected: Any,
) -> nn.Module:
    """Read a model from a folder or from the Hugging Face Hub.

    Args:
        source: a folder that :func:`save` wrote, or else a repository ``"owner/name"``, of which only safetensors and
            JSON files are fetched.
        cls: the class to build. None: the class that the file names, which must be one of tubelet's, since a
            stranger's file must not choose what code runs.
        subfolder: where in ``source`` the model lies.
        pattern: what its attention attends, or one for each of its modules (:func:`tubelet.attention.set_pattern`),
            instead of what was saved. A pattern of your own, which a file cannot hold, has to be given here.
        device: where the weights go; the CPU by default.
        dtype: of floating-point weights, float32 islands aside; None keeps the file's.
        revision: branch, tag or commit of a repository.
        **injected: what else the class is made with, such as ``conditioning=`` of a DiT, instead of what was saved.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: no such folder, and not the form of a repository's name; or a folder without a model.
        ValueError: another format, a damaged file, a config that does not fit, or tensors that do not: one error lists
            all that are missing, unexpected or of another shape; or it was saved with a pattern or a function that is
            not tubelet's, and none is given.

    Example:
        >>> import tempfile
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> folder = save(encoder, Path(tempfile.mkdtemp()) / "encoder")
        >>> loaded = load(folder)
        >>> type(loaded).__name__, torch.equal(loaded.embed.weight, encoder.embed.weight)
        ('WordEncoder', True)
    """
    check_dtype(dtype)
    folder = fetch(source, subfolder, revision)
    description = read_description(folder)
    cls = resolve(description["_class"]) if cls is None else cls
    with opened(*weight_files(folder, (STEM,)), device) as tensors:
        own = (tensors.shapes, tensors.read, device, dtype, pattern, injected)
        return build(cls, str(folder), description, *own, wide=islands(cls))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was noted when a folder or a bundle was saved.

    Args:
        path: a folder of :func:`save` or a file of :func:`save_bundle`.

    Returns:
        The ``metadata`` given then.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it holds no model of this format.

    Example:
        >>> import tempfile
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> read_metadata(save(encoder, Path(tempfile.mkdtemp()) / "encoder", metadata={"seed": 3}))
        {'seed': 3}
    """
    from tubelet.hub.bundles import read_header

    header = read_description(Path(path)) if Path(path).is_dir() else read_header(path)
    metadata: dict[str, Any] = header["metadata"]
    return metadata


def read_description(folder: Path) -> dict[str, Any]:
    """What a folder says about its model: class, config and metadata, checked."""
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {_CONFIG}")
    with parsing(folder / _CONFIG):
        description = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if isinstance(description, dict) and "_class" not in description:
        named = description.get("_class_name", "no class")
        file = folder / _CONFIG
        raise ValueError(
            f"{file} names {named}, so it is not of tubelet's own form: load_diffusers or load_original reads it"
        )
    check_format(description, {"_class", "format_version", "config", "metadata"}, str(folder / _CONFIG))
    checked: dict[str, Any] = description
    return checked


@contextmanager
def _replacing_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside ``directory`` to fill; leaving the block puts it in that place."""
    target = Path(directory).resolve()
    if target.exists():
        foreign = sorted(f.name for f in target.iterdir() if not _OURS.fullmatch(f.name))
        if foreign:
            raise ValueError(f"directory {directory} would be replaced, but it also holds {foreign}")
    temporary = target.with_name(f".tmp-{uuid4().hex[:8]}-{target.name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(new: Path, target: Path) -> None:
    """Rename; an older model steps aside first, and comes back if the new one cannot take its place."""
    if not target.exists():
        os.rename(new, target)
        return
    old = target.with_name(f".old-{uuid4().hex[:8]}-{target.name}")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)
