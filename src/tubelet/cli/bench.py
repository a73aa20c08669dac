"""``tubelet bench``: time attention patterns and backends on real shapes, and compare two runs."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from tubelet.cli.arguments import count, names, number, positive

__all__ = ["add", "run_attention", "run_compare", "run_list"]

_EXAMPLE = """examples:
  tubelet bench attention --shapes wan-1.3b-480p,cogvideox-5b --scale 0.2 --backends sdpa,auto --json run.json
  tubelet bench attention --shapes 8x16x16+77/12x64,mix:navit --backward --md run.md --plot run.png
  tubelet bench attention --shapes wan-14b-720p --dtype bfloat16 --device cuda --modes eager,graph --caches warm,cold
  tubelet bench compare before.json after.json --fail-above 1.05
  tubelet bench list                   the shapes, patterns and backends that can be named

exit status: 0; 1 for a row that is wrong or failed (attention), or a regression (compare --fail-above); 2 for a
mistake in what was asked; 130 after Ctrl-C, with finished rows in the --json file."""

_EXAMPLE_COMPARE = """example:
  tubelet bench compare before.json after.json --fail-above 1.05

exit status: 0; 1 for a regression beyond --fail-above; 2 for files that do not fit together."""

_EXAMPLE_LIST = """example:
  tubelet bench list"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EXAMPLE}
    parser = commands.add_parser("bench", help="time attention, and compare two runs", description=__doc__, **layout)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    attention = kinds.add_parser("attention", help="time patterns × backends × shapes", **layout)
    _add_attention(attention)
    attention.set_defaults(run=run_attention)
    compare = kinds.add_parser(
        "compare",
        help="ratios of two runs, with intervals",
        description="Print how much slower or faster each row of the second run is than the same row of the first.",
        **{**layout, "epilog": _EXAMPLE_COMPARE},
    )
    compare.add_argument("first", type=Path, metavar="A.json")
    compare.add_argument("second", type=Path, metavar="B.json")
    compare.add_argument("--force", action="store_true", help="compare other hardware, or one dtype with another")
    compare.add_argument(
        "--fail-above", type=positive, metavar="X", help="exit 1 where a row is X times slower beyond its scatter"
    )
    compare.set_defaults(run=run_compare)
    naming = kinds.add_parser(
        "list",
        help="what can be named",
        description="Print the names of shapes, patterns and backends that `tubelet bench attention` takes.",
        **{**layout, "epilog": _EXAMPLE_LIST},
    )
    _add_import(naming)
    naming.set_defaults(run=run_list)


def run_attention(arguments: argparse.Namespace) -> None:
    """Measure, write the files that were asked for, and print the table.

    Raises:
        ValueError: a name, number or file that does not fit.
        SystemExit: 1 where a row is wrong or failed.

    Example:
        >>> callable(run_attention)
        True
    """
    import torch

    from tubelet.bench.plan import Plan
    from tubelet.bench.plot import save_plot
    from tubelet.bench.records import save_csv
    from tubelet.bench.registry import available
    from tubelet.bench.session import run_plan
    from tubelet.bench.table import report
    from tubelet.files import replacing

    _import(arguments.imports)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = _device(arguments.device)
    on_cpu = device.type == "cpu"
    plan = Plan(
        shapes=arguments.shapes,
        patterns=arguments.patterns,
        backends=tuple(available()) if arguments.backends is None else arguments.backends,
        dtypes=arguments.dtype or ("float32" if on_cpu else "bfloat16",),
        directions=("forward", "forward+backward") if arguments.backward else ("forward",),
        batches=arguments.batch,
        caches=arguments.caches,
        modes=arguments.modes,
        device=str(device),
        scale=arguments.scale,
        rounds=arguments.rounds,
        budget=arguments.budget,
        seed=arguments.seed,
        check_rows=arguments.check_rows,
    )
    document = run_plan(plan, arguments.json, resume=arguments.resume)
    text = report(document)
    if arguments.csv is not None:
        save_csv(arguments.csv, document)
    if arguments.md is not None:
        with replacing(arguments.md) as temporary:
            temporary.write_text(text + "\n")
    if arguments.plot is not None:
        save_plot(arguments.plot, document)
    print(text)
    if any(row["status"] in ("wrong", "failed") for row in document["rows"]):
        raise SystemExit(1)


