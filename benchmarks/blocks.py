"""One block of a model, ours against diffusers', with the same weights and the same inputs.

A model of one layer answers once, as in the suite of models, and what its block is handed is kept. Each block is then
called with that alone: theirs eager and compiled, ours eager, with fused kernels, compiled, and with both. ``ratio`` is
the median of diffusers' eager block over this one's, with a bootstrap interval: above 1 this one is faster. ``memory``
is what one call holds beyond weights and inputs, over theirs; in ``forward + backward`` these are the activations.

diffusers' DiT block embeds noise level and class itself, ours is handed them: two products of 1152 x 1152.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import FAMILIES, random_peer, with_islands
from tubelet.bench import interleave, stopwatch, summary
from tubelet.bench.compare import ratio_interval
from tubelet.bench.memory import peak_bytes
from tubelet.bench.table import aligned
from tubelet.fused import use_kernels
from tubelet.hub import from_diffusers

__all__ = ["BLOCKS", "Block", "Timed", "compare_blocks", "report_blocks"]

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of the difference of both answers, relative to the norm."""


@dataclass(frozen=True)
class Block:
    """The model that a block is of, and its name in theirs and in ours."""

    family: str
    theirs: str
    ours: str


BLOCKS = {
    "DiT-XL": Block("dit-xl", "transformer_blocks.0", "blocks.0"),
    "Wan 1.3B": Block("wan-1.3b", "blocks.0", "blocks.0"),
    "HunyuanVideo, dual": Block("hunyuan-video", "transformer_blocks.0", "blocks.dual.0"),
    "HunyuanVideo, single": Block("hunyuan-video", "single_transformer_blocks.0", "blocks.single.0"),
}
"""The blocks by name."""


@dataclass(frozen=True)
class Timed:
    """One way through one block: its error against diffusers' answer, its seconds, and both ratios to diffusers'."""

    block: str
    dtype: str
    backward: bool
    way: str
    error: float
    seconds: list[float]
    ratio: float
    low: float
    high: float
    peak: int | None
    memory: float | None


Call = Callable[[bool], Tensor]
"""Forward, or forward and backward; the answer."""


def compare_blocks(
    device: str, dtypes: Sequence[str], rounds: int, tokens: int | None = None, names: Sequence[str] = tuple(BLOCKS)
) -> Iterator[list[Timed]]:
    """A group for each block, dtype and direction: diffusers' ways first, then ours."""
    for name in names:
        for dtype in dtypes:
            with torch.device(device):
                calls = _calls(BLOCKS[name], getattr(torch, dtype), tokens)
            for backward in (False, True):
                yield _timed(name, dtype, backward, calls, torch.device(device), rounds)
            torch.compiler.reset()


def report_blocks(group: Sequence[Timed]) -> str:
    """One group as an aligned table."""
    head = ["way", "median ms", "quartiles", "ratio", "95 %", "memory", "error"]
    rows = []
    for line in group:
        found = summary(line.seconds)
        low, middle, high = (f"{1000 * value:.2f}" for value in (found.low, found.median, found.high))
        memory = "" if line.memory is None else f"{line.memory:.2f}"
        interval = f"{line.low:.2f} – {line.high:.2f}"
        rows.append([line.way, middle, f"{low} – {high}", f"{line.ratio:.2f}", interval, memory, f"{line.error:.1e}"])
    direction = "forward + backward" if group[0].backward else "forward"
    return f"### {group[0].block}, {group[0].dtype}, {direction}\n\n" + aligned(head, rows, left=1)


def _calls(block: Block, dtype: torch.dtype, tokens: int | None) -> dict[str, Call]:
    """The ways through a block, with the inputs that its model hands it."""
    family = FAMILIES[block.family].with_one_layer()
    peer = random_peer(family)
    model = from_diffusers({"_class_name": family.peer, **peer.config}, peer.state_dict(), dtype=dtype)
    with_islands(peer, dtype)
    device = torch.get_default_device()
    peer, model, x = peer.to(device), model.to(device), family.latents(tokens).to(device, dtype)
    theirs, asked = _kept(peer, block.theirs, partial(family.theirs, peer, x))
    ours, told = _kept(model, block.ours, partial(family.ask_ours, model, x))
    fused = deepcopy(ours)
    use_kernels(fused)
    return {
        "diffusers": partial(_answer, theirs, *asked, -1),
        "diffusers, compiled": partial(_answer, torch.compile(theirs, dynamic=False), *asked, -1),
        "ours": partial(_answer, ours, *told, 1),
        "ours, fused": partial(_answer, fused, *told, 1),
        "ours, compiled": partial(_answer, torch.compile(ours, fullgraph=True, dynamic=False), *told, 1),
        "ours, fused and compiled": partial(_answer, torch.compile(fused, fullgraph=True, dynamic=False), *told, 1),
    }


def _kept(model: nn.Module, name: str, ask: Callable[[], Any]) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The block of that name, and what it is handed when its model is asked."""
    block, seen = model.get_submodule(name), []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        ask()
    handle.remove()
    return block, seen[0]


def _answer(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], order: int, backward: bool) -> Tensor:
    """All tokens on one axis; streams that diffusers' blocks give with the video first are put in our ``order``."""
    with torch.set_grad_enabled(backward):
        first = args[0]
        if backward:
            first = _leaf(first) if isinstance(first, Tensor) else tuple(_leaf(part) for part in first)
        out = block(first, *args[1:], **kwargs)
        if backward:
            parts = (out,) if isinstance(out, Tensor) else out
            torch.stack([part.float().square().mean() for part in parts]).sum().backward()
            block.zero_grad(set_to_none=True)
    if isinstance(out, Tensor):
        return out.detach()
    return torch.cat(out[::order], dim=1).detach()


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _timed(
    name: str, dtype: str, backward: bool, calls: dict[str, Call], device: torch.device, rounds: int
) -> list[Timed]:
    answers = {way: call(backward).double() for way, call in calls.items()}
    expected = answers["diffusers"]
    errors = {way: float((got - expected).norm() / expected.norm()) for way, got in answers.items()}
    if wrong := {way: error for way, error in errors.items() if not error <= TOLERANCES[getattr(torch, dtype)]}:
        raise RuntimeError(f"{name} in {dtype} is off by {wrong} of the norm: no time is worth it")
    every = [partial(call, backward) for call in calls.values()]
    seconds = interleave(every, stopwatch(device), rounds)
    peaks = [peak_bytes(call, device)[0] for call in every]
    lines = []
    for way, samples, peak in zip(calls, seconds, peaks, strict=True):
        ratio, low, high = ratio_interval(samples, seconds[0])
        memory = None if peak is None or not peaks[0] else peak / peaks[0]
        lines.append(Timed(name, dtype, backward, way, errors[way], samples, ratio, low, high, peak, memory))
    return lines
