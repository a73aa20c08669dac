"""``tubelet demo``: train a small text-to-video model on real handwriting, then show what an hour of it gives."""

import argparse
from pathlib import Path
from typing import Any

from tubelet.cli.arguments import existing, folder, number, positive
from tubelet.cli.cpu import flushed_denormals

__all__ = ["add", "run"]

_MINUTES = 2.0
_EXAMPLE = """examples:
  tubelet demo                         two minutes of live training, then the shipped checkpoint
  tubelet demo --minutes 1 --seed 3 --out runs/quick
  tubelet demo --resume                go on after Ctrl-C
  tubelet demo --judge                 no training: measure the shipped checkpoint again
  tubelet demo --tasks                 no training: every task of known frames, judged
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
    parser.add_argument("--minutes", type=positive, help=f"of live training; default {_MINUTES:g}")
    parser.add_argument("--seed", type=number, default=0, help="default 0; a resumed run keeps its own")
    parser.add_argument("--out", type=folder, default=Path("runs/demo"), metavar="DIR", help="default runs/demo")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out, as it began")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--full", action="store_true", help="train the checkpoint that ships")
    instead.add_argument(
        "--judge",
        type=existing,
        nargs="?",
        const=True,
        metavar="FILE",
        help="only judge a checkpoint of the demo: FILE, or the one that ships",
    )
    instead.add_argument(
        "--tasks",
        type=existing,
        nargs="?",
        const=True,
        metavar="FILE",
        help="only do and judge the tasks of known frames, from extension to loops: FILE, or the one that ships",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo.

    Raises:
        ValueError: an interrupted run without ``--resume``, nothing to resume, or options that exclude each other.
        ImportError: the extra ``tubelet[demo]`` is missing.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.demo.command import full, judged, live_and_shipped, tasks

    out, seed, resume, judge = arguments.out, arguments.seed, arguments.resume, arguments.judge
    file = arguments.tasks
    _check(arguments)
    with flushed_denormals():
        if arguments.full:
            full(out, seed, resume)
        elif judge is not None:
            judged(out, seed, None if judge is True else judge)
        elif file is not None:
            tasks(out, seed, None if file is True else file)
        else:
            live_and_shipped(out, arguments.minutes or _MINUTES, seed, resume)


def _check(arguments: argparse.Namespace) -> None:
    """That no option is dropped: those of the live run do not go with the others."""
    chosen = {"--full": arguments.full or None, "--judge": arguments.judge, "--tasks": arguments.tasks}
    instead = next((name for name, value in chosen.items() if value is not None), None)
    if arguments.minutes is not None and instead:
        raise ValueError(f"--minutes is of the live run, which {instead} leaves out")
    if arguments.resume and instead in ("--judge", "--tasks"):
        raise ValueError(f"--resume goes on with a training, but {instead} trains nothing")
