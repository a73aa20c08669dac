"""The same weights under other names: a table of entries, read in both directions.

An adapter to another project's checkpoints is a :class:`Family`: the model's class, two functions for the configs, and
a :class:`KeyMap` whose entries say which of our tensors hold the numbers of which of theirs. A ``*`` in a name stands
for a number, such as that of a block, and is the same on both sides. Where more than the name differs, an entry carries
the change and its inverse; several tensors may become one and one several.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Entry", "Family", "KeyMap", "fused", "renamed"]

Side = Literal["ours", "theirs"]
Change = Callable[..., Sequence[Tensor]]
Shapes = Mapping[str, tuple[int, ...]]


def _unchanged(*tensors: Tensor) -> Sequence[Tensor]:
    return tensors


def _as_it_is(config: Mapping[str, Any], shapes: Shapes) -> Mapping[str, Any]:
    return config


@dataclass(frozen=True)
class Entry:
    """Tensors of ours and of theirs that hold the same numbers.

    ``to_ours`` takes the tensors of ``theirs`` in order and returns those of ``ours``; ``to_theirs`` is its inverse. An
    entry without ``ours`` writes what follows from the config, such as a table of fixed positions; its ``to_ours``
    returns nothing, or refuses what it reads, whose shape it alone judges.

    Example:
        >>> entry = Entry(("*.q", "*.k"), ("*.qk",), lambda qk: qk.chunk(2), lambda q, k: [torch.cat([q, k])])
        >>> sorted(KeyMap((entry,)).to_ours({"3.qk": torch.zeros(4)}))
        ['3.k', '3.q']
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Change = field(default_factory=lambda: _unchanged)
    to_theirs: Change = field(default_factory=lambda: _unchanged)


def renamed(ours: str, theirs: str, leaves: Sequence[str] = ("weight", "bias")) -> tuple[Entry, ...]:
    """Entries for the parameters of one module that only has another name.

    Example:
        >>> [entry.theirs for entry in renamed("up", "linear_1")]
        [('linear_1.weight',), ('linear_1.bias',)]
    """
    return tuple(Entry((f"{ours}.{leaf}",), (f"{theirs}.{leaf}",)) for leaf in leaves)


def fused(ours: Sequence[str], theirs: str, leaves: Sequence[str] = ("weight", "bias")) -> tuple[Entry, ...]:
    """Entries for the parameters of modules of ours that are one of theirs, in equal parts one after the other.

    Example:
        >>> fused(["q", "k", "v"], "qkv")[1].ours
        ('q.bias', 'k.bias', 'v.bias')
    """

    def entry(leaf: str) -> Entry:
        names = tuple(f"{name}.{leaf}" for name in ours)
        return Entry(names, (f"{theirs}.{leaf}",), lambda x: x.chunk(len(names)), lambda *parts: [torch.cat(parts)])

    return tuple(map(entry, leaves))


