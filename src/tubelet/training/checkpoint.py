"""Checkpoints of a whole run in one safetensors file: never pickle, never half written.

The state is any nesting of dicts, lists and tuples around tensors, numbers, strings, booleans and None, such as models'
and optimisers' state dicts and generator states. Its tensors become the file's tensors; the rest becomes one JSON tree
in the file's metadata, in which ``{"$tensor": "model/weight"}`` names a tensor, ``{"$tuple": [...]}`` a tuple and
``{"$dict": [[key, value], ...]}`` a dict with keys other than plain strings. Floats come back to the bit.
"""

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tubelet.files import parsing, replacing
from tubelet.training.random import restore_rng_state, rng_state

__all__ = ["Checkpoint", "Stateful", "load_checkpoint", "save_checkpoint"]

FORMAT_VERSION = 1


@runtime_checkable
class Stateful(Protocol):
    """What a :class:`Checkpoint` can hold: models, optimisers, :class:`EMA`, :class:`History` and the like.

    Example:
        >>> part: Stateful = torch.nn.Linear(2, 2)
        >>> sorted(part.state_dict())
        ['bias', 'weight']
    """

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state over."""
        ...


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> Path:
    """Write ``state`` to one file, atomically: a crash leaves the previous file whole.

    Args:
        path: the file, by custom ``*.safetensors``.
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Returns:
        ``path``.

    Raises:
        ValueError: a value of any other type, named by where it stands.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "last.safetensors"
        >>> _ = save_checkpoint(file, {"step": 3, "model": {"weight": torch.ones(2)}})
        >>> load_checkpoint(file)
        {'step': 3, 'model': {'weight': tensor([1., 1.])}}
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _encode(dict(state), "", tensors)
    metadata = {"format": "pt", "tubelet_checkpoint": json.dumps({"format_version": FORMAT_VERSION, "state": tree})}
    with replacing(path) as temporary:
        save_file(_separate(tensors), temporary, metadata=metadata)
    return Path(path)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read back what :func:`save_checkpoint` wrote, types and all.

    Args:
        path: the file.
        device: where the tensors go. Generator states must stay on the CPU, so leave it there to resume a run.

    Returns:
        The nested state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this format, or is damaged.

    Example:
        >>> import tempfile
        >>> file = save_checkpoint(Path(tempfile.mkdtemp()) / "a.safetensors", {"betas": (0.9, 0.95), 7: None})
        >>> load_checkpoint(file)
        {'betas': (0.9, 0.95), 7: None}
    """
    from safetensors import safe_open

    with parsing(path), safe_open(path, "pt", device=str(device)) as file:
        header = json.loads((file.metadata() or {}).get("tubelet_checkpoint", "{}"))
        if header.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} is no checkpoint of format {FORMAT_VERSION}, its format is {header.get('format_version')}"
            )
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state = _decode(header["state"], tensors)
    if not isinstance(state, dict):
        raise ValueError(f"{path} is no checkpoint: its state is a {type(state).__name__}, expected a dict")
    return state


class Checkpoint:
    """One file that holds the named parts of a run and the random state, for exact resume.

    Args:
        path: the file.
        generators: the run's own generators, by name, beside the global ones.
        parts: everything that changes from step to step: models, optimisers, averages, the history.

    Example:
        >>> import tempfile
        >>> model, file = torch.nn.Linear(1, 1), Path(tempfile.mkdtemp()) / "last.safetensors"
        >>> run = Checkpoint(file, model=model)
        >>> run.restore()
        0
        >>> run.save(100)
        >>> Checkpoint(file, model=torch.nn.Linear(1, 1)).restore()
        100
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        generators: Mapping[str, torch.Generator] | None = None,
        /,
        **parts: Stateful,
    ) -> None:
        self.path = Path(path)
        self.generators = dict(generators or {})
        self.parts = parts

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(self.path, {"step": step, "parts": parts, "rng": rng_state(self.generators)})

    def restore(self) -> int:
        """Put every part and generator back; the number of steps done, 0 where there is no file yet.

        Raises:
            ValueError: the file holds other parts than this object, or is no file of :meth:`save`.
        """
        if not self.path.exists():
            return 0
        state = load_checkpoint(self.path)
        if set(state) != {"step", "parts", "rng"}:
            raise ValueError(f"{self.path} holds {list(state)}, not the step, parts and rng of a Checkpoint")
        if set(state["parts"]) != set(self.parts):
            raise ValueError(f"{self.path} holds {sorted(state['parts'])}, but the run has {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        restore_rng_state(state["rng"], self.generators)
        return int(state["step"])


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON tree of ``value``; its tensors go into ``tensors`` under the name of their place."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.dtype in (torch.complex32, torch.complex128):
            raise ValueError(
                f"state at {where!r} is a {value.dtype} tensor of {value.layout}, which a checkpoint cannot hold"
            )
        name = _unused(where, tensors)
        tensors[name] = value.detach()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return _encode_mapping(value, where, tensors)
    if type(value) in (list, tuple):
        items = [_encode(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if type(value) is float and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"state at {where!r} is a {type(value).__name__}, which a checkpoint cannot hold")


def _unused(where: str, taken: Mapping[str, Tensor]) -> str:
    """``where``, with a number behind it if another tensor, or the file format itself, has that name."""
    numbered = (f"{where}#{number}" for number in itertools.count())
    return next(name for name in itertools.chain([where], numbered) if name not in ("", "__metadata__", *taken))


def _encode_mapping(value: Mapping[Any, Any], where: str, tensors: dict[str, Tensor]) -> Any:
    encoded = {k: _encode(v, f"{where}/{k}" if where else str(k), tensors) for k, v in value.items()}
    if all(type(k) is str and not k.startswith("$") for k in encoded):
        return encoded
    return {"$dict": [[_encode(k, f"{where} key", tensors), v] for k, v in encoded.items()]}


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    match tree:
        case {"$tensor": name}:
            return tensors[name]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$dict": pairs}:
            return {_decode(k, tensors): _decode(v, tensors) for k, v in pairs}
        case dict():
            return {k: _decode(v, tensors) for k, v in tree.items()}
        case list():
            return [_decode(item, tensors) for item in tree]
        case _:
            return tree


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors asks: views and ties are written out."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        seen.add(storage.data_ptr())
        separate[name] = tensor.clone() if shared else tensor
    return separate
