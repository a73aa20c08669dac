"""Attention: patterns as values, one contract (``attend``), backends that say what they can, and plain modules."""

from tubelet.attention.bias import RelativeBias, RelativePositions
from tubelet.attention.cache import FrameCache
from tubelet.attention.decoupled import DecoupledCrossAttention
from tubelet.attention.dispatch import attend, backends, explain
from tubelet.attention.joined import JoinedCrossAttention
from tubelet.attention.modules import Attention, CrossAttention
from tubelet.attention.patterning import set_pattern
from tubelet.attention.patterns import (
    Both,
    Either,
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    VideoOnly,
    Window,
)
from tubelet.attention.streams import JointAttention, ParallelAttention

__all__ = [
    "Attention",
    "Both",
    "CrossAttention",
    "DecoupledCrossAttention",
    "Either",
    "FrameCache",
    "FrameCausal",
    "HeadSplit",
    "JoinedCrossAttention",
    "Joint",
    "JointAttention",
    "Neighborhood",
    "ParallelAttention",
    "RelativeBias",
    "RelativePositions",
    "SlidingTile",
    "Spatial",
    "Strided",
    "Temporal",
    "VideoOnly",
    "Window",
    "attend",
    "backends",
    "explain",
    "set_pattern",
]
