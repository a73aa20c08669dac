"""``tubelet demo``: train a small text-to-video model on real handwriting, then show what an hour of it gives."""

import argparse
from pathlib import Path
from typing import Any

from tubelet.cli.arguments import folder, number, positive
from tubelet.cli.cpu import flushed_denormals

__all__ = ["add", "run"]

_EXAMPLE = """examples:
  tubelet demo                         two minutes of live training, then the shipped checkpoint
  tubelet demo --minutes 1 --seed 3 --out runs/quick
  tubelet demo --resume                go on after Ctrl-C
  tubelet demo --full                  retrain the shipped checkpoint (up to an hour on two cores)"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "demo",
        help="train and sample a small text-to-video model",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=positive, default=2.0, help="of live training; default 2")
    parser.add_argument("--seed", type=number, default=0)
    parser.add_argument("--out", type=folder, default=Path("runs/demo"), metavar="DIR", help="default runs/demo")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.add_argument("--full", action="store_true", help="train the checkpoint that ships")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo.

    Raises:
        ValueError: an interrupted run without ``--resume``, or nothing to resume.
        ImportError: the extra ``tubelet[demo]`` is missing.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.demo.command import full, live_and_shipped

    with flushed_denormals():
        if arguments.full:
            full(arguments.out, arguments.seed, arguments.resume)
        else:
            live_and_shipped(arguments.out, arguments.minutes, arguments.seed, arguments.resume)
