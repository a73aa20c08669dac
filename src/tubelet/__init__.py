"""tubelet: composable video-diffusion building blocks for PyTorch.

Single blocks import from here; each subpackage is one stage of the way from video to video (see ``docs/design.md``).
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tubelet import packing
from tubelet._version import __version__
from tubelet.attention import (
    Attention,
    CrossAttention,
    FrameCache,
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    Window,
    attend,
    explain,
    patterns,
)
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, LabelEmbedding, TimestepEmbedding
from tubelet.layout import Grid, JointLayout, LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP, SwiGLU
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.patchify import Patchify, Unpatchify, fold, unfold
from tubelet.pooling import AttentionPool
from tubelet.positions import Rope3d, SinCos3d
from tubelet.text import WordEncoder

if TYPE_CHECKING:
    from tubelet import diffusion as diffusion
    from tubelet import hub as hub
    from tubelet import models as models
    from tubelet import testing as testing
    from tubelet import vae as vae

__all__ = [
    "MLP",
    "AdaLNZero",
    "Attention",
    "AttentionPool",
    "Branch",
    "CrossAttention",
    "FrameCache",
    "FrameCausal",
    "Grid",
    "HeadSplit",
    "Joint",
    "JointLayout",
    "LabelEmbedding",
    "LayerNorm",
    "LayoutIndex",
    "Neighborhood",
    "Patchify",
    "RMSNorm",
    "Rope3d",
    "Rows",
    "SinCos3d",
    "SlidingTile",
    "Spatial",
    "Strided",
    "SwiGLU",
    "Temporal",
    "TimestepEmbedding",
    "TokenLayout",
    "TransformerBlock",
    "Unpatchify",
    "Window",
    "WordEncoder",
    "__version__",
    "attend",
    "diffusion",
    "explain",
    "fold",
    "hub",
    "models",
    "packing",
    "patterns",
    "testing",
    "unfold",
    "vae",
]


def __getattr__(name: str) -> ModuleType:
    """On first use: diffusion, autoencoders, whole models, checkpoints, the conformance kit; so importing is quick."""
    if name in ("diffusion", "hub", "models", "testing", "vae"):
        return importlib.import_module(f"tubelet.{name}")
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
