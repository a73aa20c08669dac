"""``tubelet conformance``: every attention backend on every pattern and packing, with its error against float64."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

_EXAMPLE = """examples:
  tubelet conformance                          the worst errors, and the reasons of what is not served
  tubelet conformance --json conformance.json  every row

It takes a minute or two. The exit status is 1 where a row that a backend claims to serve exceeds its bound."""


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table, write the rows.

    Raises:
        ValueError: the file is a folder.
        OSError: the file cannot be written.
        SystemExit: with status 1, where a row fails.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.files import replacing
    from tubelet.testing import conformance_document, conformance_rows, conformance_table

    if arguments.json is not None and arguments.json.is_dir():
        raise ValueError(f"{arguments.json} is a folder, not a file")
    rows = list(conformance_rows())
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
