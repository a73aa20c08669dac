"""The command ``tubelet``: thin commands over the library.

A user's mistake ends in one line on standard error and exit status 2, never in a traceback.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tubelet._version import __version__
from tubelet.cli import bench as bench
from tubelet.cli import cache_latents as cache_latents
from tubelet.cli import conformance as conformance
from tubelet.cli import convert as convert
from tubelet.cli import demo as demo
from tubelet.cli import info as info
from tubelet.cli import kernels as kernels
from tubelet.cli import sample as sample
from tubelet.cli import train as train
from tubelet.cli import train_vae as train_vae
from tubelet.cli.lines import MISTAKES, out_of_memory, plain, warnings_as_lines

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 2 for a user's mistake, or 130 after Ctrl-C.

    Example:
        >>> main(["sample", "a seven", "--size", "1,2"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    parser = _Parser(prog="tubelet", description="Composable video-diffusion building blocks.")
    parser.add_argument("--version", action="version", version=f"tubelet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (demo, train, train_vae, cache_latents, sample, convert, bench, conformance, info, kernels):
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        with warnings_as_lines():
            arguments.run(arguments)
    except KeyboardInterrupt as stop:
        print(f"\ntubelet: {f'{stop}; --resume goes on' if str(stop) else 'stopped'}", file=sys.stderr)
        return 130
    except (*MISTAKES, RuntimeError) as error:
        if not isinstance(error, MISTAKES) and not out_of_memory(error):
            raise
        print(f"tubelet: {plain(error)}", file=sys.stderr)
        return 2
    return 0
