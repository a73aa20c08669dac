"""From a model to named tensors and back: what files and bundles share.

Tied parameters are stored once and tied again. A model is first built on the meta device, where it costs nothing, and
compared with the file's names and shapes; only then are tensors read, one at a time, straight to their device and dtype
and put in the model's place. Buffers that are not stored need the real constructor, which then runs on the target.
"""

import importlib
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tubelet.hub.configs import from_dict, to_dict
from tubelet.hub.injected import NOTES, arguments, notes, restore
from tubelet.protocols import Pattern

__all__: list[str] = []

FORMAT_VERSION = 1


def describe(model: nn.Module) -> dict[str, Any]:
    """What a file says about a model: its class, the format, the config, and what that cannot hold."""
    config = getattr(model, "config", None)
    if not is_dataclass(config) or isinstance(config, type):
        parts = "; it has parts: use save_bundle(path, model.parts())" if hasattr(model, "parts") else ""
        raise ValueError(f"{type(model).__name__} must have a dataclass instance as .config, got {config!r}{parts}")
    return {
        "_class": _dotted_name(type(model)),
        "format_version": FORMAT_VERSION,
        "config": to_dict(config),
        **notes(model),
    }


def to_json(value: Mapping[str, Any]) -> str:
    """JSON text, or an error that says what JSON cannot hold."""
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must hold finite JSON values only: {error}") from error


def check_dtype(dtype: Any) -> None:
    """Refuse what is no dtype, such as its name, and those in which nothing is computed."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be one of torch's, such as torch.bfloat16, got {dtype!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating-point, got {dtype}, which would round the weights away")
    if dtype.itemsize < 2:
        raise ValueError(f"dtype must be one that layers compute in, such as torch.bfloat16, got {dtype}")


def check_format(description: Any, keys: set[str], where: str) -> None:
    """Refuse another format version, keys that this version does not know, and values of other types.

    Where a config is among the keys, the notes beside it may be.
    """
    if not isinstance(description, dict):
        raise ValueError(f"{where} must describe a model, got {description!r}")
    if description.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{where} has format_version {description.get('format_version')!r}, expected {FORMAT_VERSION}")
    if set(description) - (set(NOTES) if "config" in keys else set()) != keys:
        raise ValueError(f"{where} has keys {sorted(description)}, expected {sorted(keys)}")
    for key, value in description.items():
        if not isinstance(value, kind := {"_class": str, "format_version": int, **NOTES}.get(key, dict)):
            raise ValueError(f"{where} has {value!r} as {key}, expected a {kind.__name__}")


def resolve(name: str) -> type[nn.Module]:
    """The class that a file names, among tubelet's own modules only.

    A file from a stranger may choose among our classes, never import or call other code: the module must lie in
    ``tubelet``, and the class must be an ``nn.Module`` defined there.
    """
    module, _, attribute = name.rpartition(".")
    if module.split(".")[0] != "tubelet":
        raise ValueError(f"the file's class {name!r} is not one of tubelet's; pass cls= to say which class to build")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the file's class {name!r} does not exist in this version of tubelet") from error
    if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("tubelet."):
        return found
    raise ValueError(f"the file's class {name!r} is no nn.Module of tubelet's")


def narrowed(stays_wide: Callable[[str], bool], name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The dtype asked for, float32 or better in the islands; integers keep theirs."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(dtype, torch.float32) if stays_wide(name) else dtype)


def gather(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tied tensor once, under its first name, contiguous."""
    aliases = _aliases(model)
    if "__metadata__" in model.state_dict():
        raise ValueError(f"{type(model).__name__} has a tensor named '__metadata__', a name that the file format keeps")
    return {name: t.detach().contiguous() for name, t in model.state_dict().items() if name not in aliases}


def blueprint(
    cls: type[nn.Module],
    where: str,
    description: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None = None,
    injected: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model that a file describes, on the meta device, after its tensors were compared with the file's shapes."""
    kind = config_type(cls)
    try:
        config = from_dict(kind, description["config"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    make: Any = cls
    more = arguments(where, description, injected or {})
    model: nn.Module = make(config, device="meta", dtype=dtype, **more)
    _check_shapes(model, where, _aliases(model), shapes)
    return model


def build(
    cls: type[nn.Module],
    where: str,
    description: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    pattern: Pattern | Sequence[Pattern] | None = None,
    injected: Mapping[str, Any] | None = None,
    wide: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """A model with the config of ``description`` and the tensors that ``read`` gives, in eval mode.

    ``where`` names the file in errors; ``pattern`` and ``injected`` come instead of what was noted; ``wide`` says of
    which tensors ``dtype`` makes no less than float32.
    """
    check_dtype(dtype)
    model = blueprint(cls, where, description, shapes, dtype, injected)
    config, aliases = cast(Any, model.config), _aliases(model)
    if set(dict(model.named_buffers())) - set(model.state_dict()):
        more = arguments(where, description, injected or {})
        model = cast(Any, cls)(config, device=device, dtype=dtype, **more)
    restore(where, description, model, pattern)
    tensors = {name: _owned(narrowed(wide, name, read(name), dtype)) for name in shapes}
    model.load_state_dict(tensors | {name: tensors[first] for name, first in aliases.items()}, assign=True)
    for name, first in aliases.items():
        _tie(model, name, first)
    return model.eval()


def _dotted_name(cls: type[Any]) -> str:
    """The shortest public path, which outlives a move between files."""
    parts = cls.__module__.split(".")
    for n in range(2, len(parts)):
        if getattr(sys.modules.get(path := ".".join(parts[:n])), cls.__qualname__, None) is cls:
            return f"{path}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def config_type(cls: type[nn.Module]) -> type[Any]:
    """The dataclass that a model is built from."""
    constructor: Any = getattr(cls, "__init__")  # noqa: B009
    kind = typing.get_type_hints(constructor).get("config")
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{cls!r} must annotate its argument config with a dataclass, got {kind!r}")
    return kind


def _aliases(model: nn.Module) -> dict[str, str]:
    """Names of tied tensors, and the first name of each."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (earlier := first.setdefault(id(tensor), name)) != name:
            aliases[name] = earlier
    return aliases


def _check_shapes(
    model: nn.Module, where: str, aliases: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in aliases}
    faults = [f"missing {name} {ours[name]}" for name in ours if name not in shapes]
    faults += [f"unexpected {name} {shapes[name]}" for name in shapes if name not in ours]
    both = [name for name in ours if name in shapes]
    faults += [f"{name} is {shapes[name]}, expected {ours[name]}" for name in both if shapes[name] != ours[name]]
    if faults:
        raise ValueError(f"{where}: its tensors do not fit {type(model).__name__} in {listed(faults)}")


def listed(faults: Sequence[str], most: int = 40) -> str:
    """The end of an error that lists faults, a line each; of very many the first, and how many more."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return f"{len(faults)} places:" + "".join(f"\n  {line}" for line in [*faults[:most], *more])


def _owned(tensor: Tensor) -> Tensor:
    """A copy that owns its memory, not the file's mapping."""
    return tensor.to(tensor.dtype, copy=True)


def _tie(model: nn.Module, name: str, first: str) -> None:
    owner, _, attribute = name.rpartition(".")
    source, _, source_attribute = first.rpartition(".")
    setattr(model.get_submodule(owner), attribute, getattr(model.get_submodule(source), source_attribute))
