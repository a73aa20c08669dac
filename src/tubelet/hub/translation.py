"""A checkpoint in one form as tensors of another, each computed when it is asked for.

What a family says about names and configs is applied to tensors on the meta device first, which tells all shapes and
dtypes and finds every misfit before a number is read.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tubelet.hub.configs import to_dict
from tubelet.hub.keys import Family, Shapes
from tubelet.hub.tensors import Tensors
from tubelet.hub.weights import gather, listed, narrowed

__all__: list[str] = []

_MISREAD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What a value of another type or size can raise where it is used."""


def to_ours(
    family: Family,
    where: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    dtype: torch.dtype | None = None,
    ours: Any = None,
) -> tuple[nn.Module, Tensors]:
    """Our model on the meta device and the tensors that belong into it.

    ``dtype`` is that of floating-point tensors, float32 islands aside; ``where`` names the file in errors. ``ours`` is
    our config, where it is known; otherwise theirs is read.

    Raises:
        ValueError: a config that makes another model, or tensors that do not fit, in the file's names.
    """
    tensors = _own(family, tensors)
    if ours is None:
        ours = _read(family, where, config, tensors.shapes)
    keys, make = family.keys(ours), cast(Any, family.model)
    known = {name: like for name, like in tensors.like.items() if not keys.ignores(name)}
    empty: nn.Module = make(ours, device="meta")
    found, _ = keys.groups(known, "theirs")
    tables = [group for group in found if not group.ours]
    _check(where, family, keys.to_theirs(gather(empty)), known, {name for table in tables for name in table.theirs})
    groups = {name: group for group in found for name in group.ours}

    def read(name: str) -> Tensor:
        group = groups[name]
        tensor = group.entry.to_ours(*map(tensors.read, group.theirs))[group.ours.index(name)]
        return narrowed(family.stays_wide, name, tensor, dtype)

    like = keys.to_ours(known)
    for table in tables:
        numbers = [*map(tensors.read, table.theirs)]
        if not any(tensor.is_meta for tensor in numbers):
            table.entry.to_ours(*numbers)
    return empty, Tensors({name: narrowed(family.stays_wide, name, like[name], dtype) for name in gather(empty)}, read)


def _read(family: Family, where: str, config: Mapping[str, Any], shapes: Shapes) -> Any:
    """Our config from theirs, of the types that it is annotated with.

    A value of another type may fail anywhere; the keys without which the config can be read are those to blame.
    """

    def attempt(given: Mapping[str, Any]) -> Any:
        ours = family.read_config(family.complete(given, shapes))
        to_dict(ours)  # of the annotated types, or an error
        return ours

    def fails(given: Mapping[str, Any]) -> bool:
        try:
            attempt(given)
        except _MISREAD:
            return True
        return False

    try:
        return attempt(config)
    except _MISREAD as error:
        blamed = [key for key in config if not fails({k: v for k, v in config.items() if k != key})]
        values = ", ".join(f"{key}={config[key]!r}" for key in blamed if key not in str(error))
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{error}{values and f'; its config says {values}'}") from error


def to_theirs(family: Family, config: Any, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Their config and their tensors.

    Raises:
        ValueError: a config that their class cannot have.
    """
    keys = family.keys(config)
    written = family.write_config(config)
    if family.peer and "architectures" not in written:  # transformers' key for the same
        written = {"_class_name": family.peer} | written
    groups = {name: group for group in keys.groups(tensors.like, "ours")[0] for name in group.theirs}

    def read(name: str) -> Tensor:
        group = groups[name]
        return group.entry.to_theirs(*map(tensors.read, group.ours))[group.theirs.index(name)].contiguous()

    return written, Tensors(keys.to_theirs(tensors.like), read)


def recast(tensors: Tensors, dtype: torch.dtype | None, stays_wide: Callable[[str], bool]) -> Tensors:
    """Tensors of ours in another dtype, but for the float32 islands that ``stays_wide`` names."""
    like = {name: narrowed(stays_wide, name, tensor, dtype) for name, tensor in tensors.like.items()}
    return Tensors(like, lambda name: narrowed(stays_wide, name, tensors.read(name), dtype))


def _own(family: Family, tensors: Tensors) -> Tensors:
    """The tensors of the model alone, without a known prefix of all their names, and under the names of today."""
    own = [name for name in tensors.like if not name.startswith(family.others)]
    prefix = next((prefix for prefix in family.prefixes if all(name.startswith(prefix) for name in own)), "")
    names = {_of_today(family, name.removeprefix(prefix)): name for name in own}
    return Tensors({today: tensors.like[name] for today, name in names.items()}, lambda name: tensors.read(names[name]))


def _of_today(family: Family, name: str) -> str:
    for then, now in family.older:
        name = name.replace(then, now)
    return name


def _check(
    where: str, family: Family, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tables: Collection[str]
) -> None:
    """One error in the file's names for all that does not fit; the shapes of ``tables`` others judge."""
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    faults = [f"missing {name} {wanted[name]}" for name in wanted if name not in shapes]
    faults += [f"unexpected {name} {shapes[name]}" for name in shapes if name not in wanted]
    both = [name for name in wanted if name in shapes and name not in tables]
    faults += [f"{name} is {shapes[name]}, expected {wanted[name]}" for name in both if shapes[name] != wanted[name]]
    numbers = [(name, found[name].dtype) for name in both if expected[name].is_floating_point()]
    faults += [f"{name} is {dtype}, expected floating-point" for name, dtype in numbers if not dtype.is_floating_point]
    if faults:
        model = family.peer or family.model.__name__
        raise ValueError(f"{where}: its tensors do not fit {model} in {listed(faults)}")
