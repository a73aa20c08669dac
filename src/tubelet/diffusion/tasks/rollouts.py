"""Long video, one part after another: by overlapping windows, or with a cache where the model is causal in time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers import euler_step, one_row, sample
from tubelet.diffusion.tasks.extension import extend
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, SamplerStep, Solver

__all__ = ["CausalDenoiser", "causal_rollout", "rollout"]


@runtime_checkable
class CausalDenoiser(Protocol):
    """A denoiser of the next frames that keeps what it must know of earlier ones in an explicit value.

    :class:`tubelet.attention.FrameCache` is such a value for one attention layer.

    Example:
        >>> isinstance(lambda x, t, cache: (x, cache), CausalDenoiser)
        True
    """

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows, cache: Any) -> tuple[Float[Tensor, "*lead c"], Any]:
        """The prediction on these frames, and the cache as it is after them."""
        ...


def rollout(
    make: Callable[[list[Known], int], Sequence[Float[Tensor, "c t h w"]]],
    starts: Sequence[Float[Tensor, "c _ _ _"]],
    frames: int,
    *,
    window: int,
    overlap: int,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Videos of ``frames`` frames from their starts, by windows that begin with the last frames of the one before.

    Args:
        make: videos of what is known of a window of each, and the window's number, from 0.
        starts: the first frames of each, at least ``overlap`` and equally many; they come back bit for bit.
        frames: how many there shall be; what the last window makes beyond them is cut off.
        window: frames of a window.
        overlap: how many of them are given.

    Raises:
        ValueError: ``overlap`` is not from 1 to ``window - 1``, the starts have other numbers of frames than they may,
            or ``make`` gives another number of videos or another shape.

    Example:
        >>> ramp = lambda knowns, number: [knowns[0].video[:, :1] + torch.arange(4.0).reshape(1, 4, 1, 1)]
        >>> rollout(ramp, [torch.zeros(1, 1, 1, 1)], frames=8, window=4, overlap=1)[0].flatten().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    if not 1 <= overlap < window:
        raise ValueError(f"overlap must be from 1 to window - 1 = {window - 1}, got {overlap}")
    lengths = sorted({start.shape[1] for start in starts})
    if len(lengths) != 1 or not overlap <= lengths[0] <= frames:
        raise ValueError(f"starts must have equally many frames, from overlap={overlap} to {frames}, got {lengths}")
    videos = list(starts)
    for number in range(math.ceil((frames - lengths[0]) / (window - overlap))):
        knowns = [extend(video[:, -overlap:], window) for video in videos]
        made = make(knowns, number)
        if (found := [x.shape for x in made]) != (asked := [known.video.shape for known in knowns]):
            raise ValueError(f"windows of shapes {[*map(tuple, asked)]} were asked for, got {[*map(tuple, found)]}")
        videos = [torch.cat([a, b[:, overlap:]], dim=1) for a, b in zip(videos, made, strict=True)]
    return [video[:, :frames] for video in videos]


def causal_rollout(
    denoiser: CausalDenoiser,
    chunks: Iterable[Float[Tensor, "... c"]],
    times: Float[Tensor, " s"],
    *,
    process: Process,
    cache: Any,
    step: SamplerStep | Solver = euler_step,
) -> Iterator[tuple[Float[Tensor, "... c"], Any]]:
    """Chunk after chunk of an endless video: each is sampled with the cache of those before, then joins it, clean.

    A model that attends no later frame predicts the same as if it saw all frames so far, the earlier ones at noise
    level 0 (CausVid, arXiv:2412.07772; diffusion forcing, arXiv:2407.01392), at the cost of one chunk.

    Args:
        denoiser: predicts what ``process.prediction`` names on the next frames.
        chunks: the noise of each chunk.
        times: noise levels in order, of every chunk.
        process: path and prediction.
        cache: of what comes before, such as the text and given frames, which have passed through the denoiser at 0.
        step: how one step is made.

    Yields:
        Each chunk and the cache after it.

    Example:
        >>> def denoiser(x, t, cache):  # data are one more than the chunk before
        ...     return (x - cache - 1) / t.values.clamp(min=1e-9), x
        >>> process, noise = Process(), [torch.full((1, 1), 5.0)] * 3
        >>> parts = causal_rollout(denoiser, noise, process.times(4), process=process, cache=torch.zeros(1, 1))
        >>> [part.item() for part, _ in parts]
        [1.0, 2.0, 3.0]
    """
    for noise in chunks:
        x = sample(_with(denoiser, cache), noise, times, process=process, step=step)
        _, cache = denoiser(x, one_row(torch.zeros((), device=x.device, dtype=times.dtype)), cache)
        yield x, cache


def _with(denoiser: CausalDenoiser, cache: Any) -> Denoiser:
    """The denoiser of one chunk: every step sees the same cache."""
    return lambda x, t: denoiser(x, t, cache)[0]
