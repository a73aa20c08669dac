"""A run as aligned Markdown: one table for each shape, batch, dtype and mode, with every pattern and backend."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tubelet.bench.records import derived

__all__ = ["aligned", "by_headline", "headline", "report"]

Row = Mapping[str, Any]
_HEAD = ("pattern", "backend", "median ms", "quartiles", "TFLOP/s", "of matmul", "GB/s", "of copy", "peak MiB", "error")


def report(document: Mapping[str, Any]) -> str:
    """The whole run: the machine, its ceilings, and a table for each group.

    Example:
        >>> from tubelet.bench import Plan, run_plan
        >>> import io
        >>> plan = Plan(shapes=("1x2x2/1x8",), patterns=("joint",), backends=("sdpa",), rounds=3)
        >>> report(run_plan(plan, progress=io.StringIO())).splitlines()[2]
        '### 1x2x2/1x8, batch 1, float32, forward, warm, eager'
    """
    parts = [_machine(document)]
    for title, rows in by_headline(document["rows"]).items():
        parts += [f"### {title}", _table(rows, document["ceilings"])]
    return "\n\n".join(parts)


def headline(row: Row) -> str:
    """What the rows of one table share.

    Example:
        >>> shared = {"batch": 1, "dtype": "float32", "direction": "forward", "cache": "warm", "mode": "eager"}
        >>> headline({"shape": "ltx-512", "asked": "16x16x24/32x64", "run": "4x4x6/32x64", **shared})
        'ltx-512 as 4x4x6/32x64, batch 1, float32, forward, warm, eager'
    """
    run = "" if row["asked"] == row["run"] else f" as {row['run']}"
    parts = (f"batch {row['batch']}", *(row[name] for name in ("dtype", "direction", "cache", "mode")))
    return ", ".join((f"{row['shape']}{run}", *parts))


def by_headline(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows under each headline, both in order of appearance.

    Example:
        >>> by_headline([])
        {}
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(headline(row), []).append(row)
    return found


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 2) -> str:
    """A Markdown table whose columns are padded: the first ``left`` of them to the left, the others to the right.

    Example:
        >>> print(aligned(["a", "b"], [["one", "2"]], left=1))
        | a   | b |
        | :-- | -: |
        | one | 2 |
    """
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = [(":" + "-" * max(1, w - 1)) if i < left else ("-" * max(1, w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([row(head), f"| {' | '.join(rule)} |", *map(row, lines)])


def _machine(document: Mapping[str, Any]) -> str:
    machine, limits = document["environment"]["hardware"], document["ceilings"]
    speeds = ", ".join(f"{name} {speed:.3g} TFLOP/s" for name, speed in limits["matmul_tflops"].items())
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    versions = document["environment"]["versions"]
    return (
        f"{machine['name']} ({machine['device']}{threads}), torch {versions['torch']}, tubelet {versions['tubelet']}; "
        f"measured ceilings: matmul {speeds}, copy {limits['copy_gbps']:.3g} GB/s"
    )


def _table(rows: Sequence[Row], ceilings: Mapping[str, Any]) -> str:
    lines = [list(_cells(row, ceilings)) for row in rows]
    table = aligned(_HEAD, lines)
    reasons = [f"{row['pattern']}, {row['backend']}: {row['status']}: {row['reason']}" for row in rows if row["reason"]]
    return "\n\n".join([table, "\n".join(f"- {reason}" for reason in reasons)]) if reasons else table


def _cells(row: Row, ceilings: Mapping[str, Any]) -> Iterator[str]:
    yield row["pattern"].replace("|", "\\|")
    yield row["backend"]
    if row["median_ms"] is None:
        yield row["status"]
        yield from [""] * 6
    else:
        speeds = derived(row, ceilings)
        yield f"{row['median_ms']:.4g}"
        yield f"{row['low_ms']:.4g} – {row['high_ms']:.4g}"
        for speed, part in (("tflops", "tflops_part"), ("gbps", "gbps_part")):
            yield f"{speeds[speed]:.3g}"
            yield "" if speeds[part] is None else f"{speeds[part]:.0%}"
        yield "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.4g}"
    known = [error for part, error in (row["errors"] or {}).items() if error is not None and part != "row"]
    yield f"{max(known):.1e}" if known else ""
