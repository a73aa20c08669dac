"""Diffusion forcing: a noise level of its own for each frame (Chen et al., 2024, arXiv:2407.01392).

Training draws the levels of all frames independently, so that a model serves any schedule: given frames, frame by
frame, or a staircase. Shapes: ``r`` rows of (sample, frame), in the order of the layout.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.layout import LayoutIndex, Level, Rows

__all__ = ["draw_levels", "staircase"]


def draw_levels(
    process: Process,
    layout: LayoutIndex,
    level: Level,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Rows:
    """Independent training levels: one a sample, a frame (diffusion forcing) or a token.

    Drawn where the generator is, for the real rows of the layout only, so that its capacity changes nothing.

    Raises:
        ValueError: ``layout`` is the one of the host.

    Example:
        >>> from tubelet import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(2, 1, 2)]).on("cpu")
        >>> levels = draw_levels(Process(), layout, "frame", torch.Generator().manual_seed(0)).expand()
        >>> bool(levels[0] == levels[1]), bool(levels[1] == levels[2])
        (True, False)
    """
    if not isinstance(layout, LayoutIndex):
        raise ValueError(f"layout must be that of a device, layout.on(device), got {type(layout).__name__}")
    real, _ = layout.row_counts(level)
    drawn = process.draw_times(real, generator, device=layout.sample.device, dtype=dtype)
    return layout.rows(drawn, level)


def staircase(frame: Int[Tensor, " r"], steps: int, delay: int) -> Float[Tensor, "s r"]:
    """Even sampling times in which each frame starts ``delay`` steps after the one before it and takes ``steps`` steps.

    With ``delay = steps`` frames are made one after the other, with 0 all at once, between these the far future stays
    noisier than the near (arXiv:2407.01392). A frame that waits or is done keeps its level, and so its
    value bit for bit. Warp them by ``process.warp``.

    Args:
        frame: the number of each row's frame in its sample.
        steps: steps of each frame, at least 1.
        delay: steps between the starts of neighbouring frames.

    Returns:
        Times from all 1 to all 0, float64, a row a step.

    Raises:
        ValueError: ``steps`` is below 1, or ``delay`` or a frame's number negative.

    Example:
        >>> staircase(torch.arange(2), steps=2, delay=1)
        tensor([[1.0000, 1.0000],
                [0.5000, 1.0000],
                [0.0000, 0.5000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    if steps < 1 or delay < 0:
        raise ValueError(f"steps must be at least 1 and delay not negative, got {steps} and {delay}")
    if int(frame.min()) < 0:
        raise ValueError(f"frame must count from 0, got {int(frame.min())}")
    last = int(frame.max()) * delay + steps
    number = torch.arange(last + 1, dtype=torch.float64, device=frame.device)[:, None]
    return (1 - (number - delay * frame) / steps).clamp(0, 1)
