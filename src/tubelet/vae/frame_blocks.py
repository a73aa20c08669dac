"""Blocks of image autoencoders, frame by frame: LDM's residual block and its attention (arXiv:2112.10752).

Each is a streaming layer whose state is empty; norms are over groups of channels inside a frame.
"""

from typing import Any

from torch import nn

from tubelet.attention import Attention
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.frame_attention import FrameAttention
from tubelet.vae.group_norms import FrameGroupNorm

__all__ = ["frame_attention_block", "frame_conv", "frame_res_block", "normed_frame_conv"]


def frame_conv(in_channels: int, out_channels: int, **made: Any) -> CausalConv3d:
    """A 3×3 convolution of each frame, zeros around it; ``made`` holds ``device`` and ``dtype``.

    Example:
        >>> import torch
        >>> frame_conv(2, 4)(torch.zeros(1, 2, 3, 4, 4))[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """
    return CausalConv3d(in_channels, out_channels, (1, 3, 3), **made)


def normed_frame_conv(in_channels: int, out_channels: int, groups: int, eps: float = 1e-6, **made: Any) -> NormedConv:
    """Group norm, SiLU and a 3×3 convolution of each frame.

    Example:
        >>> import torch
        >>> normed_frame_conv(4, 2, groups=2)(torch.zeros(1, 4, 3, 4, 4))[0].shape
        torch.Size([1, 2, 3, 4, 4])
    """
    norm = FrameGroupNorm(groups, in_channels, eps, **made)
    return NormedConv(norm, frame_conv(in_channels, out_channels, **made))


def frame_res_block(in_channels: int, out_channels: int, groups: int, eps: float = 1e-6, **made: Any) -> Residual:
    """Two 3×3 convolutions of each frame, each after its norm; a 1×1 convolution beside them where the width changes.

    Example:
        >>> import torch
        >>> frame_res_block(4, 8, groups=2)(torch.zeros(1, 4, 3, 4, 4))[0].shape
        torch.Size([1, 8, 3, 4, 4])
    """
    branch = Chain(
        normed_frame_conv(in_channels, out_channels, groups, eps, **made),
        normed_frame_conv(out_channels, out_channels, groups, eps, **made),
    )
    same = in_channels == out_channels
    return Residual(branch, None if same else PerFrame(nn.Conv3d(in_channels, out_channels, 1, **made)))


def frame_attention_block(channels: int, groups: int, eps: float = 1e-6, **made: Any) -> Residual:
    """Self-attention of one head inside each frame, after a group norm.

    Example:
        >>> import torch
        >>> frame_attention_block(4, groups=2)(torch.zeros(1, 4, 3, 4, 4))[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """
    norm = FrameGroupNorm(groups, channels, eps, **made)
    return Residual(PerFrame(FrameAttention(norm, Attention(channels, heads=1, **made))))
