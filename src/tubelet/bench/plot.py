"""A run as a picture: a bar for each row's median with its quartiles, one panel for each table."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.bench.records import derived
from tubelet.bench.table import by_headline
from tubelet.files import replacing

__all__ = ["save_plot"]

_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme, which colour-blind readers tell apart."""


def save_plot(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Draw the rows that have a time; the suffix of ``path`` (png, svg, pdf) says how.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no row has a time, or matplotlib does not write such a file.

    Example:
        >>> save_plot("run.png", {"rows": [], "ceilings": {}})
        Traceback (most recent call last):
        ...
        ValueError: run.png would be empty: no row has a time
    """
    timed = [row for row in document["rows"] if row["median_ms"] is not None]
    if not timed:
        raise ValueError(f"{path} would be empty: no row has a time")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'tubelet[demo]'") from error
    panels = by_headline(timed)
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(9, 0.8 + sum(0.32 * n + 0.95 for n in heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 1.5 for n in heights]})
    backends = list(dict.fromkeys(row["backend"] for row in timed))
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, title, rows, document["ceilings"], backends)
    axes[-1, 0].set_xlabel("milliseconds: median, with quartiles (less is better)")
    figure.suptitle(_machine(document), fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _panel(
    axis: Any, title: str, rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any], backends: Sequence[str]
) -> None:
    medians = [row["median_ms"] for row in rows]
    spread = [[m - row["low_ms"] for m, row in zip(medians, rows, strict=True)],
              [row["high_ms"] - m for m, row in zip(medians, rows, strict=True)]]  # fmt: skip
    colors = [_COLORS[backends.index(row["backend"]) % len(_COLORS)] for row in rows]
    axis.barh(range(len(rows)), medians, xerr=spread, color=colors, height=0.7, error_kw={"capsize": 2, "lw": 1})
    axis.set_yticks(range(len(rows)), [f"{row['pattern']}  {row['backend']}" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(0, 1.35 * max(row["high_ms"] for row in rows))
    for place, row in enumerate(rows):
        axis.text(row["high_ms"], place, f"  {_note(row, ceilings)}", va="center", fontsize=7.5)


def _note(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> str:
    speeds = derived(row, ceilings)
    part = "" if speeds["tflops_part"] is None else f" ({speeds['tflops_part']:.0%})"
    return f"{row['median_ms']:.3g} ms, {speeds['tflops']:.3g} TFLOP/s{part}"


def _machine(document: Mapping[str, Any]) -> str:
    hardware, versions = (document["environment"][part] for part in ("hardware", "versions"))
    return f"{hardware['name']}, torch {versions['torch']}, tubelet {versions['tubelet']}; % of the measured matmul"
