"""A run from start to end: what is done already, progress, and a file that is complete after every group."""

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tubelet.bench.device import clocks, environment, hardware
from tubelet.bench.harness import Stopwatch
from tubelet.bench.plan import Plan
from tubelet.bench.records import SCHEMA, load, save
from tubelet.bench.run import key, measure, measure_ceilings
from tubelet.training.progress import Progress, Writable

__all__ = ["run_plan"]

Document = dict[str, Any]


def run_plan(
    plan: Plan,
    json: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    progress: Writable | None = None,
    watch: Stopwatch | None = None,
) -> Document:
    """Measure a plan.

    Args:
        plan: what to measure.
        json: file that is written after every group of rows.
        resume: keep the rows of that file, and measure only those of the plan that it lacks.
        progress: where progress goes; standard error by default.
        watch: replaces the device's stopwatch.

    Returns:
        The document that the file holds.

    Raises:
        ValueError: the file exists and is not to be resumed, or holds a run of other hardware or settings.
        KeyboardInterrupt: after Ctrl-C; its text says how many rows the file holds.

    Example:
        >>> import io
        >>> plan = Plan(shapes=("1x2x2/1x8",), patterns=("joint",), backends=("sdpa",), rounds=3)
        >>> run_plan(plan, progress=io.StringIO())["rows"][0]["status"]
        'ok'
    """
    device = torch.device(plan.device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return _run(plan, json, resume, progress or sys.stderr, watch)


def _run(
    plan: Plan, json: str | os.PathLike[str] | None, resume: bool, progress: Writable, watch: Stopwatch | None
) -> Document:
    document = _begin(plan, json, resume)
    rows: list[dict[str, Any]] = document["rows"]
    total = len(_keys(plan) | {row["key"] for row in rows})
    began = len(rows)
    _keep(document, plan, json)  # a place that cannot be written to is seen before anything is measured
    try:
        with Progress(total, start=began, title="bench rows", stream=progress) as shown:
            for new in measure(plan, rows, watch):
                rows += new
                _keep(document, plan, json)
                shown.update(len(rows), {})
    except KeyboardInterrupt:
        if json is None:
            raise
        raise KeyboardInterrupt(f"stopped; {len(rows)} of {total} rows are in {json}") from None
    return document


def _begin(plan: Plan, json: str | os.PathLike[str] | None, resume: bool) -> Document:
    if json is not None and Path(json).exists():
        if not resume:
            raise ValueError(f"{json} exists; --resume measures what it lacks, another name starts anew")
        return _resumed(load(json), plan, json)
    if resume and json is None:
        raise ValueError("--resume needs --json FILE, whose rows it keeps")
    return {
        "schema": SCHEMA,
        "kind": "attention",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(torch.device(plan.device)),
        "settings": plan.fixed(),
        "ceilings": measure_ceilings(plan),
        "rows": [],
    }


def _resumed(document: Document, plan: Plan, json: str | os.PathLike[str]) -> Document:
    """The document of an earlier run of the same settings on the same machine, with ceilings for new dtypes."""
    here = {"hardware": hardware(torch.device(plan.device)), "settings": plan.fixed()}
    then = {"hardware": document["environment"]["hardware"], "settings": document["settings"]}
    for part, values in here.items():
        for name, value in values.items():
            if then[part].get(name) != value:
                raise ValueError(f"{json} was measured with {name}={then[part].get(name)!r}, this run has {value!r}")
    if missing := [name for name in plan.dtypes if name not in document["ceilings"]["matmul_tflops"]]:
        new = measure_ceilings(plan)
        for part in ("matmul_tflops", "matmul_n"):
            document["ceilings"][part] |= {name: new[part][name] for name in missing}
    return document


def _keys(plan: Plan) -> set[str]:
    cells = list(plan.cells())
    return {key(group, cell, name) for group in plan.groups() for cell in cells for name in plan.backends}


def _keep(document: Mapping[str, Any], plan: Plan, json: str | os.PathLike[str] | None) -> None:
    document["environment"]["clocks_after"] = clocks(torch.device(plan.device))
    if json is not None:
        save(json, document)
