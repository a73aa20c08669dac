"""``tubelet info``: every published model with its exact size and costs, planned without building its weights."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tubelet.cli.arguments import count, video_size

if TYPE_CHECKING:
    from tubelet.planner import Counts, ModelPlan, Part

__all__ = ["add", "run"]

_EXAMPLE = """examples:
  tubelet info                               every model, each on a grid of its own
  tubelet info --grid 21,30,52               all on the tokens of 81 frames of 480x832
  tubelet info wan_14b --grid 21,45,80       one model: its config, its parts, memory and time
  tubelet info dit_xl --json
  tubelet info DiT-XL/4                      or "dit_xl(patch=4)": a size that an argument makes
  tubelet info "vivit_b(factorised_encoder)" words and integers, in order or by name

MACs are multiply-accumulates of one forward, attention counted by the pairs that are attended; FLOPs are twice as many.
Memory is that of bfloat16: the weights, and what training with AdamW keeps around them (16 bytes a parameter)."""


_COSTS = ("dense GMACs", "attention GMACs", "total GMACs")
_LONGEST = 16
"""Entries of a tuple that are printed; of a longer one only the start is."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "info",
        help="list the models: parameters, multiply-accumulates, tokens, memory",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one model, such as wan_14b; default all")
    parser.add_argument(
        "--grid", type=video_size, metavar="T,H,W", help="frames, height and width in tokens (autoencoders: in latents)"
    )
    parser.add_argument(
        "--text", type=count, default=None, metavar="N", help="tokens of the prompt; default 256, or a model's own"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Plan, and print tables or JSON.

    Raises:
        ValueError: no model has the name, or it does not take the grid or the text.

    Example:
        >>> run(argparse.Namespace(name="dit_s", grid=(1, 8, 8), text=None, json=False))  # doctest: +ELLIPSIS
        dit_s: DiT, 32,865,056 parameters
        ...
    """
    from tubelet.layout import Grid
    from tubelet.planner import plan, survey

    grid = None if arguments.grid is None else Grid(*arguments.grid)
    if arguments.name is None:
        found = survey(grid, text=arguments.text)
    else:
        found = [plan(arguments.name, grid, text=arguments.text, measured=True)]
    if arguments.json:
        print(json.dumps({"format": "tubelet.info/1", "models": [each.as_json() for each in found]}, indent=1))
    elif arguments.name is None:
        _print_all(found)
    else:
        _print_one(found[0])


def _print_all(plans: "Sequence[ModelPlan]") -> None:
    head = ["name", "model", "parameters", "grid", "tokens", *_COSTS, "weights", "training"]
    _table(head, [_row(each) for each in plans], left=2)
    for each in plans:
        if each.reason is not None:
            print(f"{each.preset.name}: {each.reason}")


def _row(plan: "ModelPlan") -> list[str]:
    memory, counts = plan.memory, plan.counts
    costs = [""] * len(_COSTS) if counts is None else _costs(counts)
    return [
        plan.preset.name,
        plan.preset.architecture,
        f"{plan.parameters:,}",
        _sides(plan),
        f"{plan.tokens:,}",
        *costs,
        _bytes(memory.weights),
        _bytes(memory.training),
    ]


def _print_one(plan: "ModelPlan") -> None:
    counts = plan.counts
    assert counts is not None
    print(f"{plan.preset.name}: {plan.preset.architecture}, {plan.parameters:,} parameters\n")
    fields = dataclasses.fields(plan.config) if dataclasses.is_dataclass(plan.config) else ()
    print("\n".join(f"  {field.name} = {_short(getattr(plan.config, field.name))}" for field in fields) + "\n")
    lines = [[p.name or "(own)", f"{p.parameters:,}", *_costs(p)] for p in counts.parts]
    total = ["together", f"{counts.parameters:,}", *_costs(counts)]
    _table(["part", "parameters", *_COSTS], [*lines, total], left=1)
    print("\n" + "\n".join(_sentences(plan)))


def _sentences(plan: "ModelPlan") -> list[str]:
    memory = plan.memory
    text = f" and {plan.text:,} of text" if plan.text else ""
    what = "latents" if plan.preset.kind == "autoencoder" else "tokens"
    said = [
        f"grid {_sides(plan)}: {plan.tokens:,} {what}{text}; one forward is {plan.flops:.4g} FLOPs",
        f"memory in bfloat16: weights {_bytes(memory.weights)}, AdamW's state {_bytes(memory.training)}",
    ]
    if memory.forward is not None:
        said.append(f"  a forward adds at most {_bytes(memory.forward)} to the weights")
    if memory.saved is not None:
        said.append(f"  its backward needs {_bytes(memory.saved)} of activations, none recomputed")
    if plan.preset.kind == "denoiser":
        hours = plan.sampling_hours(50)
        said.append(f"50 steps with guidance on an A100 at 40 % of its peak: {_duration(3600 * hours)}")
    return said


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """A rich table on a terminal where rich is installed, else one of plain text."""
    try:
        if not sys.stdout.isatty():
            raise ImportError
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        from tubelet.bench.table import aligned

        print(aligned(list(head), [list(row) for row in rows], left=left))
        return
    table = Table()
    for place, title in enumerate(head):
        table.add_column(title, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _sides(plan: "ModelPlan") -> str:
    return f"{plan.grid.t}x{plan.grid.h}x{plan.grid.w}"


def _costs(counts: "Counts | Part") -> list[str]:
    return [f"{macs / 1e9:,.2f}" for macs in (counts.dense, counts.attention, counts.macs)]


def _bytes(nbytes: int) -> str:
    size, unit = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if nbytes >= pair[0]), (1e3, "kB"))
    return f"{nbytes / size:,.2f} {unit}"


def _short(value: object) -> str:
    """The value's ``repr``, of a long tuple only the start."""
    if isinstance(value, tuple) and len(value) > _LONGEST:
        return f"({', '.join(map(repr, value[:4]))}, ... {len(value)} in all)"
    return repr(value)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 60
        else f"{seconds / 60:.1f} min"
        if seconds < 3600
        else f"{seconds / 3600:.1f} h"
    )
