"""Where the tokens of a ragged batch lie: grids, token layouts, their device index, and rows of conditioning.

A *layout* is a small host value (hashable, picklable) that says how the samples of a batch share one token axis; its
*index* is the same knowledge as tensors on a device, made once outside compiled code. The canonical order is: per
sample its prefix tokens (text or registers), then its grid in ``(t, h, w)`` raster order.

Shapes: ``n`` tokens on the packed axis, or ``b`` rows of ``n`` tokens; ``*lead`` stands for either. The packed form is
the "Patch n' Pack" of NaViT (Dehghani et al., 2023, arXiv:2307.06304, section 2.1).
"""

from tubelet.layout.frames import frames_apart, frames_as_tokens
from tubelet.layout.index import Kind, LayoutIndex, TokenInfo
from tubelet.layout.joint import JointIndex, JointLayout
from tubelet.layout.rows import Level, Rows
from tubelet.layout.tokens import Grid, TokenLayout

__all__ = [
    "Grid",
    "JointIndex",
    "JointLayout",
    "Kind",
    "LayoutIndex",
    "Level",
    "Rows",
    "TokenInfo",
    "TokenLayout",
    "frames_apart",
    "frames_as_tokens",
]
