"""``tubelet convert``: a checkpoint of one form written in another, shard by shard."""

import argparse
import sys
from contextlib import ExitStack
from difflib import get_close_matches
from inspect import isfunction, signature
from typing import Any

from tubelet.cli.arguments import dtype, new, size

__all__ = ["add", "run"]

_FORMS = ("tubelet", "diffusers", "original")

_EXAMPLE = """examples:
  tubelet convert --from diffusers --to tubelet wan/transformer wan-ours
  tubelet convert --from original --family wan --to diffusers wan2.1_t2v_1.3B.safetensors wan/transformer
  tubelet convert --from original --preset cosmos_1_7b --to tubelet model.pt cosmos-ours
  tubelet convert --from tubelet --to original --dtype bfloat16 wan-ours wan-theirs
  tubelet convert --from diffusers --subfolder transformer --to tubelet Wan-AI/Wan2.1-T2V-1.3B-Diffusers wan-ours

The target appears when it is complete. Nothing is overwritten, and no more memory is used than a shard takes."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in another form",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file of weights, or a repository owner/name")
    parser.add_argument("target", type=new, metavar="TARGET", help="a folder that does not exist yet")
    parser.add_argument("--from", dest="source_form", choices=_FORMS, required=True, help="what SOURCE is")
    parser.add_argument("--to", dest="target_form", choices=_FORMS, required=True, help="what TARGET becomes")
    parser.add_argument("--family", metavar="NAME", help="the architecture, such as wan, where no config names a class")
    parser.add_argument(
        "--preset", metavar="NAME", help="our config by name, such as cosmos_1_7b, where a file has none"
    )
    parser.add_argument("--subfolder", default="", metavar="DIR", help="where in SOURCE the model lies")
    parser.add_argument(
        "--dtype",
        type=dtype,
        help="float32, bfloat16, float16 or float64, float32 islands aside; default each tensor's own",
    )
    parser.add_argument(
        "--max-shard-size", type=size, default="2GB", metavar="SIZE", help="of a file, such as 500MB; default 2GB"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert, and say what was written; a terminal is told how far it is.

    Raises:
        ValueError: no such preset, a model without an adapter, or a checkpoint that does not fit it.
        OSError: no source, something at the target, or a full disk.

    Example:
        >>> callable(run)
        True
    """
    from tubelet import hub
    from tubelet.training import Progress

    with ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(total, title="tensors", stream=sys.stderr)))
            bars[0].update(done, {})

        folder = hub.convert(
            arguments.source,
            arguments.target,
            source_form=arguments.source_form,
            target_form=arguments.target_form,
            family=arguments.family,
            config=None if arguments.preset is None else _preset(arguments.preset),
            subfolder=arguments.subfolder,
            dtype=arguments.dtype,
            max_shard_size=arguments.max_shard_size,
            **({"on_tensor": show} if sys.stderr.isatty() else {}),
        )
    files = list(folder.glob("*.safetensors"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{folder}: config.json and {len(files)} file{'s' * (len(files) > 1)} of weights, {megabytes:,.1f} MB")


def _preset(name: str) -> Any:
    """The config that a function of :mod:`tubelet.models` gives."""
    from tubelet import models

    named = {key: getattr(models, key) for key in models.__all__}
    presets = {key: value for key, value in named.items() if isfunction(value) and not signature(value).parameters}
    if name not in presets:
        near = get_close_matches(name, presets, 5, 0.5) or presets
        raise ValueError(f"no preset is called {name}; there are {', '.join(near)}")
    return presets[name]()
