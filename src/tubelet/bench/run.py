"""Measures a plan: gates every backend of a group, times those that pass in turn, and gives a row for each.

A row is a dictionary of JSON values; ``schema.json`` beside this file says which. A row of another status than "ok" has
a reason and no time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from tubelet.bench.device import ceilings
from tubelet.bench.harness import Stopwatch, cache_flusher, interleave, rounds_within, stopwatch, summary
from tubelet.bench.memory import peak_bytes
from tubelet.bench.pairs import flops, moved_bytes
from tubelet.bench.patterns import parse_pattern
from tubelet.bench.plan import DTYPES, Cell, Group, Plan
from tubelet.bench.problems import Problem, Refused, Way, check, make_problem, make_way
from tubelet.bench.registry import available
from tubelet.bench.shapes import parse_shape
from tubelet.protocols import Backend

__all__ = ["key", "measure", "measure_ceilings"]

Row = dict[str, Any]

_SPAN_SECONDS = 0.002
"""Calls shorter than this run several times in one timed span, where the cache is warm."""
_PREPARED_SECONDS = 0.1
"""Calls shorter than this run once untimed before each span, so that a warm cache is their own."""


def measure(plan: Plan, done: Sequence[Row] = (), watch: Stopwatch | None = None) -> Iterator[list[Row]]:
    """The rows of a plan, one list for each group and cell, without those that are ``done``.

    Args:
        plan: what to measure.
        done: rows of an earlier run; the keys of these are left out.
        watch: replaces the device's stopwatch.

    Raises:
        ValueError: a backend's name is unknown.

    Example:
        >>> plan = Plan(shapes=("1x2x2/1x8",), patterns=("joint",), backends=("sdpa",), rounds=3)
        >>> [[row]] = measure(plan)
        >>> row["status"], row["pairs"], len(row["seconds"])
        ('ok', 16, 3)
    """
    ways = _backends(plan)
    finished = {row["key"] for row in done}
    for group in plan.groups():
        problem: Problem | None = None
        for cell in plan.cells():
            todo = {name: each for name, each in ways.items() if key(group, cell, name) not in finished}
            if not todo:
                continue
            problem = problem or _problem(plan, group)
            yield _measure_cell(plan, group, cell, problem, todo, watch)


def measure_ceilings(plan: Plan) -> dict[str, Any]:
    """The device's matrix products in every dtype of the plan, and its copies.

    Example:
        >>> callable(measure_ceilings)
        True
    """
    return ceilings(torch.device(plan.device), [DTYPES[name] for name in plan.dtypes])


def key(group: Group, cell: Cell, backend: str) -> str:
    """What names a row: two rows of one key are measurements of one thing.

    Example:
        >>> key(Group("ltx-512", 0.25, 1, "joint", "float32"), Cell("forward", "warm", "eager"), "sdpa")
        'ltx-512 4x4x6/32x64 b1 joint float32 forward warm eager sdpa'
    """
    run = parse_shape(group.asked).scaled(group.scale).describe()
    shape = group.asked if run == group.asked else f"{group.asked} {run}"
    parts = (shape, f"b{group.batch}", group.pattern, group.dtype, cell.direction, cell.cache, cell.mode)
    return " ".join((*parts, backend))


def _backends(plan: Plan) -> dict[str, Backend]:
    known = available()
    for name in plan.backends:
        if name not in known:
            raise ValueError(f"backend {name!r} is unknown; the backends are {', '.join(known)}")
    return {name: known[name] for name in plan.backends}


def _problem(plan: Plan, group: Group) -> Problem:
    return make_problem(
        group.shape(),
        parse_pattern(group.pattern),
        DTYPES[group.dtype],
        torch.device(plan.device),
        backward="forward+backward" in plan.directions,
        seed=plan.seed,
        check_rows=plan.check_rows,
    )


def _measure_cell(
    plan: Plan,
    group: Group,
    cell: Cell,
    problem: Problem,
    backends: Mapping[str, Backend],
    watch: Stopwatch | None,
) -> list[Row]:
    device = torch.device(plan.device)
    watch = watch or stopwatch(device)
    rows = {name: _row(group, cell, name, problem) for name in backends}
    ways: dict[str, Way] = {}
    memory: dict[str, tuple[int | None, str | None]] = {}
    for name, backend in backends.items():
        try:
            ways[name] = make_way(problem, backend, backward=cell.backward, graph=cell.mode == "graph")
            memory[name] = _peak(ways[name], device, cell)
        except Refused as refused:
            rows[name] |= _refusal(refused)
    if not ways:
        return list(rows.values())
    once = {name: watch(way) for name, way in ways.items()}
    spans = [1 if cell.cache == "cold" else max(1, int(_SPAN_SECONDS / max(t, 1e-7))) for t in once.values()]
    rounds = rounds_within([t * n for t, n in zip(once.values(), spans, strict=True)], plan.budget, plan.rounds)
    before = _before(ways, once, cell, device)
    samples = interleave(list(ways.values()), watch, rounds, spans, before)
    for (name, way), seconds, span in zip(ways.items(), samples, spans, strict=True):
        rows[name] |= _outcome(problem, way, seconds, span, memory[name])
    return list(rows.values())


def _before(
    ways: Mapping[str, Way], once: Mapping[str, float], cell: Cell, device: torch.device
) -> list[Callable[[], Any] | None]:
    if cell.cache == "cold":
        return [cache_flusher(device)] * len(ways)
    return [way if once[name] < _PREPARED_SECONDS else None for name, way in ways.items()]


def _peak(way: Way, device: torch.device, cell: Cell) -> tuple[int | None, str | None]:
    if cell.mode == "graph":
        return None, "a graph's memory is allocated when it is captured; see the eager row"
    return peak_bytes(way.call, device)


def _row(group: Group, cell: Cell, backend: str, problem: Problem) -> Row:
    """A row without an outcome."""
    asked, shape = parse_shape(group.asked), group.shape()
    q = problem.qkv[0]
    return {
        "key": key(group, cell, backend),
        "shape": group.asked,
        "asked": asked.describe(),
        "scale": group.scale,
        "run": asked.scaled(group.scale).describe(),
        "batch": group.batch,
        "tokens": shape.tokens,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "pattern": group.pattern,
        "backend": backend,
        "dtype": group.dtype,
        "direction": cell.direction,
        "cache": cell.cache,
        "mode": cell.mode,
        "pairs": problem.pairs,
        "density": problem.pairs / (shape.heads * sum(n * n for n in problem.layout.lengths)),
        "flops": flops(problem.pairs, shape.head_dim, cell.backward),
        "bytes": moved_bytes(shape.tokens, shape.heads, shape.head_dim, q.element_size(), cell.backward),
        "checked_rows": len(problem.exact.rows),
        "status": "ok",
        "reason": None,
        "errors": None,
        "seconds": None,
        "calls": None,
        "median_ms": None,
        "low_ms": None,
        "high_ms": None,
        "peak_bytes": None,
        "peak_reason": None,
    }


def _refusal(refused: Refused) -> Row:
    errors = None if refused.errors is None else _finite(refused.errors)
    return {"status": refused.status, "reason": refused.reason, "errors": errors}


def _outcome(problem: Problem, way: Way, seconds: list[float], span: int, memory: tuple[int | None, str | None]) -> Row:
    """Times and errors, once the results of the last timed call are right too."""
    try:
        errors = {**way.errors, **check(problem, way.last, way.last if problem.all_rows and way.last[1:] else None)}
    except Refused as refused:
        return _refusal(refused)
    times = summary(seconds)
    return {
        "errors": _finite(errors),
        "seconds": seconds,
        "calls": span,
        "median_ms": 1000 * times.median,
        "low_ms": 1000 * times.low,
        "high_ms": 1000 * times.high,
        "peak_bytes": memory[0],
        "peak_reason": memory[1],
    }


def _finite(errors: Mapping[str, float]) -> dict[str, float | None]:
    return {name: error if isfinite(error) else None for name, error in errors.items()}
