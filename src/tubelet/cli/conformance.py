"""``tubelet conformance``: every attention backend on every pattern and packing, with its error against float64."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.cli.arguments import names

if TYPE_CHECKING:
    from tubelet.testing import ConformanceRow

__all__ = ["add", "run"]

_EXAMPLE = """examples:
  tubelet conformance                          the worst errors, and the reasons of what is not served
  tubelet conformance --json conformance.json  every row
  tubelet conformance --backends sdpa,flex     these alone, each on the whole matrix

It takes a minute or two; FlexAttention, named on a CPU, far longer.
The exit status is 1 where a row that a backend claims to serve exceeds its bound."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "conformance",
        help="measure every attention backend against float64",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backends", type=names, metavar="B,…", help="default all; one that is named is measured on the whole matrix"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table, write the rows.

    Raises:
        ValueError: the file is a folder, or no backend has a name.
        OSError: the file cannot be written.
        SystemExit: with status 1, where a row fails.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.files import replacing
    from tubelet.testing import conformance_document, conformance_table

    if arguments.json is not None and arguments.json.is_dir():
        raise ValueError(f"{arguments.json} is a folder, not a file")
    rows = list(_rows(arguments.backends))
    print(conformance_table(rows))
    if arguments.json is not None:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(conformance_document(rows), indent=1, allow_nan=False) + "\n")
    failing = [row for row in rows if not row.ok]
    measured = sum(row.error is not None for row in rows)
    print(f"\n{len(rows)} rows: {measured} measured, {len(rows) - measured} blank, {len(failing)} fail")
    for row in failing[:20]:
        what = f"{row.backend}, {row.pattern}, {row.packing}, {row.device}, {row.dtype}, {row.gqa}:1, {row.direction}"
        found = f"error {row.error:.1e}, bound {row.bound:.1e}" if row.error is not None else row.reason
        print(f"{what}: {found}", file=sys.stderr)
    if failing:
        raise SystemExit(1)


def _rows(chosen: Sequence[str] | None) -> "Iterator[ConformanceRow]":
    """The rows of the matrix, pattern by pattern and packing by packing; a terminal is told how far it is."""
    from tubelet.attention import backends
    from tubelet.testing import conformance_rows, matrix_packings, matrix_patterns
    from tubelet.training import Progress

    there = backends()
    unknown = [name for name in chosen or () if name not in there]
    if unknown:
        raise ValueError(f"no backend is called {', '.join(unknown)}; there are {', '.join(there)}")
    asked = None if chosen is None else {name: there[name] for name in chosen}
    cases = list(itertools.product(matrix_patterns().items(), matrix_packings().items()))
    watched = sys.stderr.isatty()
    with Progress(len(cases), title="cases", stream=sys.stderr) if watched else nullcontext() as progress:
        for done, (pattern, packing) in enumerate(cases, start=1):
            yield from conformance_rows(asked, patterns=dict([pattern]), packings=dict([packing]))
            if progress is not None:
                progress.update(done, {})
