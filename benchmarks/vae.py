"""Video autoencoders at full width, ours against diffusers', with the same random weights and the same inputs.

Each line is one family, one direction (encode, decode), one dtype and one memory format. ``ratio`` is the median of
diffusers' time over ours, with a bootstrap interval: above 1 ours is faster. ``memory`` is what one call of ours holds
beyond weights and input, over theirs. No answer is timed before it is compared with diffusers'; in bfloat16 both are
rounded, so the bound is wide.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.clock import fair_clock
from tubelet.bench import interleave, stopwatch, summary
from tubelet.bench.compare import ratio_interval
from tubelet.bench.memory import peak_bytes
from tubelet.bench.table import aligned
from tubelet.hub import from_diffusers

__all__ = ["FORMATS", "VAES", "Peer", "Timed", "compare_vaes", "report_vaes"]

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of the difference of both answers, relative to the norm."""
FORMATS = {"float32": torch.contiguous_format, "bfloat16": torch.channels_last_3d}
"""The memory format that is faster on a CPU, by dtype."""
SIZE = (9, 128, 128)


@dataclass(frozen=True)
class Peer:
    """A class of diffusers' with the values of its config that are no defaults."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)


VAES = {
    "wan-2.1": Peer("AutoencoderKLWan"),
    "hunyuan-video": Peer("AutoencoderKLHunyuanVideo"),
    "cogvideox": Peer("AutoencoderKLCogVideoX"),
    "mochi": Peer("AutoencoderKLMochi"),
    "ltx": Peer("AutoencoderKLLTXVideo"),
}
"""The autoencoders by name."""


@dataclass(frozen=True)
class Timed:
    """One direction of one autoencoder: seconds of both, the ratio, peaks in bytes, and the error against theirs."""

    vae: str
    direction: str
    dtype: str
    format: str
    seconds: list[float]
    theirs: list[float]
    ratio: float
    low: float
    high: float
    memory: float | None
    error: float


def compare_vaes(
    names: Sequence[str], dtypes: Sequence[str], rounds: int, size: tuple[int, int, int] = SIZE, device: str = "cpu"
) -> Iterator[Timed]:
    """One line for each autoencoder, dtype and direction; of the frames, as many as it takes."""
    for name in names:
        for dtype in dtypes:
            peer, vae = _pair(VAES[name], getattr(torch, dtype), FORMATS[dtype], device)
            step = vae.config.factors.temporal
            frames = (size[0] - 1) // step * step + 1
            video = torch.rand(1, 3, frames, *size[1:], device=device) * 2 - 1
            grid = vae.latent_grid(frames, *size[1:])
            z = torch.randn(1, vae.config.latent_channels, grid.t, grid.h, grid.w, device=device)
            calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
                "decode": (partial(_theirs_decoded, peer, _as(z, peer)), partial(vae.decode, _as(z, peer))),
                "encode": (partial(_theirs_encoded, peer, _as(video, peer)), partial(_encoded, vae, _as(video, peer))),
            }
            for direction, (theirs, ours) in calls.items():
                yield _timed(name, direction, dtype, theirs, ours, torch.device(device), rounds)


def report_vaes(lines: Sequence[Timed]) -> str:
    """An aligned table."""
    head = ["autoencoder", "direction", "dtype", "format", "diffusers s", "ours s", "ratio", "95 %", "memory", "error"]
    rows = []
    for line in lines:
        theirs, ours = (f"{summary(samples).median:.2f}" for samples in (line.theirs, line.seconds))
        memory = "" if line.memory is None else f"{line.memory:.2f}"
        interval = f"{line.low:.2f} – {line.high:.2f}"
        row = [line.vae, line.direction, line.dtype, line.format, theirs, ours, f"{line.ratio:.2f}", interval, memory]
        rows.append([*row, f"{line.error:.1e}"])
    return aligned(head, rows, left=4)


def _pair(peer: Peer, dtype: torch.dtype, layout: torch.memory_format, device: str) -> tuple[nn.Module, Any]:
    """Theirs with random weights, and ours with the same."""
    with torch.device("meta"):
        theirs = getattr(diffusers, peer.name)(**peer.config)
    theirs = theirs.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=fan**-0.5 if fan > 1 else 0.5, generator=generator)
    for buffer in theirs.buffers():
        nn.init.ones_(buffer)
    ours = from_diffusers({"_class_name": peer.name, **theirs.config}, theirs.state_dict()).requires_grad_(False)
    for model in (theirs, ours):
        model.to(device=device, dtype=dtype)
        for parameter in model.parameters():
            flat = torch.channels_last if layout == torch.channels_last_3d else torch.contiguous_format
            if parameter.ndim in (4, 5):
                parameter.data = parameter.data.to(memory_format=layout if parameter.ndim == 5 else flat)
    return theirs, ours


def _as(x: Tensor, model: nn.Module) -> Tensor:
    """An input in the dtype and memory format of a model's first convolution."""
    weight = next(p for p in model.parameters() if p.ndim == 5)
    layout = torch.channels_last_3d if not weight.is_contiguous() else torch.contiguous_format
    return x.to(dtype=weight.dtype, memory_format=layout)


def _theirs_decoded(peer: Any, z: Tensor) -> Tensor:
    decoded: Tensor = peer.decode(z).sample
    return decoded


def _theirs_encoded(peer: Any, video: Tensor) -> Tensor:
    mean: Tensor = peer.encode(video).latent_dist.mean
    return mean


def _encoded(vae: Any, video: Tensor) -> Tensor:
    mean: Tensor = vae.encode(video).mean
    return mean


@torch.no_grad()
def _timed(
    name: str,
    direction: str,
    dtype: str,
    theirs: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    device: torch.device,
    rounds: int,
) -> Timed:
    expected = theirs().double()
    error = float((ours().double() - expected).norm() / expected.norm())
    if not error <= TOLERANCES[getattr(torch, dtype)]:
        raise RuntimeError(f"{name}, {direction} in {dtype} is off by {error} of the norm: no time is worth it")
    first, second = interleave([theirs, ours], stopwatch(device, fair_clock()), rounds)
    peaks = [peak_bytes(call, device)[0] for call in (theirs, ours)]
    memory = None if peaks[1] is None or not peaks[0] else peaks[1] / peaks[0]
    layout = str(FORMATS[dtype]).removeprefix("torch.")
    return Timed(name, direction, dtype, layout, second, first, *ratio_interval(second, first), memory, error)
