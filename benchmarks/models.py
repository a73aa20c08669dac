"""The open video transformers against diffusers' own classes: same weights, same numbers in, one run.

Each model has its real width and few layers, on about 4,000 tokens. Both are run on one clip (a batch of one, which is
all that the peers do without padding); ours gets its layouts as indices, as a sampler holds them. The answers are
compared before anything is timed, then the two take turns. ``ratio`` is the peer's median over ours, with a bootstrap
interval: above 1 ours is faster. Memory is what one forward (or forward and backward) holds beyond the weights.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.attention import Attention, JointAttention
from tubelet.bench import interleave, stopwatch, summary
from tubelet.bench.compare import ratio_interval
from tubelet.bench.memory import peak_bytes
from tubelet.bench.table import aligned
from tubelet.hub import from_diffusers
from tubelet.layout import Grid, JointLayout, Rows, TokenLayout
from tubelet.patchify import fold, unfold

__all__ = ["FAMILIES", "Compared", "compare_models", "report_models"]


@dataclass(frozen=True)
class Family:
    """A class of diffusers', its config with few layers, and one question to both.

    ``sides`` are the clip's latent frames, height and width; ``ask_theirs`` and ``ask_ours`` take a model and the
    latents and give answers of one shape; ``wide`` names the peer's modules that stay in float32.
    """

    peer: str
    config: Mapping[str, Any]
    sides: tuple[int, int, int]
    ask_theirs: Callable[[Any, Tensor], Tensor]
    ask_ours: Callable[[Any, Tensor], Tensor]
    channels: int
    wide: tuple[str, ...] = field(default=())


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


def _text(tokens: int, width: int, like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, tokens, width, generator=draw).to(like)


def _layouts(grid: Grid, tokens: int) -> tuple[TokenLayout, TokenLayout]:
    return TokenLayout.dense(1, grid), TokenLayout.padded([tokens], tokens)


def _ask(
    model: Any, x: Tensor, patch: tuple[int, int, int], t: float, text: Tensor, joint: bool = False, **more: Any
) -> Tensor:
    """Fold, ask by prebuilt indices, unfold."""
    grid = Grid(*(n // p for n, p in zip(x.shape[2:], patch, strict=True)))
    layout, text_layout = _layouts(grid, text.shape[1])
    if joint:
        more["joint"] = JointLayout((text_layout, layout)).on(x.device)
    level = Rows(torch.full((1,), t, device=x.device))
    out = model(
        fold(x, patch), level, text, layout.on(x.device), text_layout.on(x.device), **more
    )  # fmt: skip
    return unfold(out, grid, patch)


def _wan_theirs(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x, torch.full((1,), 500.0), _text(512, 4096, x), return_dict=False)[0]
    return out


def _wan_ours(model: Any, x: Tensor) -> Tensor:
    return _ask(model, x, (1, 2, 2), 0.5, _text(512, 4096, x))


def _mochi_theirs(model: Any, x: Tensor) -> Tensor:
    mask = torch.ones(1, 256, dtype=torch.bool)
    out: Tensor = model(x, _text(256, 4096, x), torch.full((1,), 500.0), mask, return_dict=False)[0]
    return out


def _mochi_ours(model: Any, x: Tensor) -> Tensor:
    return -_ask(model, x, (1, 2, 2), 0.5, _text(256, 4096, x), joint=True)


FAMILIES: dict[str, Family] = {
    "wan-1.3b": Family(
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 2},
        (4, 64, 64),
        _wan_theirs,
        _wan_ours,
        16,
        wide=("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"),
    ),
    "mochi": Family("MochiTransformer3DModel", {"num_layers": 2}, (4, 64, 64), _mochi_theirs, _mochi_ours, 12),
}
"""What is compared, by name."""


def compare_models(
    names: list[str], dtypes: list[str], backends: list[str], directions: list[bool], rounds: int
) -> Iterator[Compared]:
    """Every combination in turn; a backend other than ``auto`` is set on our attention modules."""
    import diffusers

    for name in names:
        family = FAMILIES[name]
        torch.manual_seed(0)
        peer = getattr(diffusers, family.peer)(**family.config).eval()
        for parameter in peer.parameters():  # zeros at the start would hide errors
            nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.1)
        config = {"_class_name": family.peer, **peer.config}
        for dtype in dtypes:
            kind = getattr(torch, dtype)
            ours = from_diffusers(config, peer.state_dict(), dtype=kind)
            theirs = _in_dtype(peer, kind, family.wide)
            x = torch.randn(1, family.channels, *family.sides, generator=torch.Generator().manual_seed(2)).to(kind)
            for backend in backends:
                _use(ours, backend)
                for backward in directions:
                    yield _compared(name, dtype, backend, backward, family, theirs, ours, x, rounds)
            del ours, theirs
            gc.collect()


def _in_dtype(peer: Any, dtype: torch.dtype, wide: tuple[str, ...]) -> Any:
    """The peer in another dtype, as its ``from_pretrained`` gives it."""
    kept = {name: p.data.clone() for name, p in peer.named_parameters() if set(name.split(".")) & set(wide)}
    peer.to(dtype)
    for name, value in kept.items():
        peer.get_parameter(name).data = value
    return peer


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
        _call(family.ask_theirs, theirs, x, backward),
        _call(family.ask_ours, ours, x, backward),
    )
    with torch.no_grad():
        expected, got = family.ask_theirs(theirs, x).double(), family.ask_ours(ours, x).double()
    error = float((got - expected).norm() / expected.norm())
    if not error <= (1e-4 if dtype == "float32" else 0.05):
        raise RuntimeError(f"{name} in {dtype} is off by {error:.2e} of the norm: no time is worth it")
    seconds = interleave(calls, stopwatch(x.device), rounds)
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
