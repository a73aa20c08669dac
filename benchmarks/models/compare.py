"""Both answers, their difference, then their times and peaks in turn.

``ratio`` is the peer's median over ours, with a bootstrap interval: above 1 ours is faster. Memory is what one forward
(or forward and backward) holds beyond the weights, ours over the peer's.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import fair_clock
from benchmarks.models.families import FAMILIES
from benchmarks.models.family import Family
from tubelet.attention import Attention, JointAttention
from tubelet.bench import interleave, stopwatch, summary
from tubelet.bench.compare import ratio_interval
from tubelet.bench.memory import peak_bytes
from tubelet.bench.table import aligned
from tubelet.fused import use_kernels
from tubelet.hub import from_diffusers

__all__ = ["Compared", "compare_models", "random_peer", "report_models", "with_islands"]


@dataclass(frozen=True)
class Compared:
    """One model in one dtype and direction: error against the peer, seconds of both, the ratio and its interval."""

    model: str
    dtype: str
    backend: str
    backward: bool
    error: float
    theirs: list[float]
    ours: list[float]
    ratio: float
    low: float
    high: float
    memory: float | None


def compare_models(
    names: list[str],
    dtypes: list[str],
    backends: list[str],
    directions: list[bool],
    rounds: int,
    tokens: int | None = None,
    fused: bool = False,
    one_layer: bool = False,
) -> Iterator[Compared]:
    """Every combination in turn; a backend other than ``auto`` is set on our attention modules.

    ``tokens`` are about how many of the video there are, the family's own number by default. ``fused`` models went
    through :func:`tubelet.fused.use_kernels`. With ``one_layer`` a model has one of each kind, and its name says so.
    """
    for name in names:
        family = FAMILIES[name].with_one_layer() if one_layer else FAMILIES[name]
        for dtype in dtypes:
            kind = getattr(torch, dtype)
            theirs = random_peer(family)
            ours = from_diffusers({"_class_name": family.peer, **theirs.config}, theirs.state_dict(), dtype=kind)
            with_islands(theirs, kind)
            if fused:
                use_kernels(ours)
            x = family.latents(tokens).to(kind)
            for backend in backends:
                _use(ours, backend)
                for backward in directions:
                    yield _compared(
                        f"{name}, one layer" if one_layer else name,
                        dtype,
                        f"{backend}, fused" if fused else backend,
                        backward,
                        family,
                        theirs,
                        ours,
                        x,
                        rounds,
                    )
            del ours, theirs
            gc.collect()


def random_peer(family: Family) -> Any:
    """The peer in float32, every weight random: zeros at the start would hide errors."""
    import diffusers

    torch.manual_seed(0)
    peer = getattr(diffusers, family.peer)(**family.config).eval()
    family.prepare(peer)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.1)
    return peer


def with_islands(peer: Any, dtype: torch.dtype) -> None:
    """Cast a peer as its ``from_pretrained`` does: with float32 islands it leaves these, and all buffers, alone."""
    wide = set(peer._keep_in_fp32_modules or ())
    if not wide:
        nn.Module.to(peer, dtype)
    for name, parameter in peer.named_parameters():
        if not wide & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def _use(model: nn.Module, backend: str) -> None:
    for module in model.modules():
        if isinstance(module, Attention | JointAttention) or hasattr(module, "backend"):
            module.backend = backend  # type: ignore[assignment]


def _compared(
    name: str,
    dtype: str,
    backend: str,
    backward: bool,
    family: Family,
    theirs: Any,
    ours: Any,
    x: Tensor,
    rounds: int,
) -> Compared:
    calls = (
        _call(family.theirs, theirs, x, backward),
        _call(family.ask_ours, ours, x, backward),
    )
    with torch.no_grad():
        expected, got = family.theirs(theirs, x).double(), family.ask_ours(ours, x).double()
    error = float((got - expected).norm() / expected.norm())
    if not error <= (1e-4 if dtype == "float32" else 0.05):
        raise RuntimeError(f"{name} in {dtype} is off by {error:.2e} of the norm: no time is worth it")
    seconds = interleave(calls, stopwatch(x.device, fair_clock()), rounds)
    ratio, low, high = ratio_interval(seconds[1], seconds[0])
    peaks = [peak_bytes(call, x.device)[0] for call in calls]
    memory = None if None in peaks or not peaks[0] else peaks[1] / peaks[0]  # type: ignore[operator]
    return Compared(name, dtype, backend, backward, error, seconds[0], seconds[1], ratio, low, high, memory)


def _call(ask: Callable[[Any, Tensor], Tensor], model: nn.Module, x: Tensor, backward: bool) -> Callable[[], None]:
    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = ask(model, x)
            if backward:
                out.float().square().mean().backward()
                model.zero_grad(set_to_none=True)

    return call


def report_models(results: list[Compared]) -> str:
    """An aligned table and the geometric mean of the ratios of each dtype and backend."""
    head = ["model", "dtype", "backend", "pass", "peer s", "ours s", "ratio", "95 %", "memory", "error"]
    rows = [
        [
            r.model, r.dtype, r.backend, "forward + backward" if r.backward else "forward",
            f"{summary(r.theirs).median:.3f}", f"{summary(r.ours).median:.3f}", f"{r.ratio:.2f}",
            f"{r.low:.2f} – {r.high:.2f}", "" if r.memory is None else f"{r.memory:.2f}", f"{r.error:.1e}",
        ]
        for r in results
    ]  # fmt: skip
    groups: dict[tuple[str, str], list[float]] = {}
    for r in results:
        groups.setdefault((r.dtype, r.backend), []).append(r.ratio)
    means = [
        f"geometric mean, {dtype}, {backend}: {torch.tensor(ratios).log().mean().exp():.3f}"
        for (dtype, backend), ratios in groups.items()
    ]
    return aligned(head, rows, left=4) + "\n\n" + "\n".join(means)
