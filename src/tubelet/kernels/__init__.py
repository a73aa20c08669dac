"""Fused operations of our own: one folder each, with a plain reference, Triton kernels, and the operation around them.

Importing this package imports no triton. ``backend="auto"`` runs a kernel for what it serves on CUDA and the reference
elsewhere; ``backend="triton"`` raises with the reason where a kernel cannot serve.
"""

from tubelet.kernels._choice import SERVED, Backend, absence
from tubelet.kernels._grouped.op import grouped_attention, grouped_backward, grouped_forward, grouped_refusal
from tubelet.kernels._layer_norm.op import LayerNormBackend, layer_norm
from tubelet.kernels._linear.op import LinearBackend, linear
from tubelet.kernels._linear.reference import Activation
from tubelet.kernels._modulation.op import norm_modulate
from tubelet.kernels._modulation.reference import Norm
from tubelet.kernels._padded.op import norm_silu_pad
from tubelet.kernels._residual.op import gate_residual, residual_norm_modulate
from tubelet.kernels._rotation.op import norm_rope, qk_norm_rope
from tubelet.kernels._rotation.reference import HeadNorm
from tubelet.kernels._tiled.op import (
    tiled_attention,
    tiled_backward,
    tiled_forward,
    tiled_refusal,
    tiled_sizes,
    varlen_attention,
)
from tubelet.kernels._tiled.table import Tiles, TileSizes, line_tiles, segment_tiles, tile_rows

__all__ = [
    "SERVED",
    "Activation",
    "Backend",
    "HeadNorm",
    "LayerNormBackend",
    "LinearBackend",
    "Norm",
    "TileSizes",
    "Tiles",
    "absence",
    "gate_residual",
    "grouped_attention",
    "grouped_backward",
    "grouped_forward",
    "grouped_refusal",
    "layer_norm",
    "line_tiles",
    "linear",
    "norm_modulate",
    "norm_rope",
    "norm_silu_pad",
    "qk_norm_rope",
    "residual_norm_modulate",
    "segment_tiles",
    "tile_rows",
    "tiled_attention",
    "tiled_backward",
    "tiled_forward",
    "tiled_refusal",
    "tiled_sizes",
    "varlen_attention",
]