class Group(NamedTuple):
    """One entry with its stars filled in."""

    entry: Entry
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@dataclass(frozen=True)
class KeyMap:
    """All entries of a family; ``ignored`` are names of theirs that no model of theirs reads either.

    Example:
        >>> keys = KeyMap(renamed("blocks.*.up", "layers.*.fc1", ["weight"]))
        >>> keys.to_theirs({"blocks.7.up.weight": torch.ones(2)})
        {'layers.7.fc1.weight': tensor([1., 1.])}
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under our names.

        Raises:
            ValueError: names that no entry knows, or only some of the tensors that make one of ours.

        Example:
            >>> KeyMap(renamed("up", "fc1", ["weight"])).to_ours({"fc1.weight": torch.ones(1)})
            {'up.weight': tensor([1.])}
        """
        return self._translate(state, "theirs")

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under their names.

        Raises:
            ValueError: names that no entry knows, or only some of the tensors that make one of theirs.

        Example:
            >>> KeyMap(renamed("up", "fc1", ["weight"])).to_theirs({"up.weight": torch.ones(1)})
            {'fc1.weight': tensor([1.])}
        """
        return self._translate(state, "ours")

    def ignores(self, name: str) -> bool:
        """Whether a name of theirs is one that nothing reads.

        Example:
            >>> KeyMap((), ignored=("old.*.bias",)).ignores("old.3.bias")
            True
        """
        return any(_pattern(text).fullmatch(name) for text in self.ignored)

    def groups(self, names: Iterable[str], side: Side) -> tuple[list[Group], list[str]]:
        """Which of the names of one side belong together, and which no entry knows; with ours go the fixed tables.

        Example:
            >>> groups, unknown = KeyMap(renamed("up", "fc1")).groups(["fc1.bias", "fc9.bias"], "theirs")
            >>> groups[0].ours, unknown
            (('up.bias',), ['fc9.bias'])
        """
        found: dict[tuple[Entry, tuple[str, ...]], Group] = {}
        unknown = []
        for name in names:
            if side == "theirs" and self.ignores(name):
                continue
            for pattern, entry in self._patterns[side]:
                if match := pattern.fullmatch(name):
                    stars = match.groups()
                    filled = (tuple(_fill(text, stars) for text in texts) for texts in (entry.ours, entry.theirs))
                    found.setdefault((entry, stars), Group(entry, *filled))
                    break
            else:
                unknown.append(name)
        tables = [Group(entry, (), entry.theirs) for entry in self.entries if side == "ours" and not entry.ours]
        return [*found.values(), *tables], unknown

    @cached_property
    def _patterns(self) -> dict[Side, list[tuple[re.Pattern[str], Entry]]]:
        return {
            "ours": [(_pattern(text), entry) for entry in self.entries for text in entry.ours],
            "theirs": [(_pattern(text), entry) for entry in self.entries for text in entry.theirs],
        }

    def _translate(self, state: Mapping[str, Tensor], side: Side) -> dict[str, Tensor]:
        groups, unknown = self.groups(state, side)
        given = [group.ours if side == "ours" else group.theirs for group in groups]
        missing = [name for names in given for name in names if name not in state]
        if unknown or missing:
            raise ValueError(f"the names do not fit: unknown {unknown}, missing {missing}")
        out: dict[str, Tensor] = {}
        for group, names in zip(groups, given, strict=True):
            change = group.entry.to_theirs if side == "ours" else group.entry.to_ours
            tensors = change(*(state[name] for name in names))
            out.update(zip(group.theirs if side == "ours" else group.ours, tensors, strict=True))
        return out


@dataclass(frozen=True)
class Family:
    """A model of ours and the class of another project that computes the same.

    ``keys`` makes the map for a config, ``read_config`` and ``write_config`` turn their config into ours and back, and
    ``wide`` names those of our tensors that stay in float32 when a model is loaded in a narrower dtype.

    ``form`` says whose names these are: ``"diffusers"`` or ``"original"``, the repository of the model's authors; a
    model known in both has a family for each. ``peer`` is empty where their files name no class. Where their config
    says too little, ``complete`` takes it (it may be empty) with the shapes of all tensors, and returns the config that
    ``read_config`` reads. ``prefixes`` are what may stand before every name of a file, such as
    ``"model.diffusion_model."``, and names that begin with one of ``others`` belong to other models in the same file.
    ``older`` are parts of names in files of older versions, each with the part that stands there now.
    ``stem`` is what their files of weights are called. A class of ours that is several of theirs is written by the
    first of its families; the others have a name of their own, ``known_as``.

    Example:
        >>> from tubelet.hub.wan import WAN
        >>> WAN.peer, WAN.model.__name__, WAN.form
        ('WanTransformer3DModel', 'WanTransformer', 'diffusers')
    """

    model: type[nn.Module]
    peer: str
    keys: Callable[[Any], KeyMap]
    read_config: Callable[[Mapping[str, Any]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    wide: tuple[str, ...] = ()
    form: str = "diffusers"
    complete: Callable[[Mapping[str, Any], Shapes], Mapping[str, Any]] = field(default_factory=lambda: _as_it_is)
    prefixes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    stem: str = "diffusion_pytorch_model"
    known_as: str = ""

    @property
    def name(self) -> str:
        """The architecture's short name, that of its file below :mod:`tubelet.models` or else ``known_as``."""
        return self.known_as or self.model.__module__.rpartition(".")[2]

    def stays_wide(self, name: str) -> bool:
        """Whether one of our tensors is part of a float32 island.

        Example:
            >>> from tubelet.hub.wan import WAN
            >>> WAN.stays_wide("time.up.weight"), WAN.stays_wide("embed.weight")
            (True, False)
        """
        return any(_pattern(text).fullmatch(name) for text in self.wide)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\*", r"(\d+)"))


def _fill(text: str, stars: tuple[str, ...]) -> str:
    """The name with its stars replaced in turn."""
    parts = text.split("*")
    return "".join(part + star for part, star in zip(parts, (*stars, ""), strict=True))
