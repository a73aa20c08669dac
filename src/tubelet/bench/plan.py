"""What ``tubelet bench attention`` measures: the cross product of shapes, patterns, dtypes and modes, as a value.

Backends are not a part of the product: those of one *group* take turns. A row is one backend in one group.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tubelet.bench.patterns import parse_pattern
from tubelet.bench.shapes import SHAPES, Shape, parse_shape

__all__ = ["CPU_SCALE", "DTYPES", "Cell", "Group", "Plan"]

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
"""The dtypes that can be measured, by name."""

CPU_SCALE = 0.2
"""What a model's grid sides are multiplied by on a CPU, where no scale is asked for."""


@dataclass(frozen=True)
class Group:
    """One problem: the shape as asked for and as run, the batch, the pattern and the dtype.

    Example:
        >>> Group("ltx-512", 1.0, 1, "joint", "float32").shape().tokens
        6144
    """

    asked: str
    scale: float
    batch: int
    pattern: str
    dtype: str

    def shape(self) -> Shape:
        """The shape that runs: the asked one, scaled and batched.

        Example:
            >>> Group("ltx-512", 0.25, 2, "joint", "float32").shape().describe()
            '4x4x6/32x64'
        """
        return parse_shape(self.asked).scaled(self.scale).batched(self.batch)


@dataclass(frozen=True)
class Cell:
    """How a group's problem is run: direction, cache and mode.

    Example:
        >>> Cell("forward", "warm", "eager").backward
        False
    """

    direction: str
    cache: str
    mode: str

    @property
    def backward(self) -> bool:
        """Whether gradients are computed too."""
        return self.direction == "forward+backward"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run is asked for; equal plans on equal machines measure the same.

    Args:
        shapes: names or literals that :func:`tubelet.bench.parse_shape` reads.
        patterns: what :func:`tubelet.bench.parse_pattern` reads.
        backends: names of :func:`tubelet.bench.available`, or "auto" for the dispatcher's choice.
        dtypes: names of :data:`DTYPES`.
        directions: "forward", "forward+backward".
        batches: how many times the samples of a shape occur.
        caches: "warm" runs a call just before it is timed, "cold" empties the caches.
        modes: "eager", or "graph" for a CUDA graph.
        device: "cpu", "cuda", "cuda:1"...
        scale: factor of the sides of every grid; None leaves literals and mixtures as they are, and models too, except
            on a CPU, where these are scaled by :data:`CPU_SCALE` to finish at all.
        rounds: samples of a row at most.
        budget: seconds that a group's rounds may take; fewer rounds, at least 3, are run where they would take longer.
        seed: of inputs and checked rows.
        check_rows: query rows compared with float64 at most.

    Raises:
        ValueError: an unknown shape, pattern, dtype, direction, cache or mode, a graph on another device than CUDA, or
            a number out of its range.

    Example:
        >>> plan = Plan(shapes=("1x4x4/2x8",), patterns=("joint",), backends=("sdpa", "reference"))
        >>> len(list(plan.groups())), len(list(plan.cells()))
        (1, 1)
    """

    shapes: tuple[str, ...]
    patterns: tuple[str, ...]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    directions: tuple[str, ...] = ("forward",)
    batches: tuple[int, ...] = (1,)
    caches: tuple[str, ...] = ("warm",)
    modes: tuple[str, ...] = ("eager",)
    device: str = "cpu"
    scale: float | None = None
    rounds: int = 20
    budget: float = 30.0
    seed: int = 0
    check_rows: int = 256

    def __post_init__(self) -> None:
        for name in ("shapes", "patterns", "backends", "dtypes", "directions", "batches", "caches", "modes"):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) != len(chosen):
                raise ValueError(f"{name} must name one or more, each once, got {chosen}")
        for text in self.shapes:
            parse_shape(text)
        for text in self.patterns:
            parse_pattern(text)
        _among("dtypes", self.dtypes, DTYPES)
        _among("directions", self.directions, ("forward", "forward+backward"))
        _among("caches", self.caches, ("warm", "cold"))
        _among("modes", self.modes, ("eager", "graph"))
        if "graph" in self.modes and torch.device(self.device).type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device, got device={self.device!r}")
        for name, least in (("scale", 0.0), ("budget", 0.0), ("rounds", 1), ("check_rows", 1)):
            value = getattr(self, name)
            if value is not None and (not least <= value < float("inf") or value == 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if min(self.batches) < 1:
            raise ValueError(f"batches must be at least 1, got {self.batches}")

    def groups(self) -> Iterator[Group]:
        """The problems, in order.

        Example:
            >>> [g.dtype for g in Plan(shapes=("1x1x2/1x8",), patterns=("joint",), backends=("sdpa",)).groups()]
            ['float32']
        """
        for shape, batch, pattern, dtype in itertools.product(self.shapes, self.batches, self.patterns, self.dtypes):
            yield Group(shape, self._scale(shape), batch, pattern, dtype)

    def cells(self) -> Iterator[Cell]:
        """How each problem is run, in order.

        Example:
            >>> [c.cache for c in Plan(shapes=("1x1x2/1x8",), patterns=("joint",), backends=("sdpa",)).cells()]
            ['warm']
        """
        for direction, cache, mode in itertools.product(self.directions, self.caches, self.modes):
            yield Cell(direction, cache, mode)

    def _scale(self, shape: str) -> float:
        if self.scale is not None:
            return self.scale
        return CPU_SCALE if shape in SHAPES and torch.device(self.device).type == "cpu" else 1.0

    def fixed(self) -> dict[str, Any]:
        """The settings that rows of one file must share: a resumed run with others is refused.

        Example:
            >>> sorted(Plan(shapes=("1x1x2/1x8",), patterns=("joint",), backends=("sdpa",)).fixed())
            ['budget', 'check_rows', 'device', 'rounds', 'scale', 'seed']
        """
        return {name: getattr(self, name) for name in ("device", "scale", "rounds", "budget", "seed", "check_rows")}


def _among(name: str, chosen: tuple[str, ...], known: Any) -> None:
    for one in chosen:
        if one not in known:
            raise ValueError(f"{name} holds {one!r}, which is none of {', '.join(known)}")
