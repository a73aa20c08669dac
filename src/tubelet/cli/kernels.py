"""``tubelet kernels``: compile every kernel for GPUs that are not here, or measure launch sizes on the one that is."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tubelet.cli.arguments import count
from tubelet.files import write_json

__all__ = ["add", "check", "tune"]

_EXAMPLE = """examples:
  tubelet kernels check                          registers, spills and shared memory for sm_80 and sm_90; no GPU needed
  tubelet kernels check --only rotation --arch 90
  tubelet kernels check --json kernels.json
  tubelet kernels tune --widths 1536 --head-dims 128"""

_EXAMPLE_CHECK = """example:
  tubelet kernels check --only rotation --arch 90 --json kernels.json

exit status: 0; 1 where a kernel spills or exceeds a cap; 2 for a mistake in what was asked."""

_EXAMPLE_TUNE = """example:
  tubelet kernels tune --widths 1536 --head-dims 128 --dtype bfloat16"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "kernels",
        help="check the kernels' machine code, or measure their launch sizes",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    plain: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    checking = actions.add_parser(
        "check",
        help="compile for sm_80 and sm_90 without a GPU",
        description="Compile every kernel, without a GPU, and print its registers, spills and shared memory.",
        epilog=_EXAMPLE_CHECK,
        **plain,
    )
    checking.add_argument("--arch", type=count, nargs="+", default=[80, 90], help="compute capabilities; default 80 90")
    checking.add_argument("--only", default="", metavar="WORDS", help="kernels and cases whose name holds it")
    checking.add_argument("--json", type=Path, metavar="FILE", help="write every reading there")
    checking.set_defaults(run=check)
    tuning = actions.add_parser(
        "tune",
        help="measure launch sizes on this GPU",
        description="Measure launch sizes on this GPU and keep the fastest for later processes of this user.",
        epilog=_EXAMPLE_TUNE,
        **plain,
    )
    tuning.add_argument("--widths", type=count, nargs="*", default=[1536], help="of norm + modulate; default 1536")
    tuning.add_argument(
        "--head-dims", type=count, nargs="*", default=[128], help="of attention, its norms and rotations; default 128"
    )
    tuning.add_argument("--channels", type=count, nargs="*", default=[], help="of norm + SiLU + padding; default none")
    tuning.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    tuning.set_defaults(run=tune)


def check(arguments: argparse.Namespace) -> None:
    """Compile every kernel and print what it needs; exit status 1 where something spills or exceeds a cap.

    Raises:
        ImportError: triton is not installed.
        ValueError: kernels run in the interpreter, an architecture is unknown, or no kernel has the name.
        SystemExit: a kernel fails.

    Example:
        >>> callable(check)
        True
    """
    from tubelet.kernels import aot

    found = list(aot.check(arguments.arch, arguments.only))
    if not found:
        raise ValueError(f"no kernel's name holds {arguments.only!r}")
    print(aot.table(found))
    if arguments.json is not None:
        write_json(arguments.json, aot.as_json(found))
    faults = sum(not each.passes for each in found)
    print(f"{len(found)} kernels compiled, {faults or 'none'} beyond a cap")
    if faults:
        raise SystemExit(1)


def tune(arguments: argparse.Namespace) -> None:
    """Measure launch sizes on this GPU and keep the fastest for later processes.

    Raises:
        ValueError: there is no CUDA device.

    Example:
        >>> callable(tune)
        True
    """
    from tubelet.attention.boxes import window_tiles
    from tubelet.kernels._measuring import tune as measure
    from tubelet.layout import Grid

    grid = Grid(16, 32, 64)
    boxes = partial(window_tiles, grid=grid, sides=(7, 15, 27), device="cuda")
    sizes = arguments.widths, arguments.head_dims, arguments.channels
    path = measure(*sizes, arguments.dtype, grid.tokens, boxes)
    print(f"wrote {path}")
