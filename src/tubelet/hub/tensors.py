"""Named tensors that lie in files and are read one at a time, and files of them written a shard at a time.

A checkpoint may be larger than the machine's memory; nothing here holds more than it is asked for. Files are
safetensors or PyTorch's own, of which only tensors are read, never code; either is mapped into memory where possible.
"""

import json
import math
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from tubelet.files import parsing, replacing

__all__: list[str] = []

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
SHARD_SIZE = "2GB"
"""How large a file of weights becomes where nothing else is said, and how much memory writing it takes."""
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


class Tensors(NamedTuple):
    """Tensors by name: what they are like, on the meta device, and how to get one."""

    like: Mapping[str, Tensor]
    read: Callable[[str], Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each."""
        return {name: tuple(tensor.shape) for name, tensor in self.like.items()}


def held(state: Mapping[str, Tensor], device: torch.device | str | None = None) -> Tensors:
    """The tensors of a state dict, each moved to ``device`` when it is read.

    Raises:
        ValueError: what is no tensor, or one without numbers (on meta) for a device where they are needed.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.is_meta and device is not None and torch.device(device).type != "meta":
            raise ValueError(f"{name} is on meta and has no numbers, which {device} needs")
    like = {name: _meta(tensor.shape, tensor.dtype) for name, tensor in state.items()}
    return Tensors(like, lambda name: state[name].detach().to(device))


@contextmanager
def opened(
    paths: Sequence[Path], owners: Mapping[str, str], device: torch.device | str | None = None
) -> Iterator[Tensors]:
    """The tensors of some files, while they are open; ``owners`` says from which file's name each is, if from several.

    Raises:
        ValueError: a tensor is in two files and has no owner, or not in its owner.
    """
    with ExitStack() as stack:
        where: dict[str, tuple[Path, Tensors]] = {}
        for path in paths:
            part = _unpickled(path, device) if path.suffix in _PICKLED else _mapped(path, device, stack)
            for name in part.like:
                if owners.get(name, path.name) != path.name:  # left over from older shards, say
                    continue
                if name in where:
                    raise ValueError(f"{name} is in {where[name][0]} and in {path}, and no index says which counts")
                where[name] = path, part
        for name, file in owners.items():
            if name not in where:
                raise ValueError(f"{name} is in {file} by the index, but {paths[0].with_name(file)} lacks it")
        like = {name: part.like[name] for name, (_, part) in where.items()}
        yield Tensors(like, lambda name: where[name][1].read(name))


def fetch(
    source: str | os.PathLike[str],
    subfolder: str,
    revision: str | None,
    files: Sequence[str] = ("*.safetensors", "*.json"),
) -> Path:
    """The local folder or file; of a repository the files of these patterns are downloaded if need be."""
    if Path(source).exists():
        return Path(source) / subfolder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise FileNotFoundError(f"{source} is neither a folder nor a repository's name 'owner/name'")
    from huggingface_hub import snapshot_download

    inside = f"{subfolder}/" if subfolder else ""
    patterns = [f"{inside}{pattern}" for pattern in files]
    return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns)) / subfolder


def weight_files(folder: Path, stems: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The one weights file, or the shards that the index names; names only, so they stay in the folder.

    Beside them which file's name each tensor has by the index; nothing without one.

    Files are called after one of ``stems``, of which the first that is there counts.
    """
    for stem in stems:
        names, index = [f"{stem}.safetensors"], folder / f"{stem}.safetensors.index.json"
        owners: dict[str, str] = {}
        if index.is_file():
            with parsing(index):
                found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                owners = {name: str(file) for name, file in found.items()}
                names = sorted(set(owners.values()))
        elif not (folder / names[0]).is_file():
            continue
        own = re.compile(re.escape(stem) + r"(-\d+-of-\d+)?\.safetensors")
        for name in names:
            if not own.fullmatch(name) or not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no weights file {name!r}")
        return [folder / name for name in names], owners
    raise FileNotFoundError(f"{folder} holds no weights file {f'{stems[0]}.safetensors'!r}")


def write(
    folder: Path,
    tensors: Tensors,
    stem: str,
    max_shard_size: int | str,
    on_read: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write tensors to ``stem*.safetensors``, with an index where there are several; one shard is held at a time.

    ``on_read`` hears how many of all tensors have been read. Returns the names of the weights files.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    _check_shard_size(max_shard_size)
    pattern = stem + "{suffix}.safetensors"
    like = dict(tensors.like)
    plan = split_torch_state_dict_into_shards(like, filename_pattern=pattern, max_shard_size=max_shard_size)
    done = 0
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name in names:
            shard[name] = tensors.read(name).contiguous()
            on_read(done := done + 1, len(like))
        with replacing(folder / file) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return list(plan.filename_to_tensors)


def _check_shard_size(size: Any) -> None:
    """Refuse what is neither a positive number of bytes nor a text of one."""
    if isinstance(size, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?) *[KMGTkmgt][Bb]", size.strip())):
        size = math.ceil(float(match[1]))
    if type(size) is not int or size < 1:
        raise ValueError(f"max_shard_size must be a positive number of bytes or a text such as '500MB', got {size!r}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A file of JSON, whole or absent."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder under another name to fill; leaving the block renames it to ``directory``, which must not exist."""
    target = Path(directory).resolve()
    if target.exists():
        raise FileExistsError(f"{directory} exists already, and nothing is overwritten")
    temporary = target.with_name(f".tmp-{uuid4().hex[:8]}-{target.name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _mapped(path: Path, device: torch.device | str | None, stack: ExitStack) -> Tensors:
    """A safetensors file, left open on ``stack``."""
    from safetensors import safe_open

    on_meta = torch.device(device or "cpu").type == "meta"  # shapes alone, which their reader does not offer
    with parsing(path):
        file = stack.enter_context(safe_open(path, "pt", device="cpu" if on_meta else str(device or "cpu")))
        like = {name: _like(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    return Tensors(like, like.__getitem__ if on_meta else file.get_tensor)


def _like(path: Path, name: str, entry: Any) -> Tensor:
    if (kind := entry.get_dtype()) not in _DTYPES:
        raise ValueError(f"{path}: {name} is of type {kind}, known are {', '.join(_DTYPES)}")
    return _meta(entry.get_shape(), _DTYPES[kind])


def _unpickled(path: Path, device: torch.device | str | None) -> Tensors:
    """A file of PyTorch's: a mapping of tensors, or a mapping that holds one such."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no file of tensors alone that PyTorch can read: {reason}") from error
    states = {"": loaded, **(loaded if isinstance(loaded, Mapping) else {})}
    found = {name: state for name, state in states.items() if _holds_tensors(state)}
    if len(found) != 1:
        kind = f"keys {list(loaded)}" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise ValueError(f"{path} must hold one mapping of tensors, got {kind}, of which {list(found)} are such")
    return held(dict(next(iter(found.values()))), device)


def _holds_tensors(state: Any) -> bool:
    return isinstance(state, Mapping) and bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