def run_compare(arguments: argparse.Namespace) -> None:
    """Print the table of ratios.

    Raises:
        ValueError: a file is no run, or the runs do not fit together.
        SystemExit: 1 where a row regressed and ``--fail-above`` asks for it.

    Example:
        >>> callable(run_compare)
        True
    """
    from tubelet.bench.compare import compare, comparison
    from tubelet.bench.records import load

    changes = compare(load(arguments.first), load(arguments.second), force=arguments.force)
    print(comparison(changes))
    if arguments.fail_above is not None:
        regressed = [change.key for change in changes if change.regressed(arguments.fail_above)]
        for key in regressed:
            print(f"regressed: {key}", file=sys.stderr)
        if regressed:
            raise SystemExit(1)


def run_list(arguments: argparse.Namespace) -> None:
    """Print the names of shapes, patterns and backends.

    Example:
        >>> run_list(argparse.Namespace(imports=[]))  # doctest: +ELLIPSIS
        shapes
        ...
    """
    from tubelet.bench.patterns import pattern_names
    from tubelet.bench.registry import available
    from tubelet.bench.shapes import MIXTURES, SHAPES

    _import(arguments.imports)
    print("shapes")
    for name, shape in SHAPES.items():
        print(f"  {name:<18}{shape.describe():<26}{shape.tokens:>8,} tokens")
    for name, text in MIXTURES.items():
        print(f"  mix:{name:<14}{text}")
    print("patterns", *(f"  {usage}" for usage in pattern_names().values()), sep="\n")
    print("backends", *(f"  {name}" for name in available()), sep="\n")


def _add_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes", type=names, default=("wan-1.3b-480p",), metavar="S,…", help="names or literals; see the list"
    )
    parser.add_argument("--patterns", type=names, default=("joint",), metavar="P,…", help="default joint")
    parser.add_argument("--backends", type=names, metavar="B,…", help="default all; auto is the dispatcher's choice")
    parser.add_argument("--dtype", type=names, metavar="D,…", help="default float32, on CUDA bfloat16")
    parser.add_argument("--backward", action="store_true", help="also time forward and backward together")
    parser.add_argument("--batch", type=_counts, default=(1,), metavar="N,…", help="times the samples; default 1")
    parser.add_argument(
        "--scale", type=positive, help="of the sides of every grid; default 1, on a CPU 0.2 for the shapes of models"
    )
    parser.add_argument("--caches", type=names, default=("warm",), metavar="C,…", help="warm, cold; default warm")
    parser.add_argument("--modes", type=names, default=("eager",), metavar="M,…", help="eager, graph; default eager")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default CUDA where there is one")
    parser.add_argument("--threads", type=count, help="of torch on the CPU; default as torch is set")
    parser.add_argument("--rounds", type=count, default=20, help="samples of a row at most; default 20")
    parser.add_argument("--budget", type=positive, default=30.0, metavar="S", help="seconds for a group; default 30")
    parser.add_argument("--check-rows", type=count, default=256, metavar="N", help="query rows checked; default 256")
    parser.add_argument("--seed", type=number, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows there as they are measured")
    parser.add_argument("--resume", action="store_true", help="measure only the rows that the --json file lacks")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--md", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="png, svg or pdf")
    _add_import(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE", help="that registers backends"
    )


def _import(names: list[str]) -> None:
    """Import modules by name, those of the working folder included."""
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        importlib.import_module(name)


def _device(text: str) -> Any:
    import torch

    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device is cpu, cuda or cuda:1, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is cpu, cuda or cuda:1, got {text!r}")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device {text}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"a plot is a png, svg or pdf file, got {text!r}")
    return Path(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(name) for name in names(text))
