"""The two halves of the causal autoencoder, made of stages: residual blocks at one scale, then a change of scale.

Encoder: frame groups → stages with downsampling → norm → moments; decoder: its mirror (the layout of MAGVIT-v2,
arXiv:2310.05737). The state of a half is one tensor for each residual block, in the order in which they run.

Shapes: video ``(b, c, T, H, W)``; latents ``(b, z, t, h, w)``; moments (means, log variances) ``(b, 2·z, t, h, w)``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blocks import CausalResBlock, ChannelNorm, Device, Downsample, FrameGroups, FrameUngroups, Upsample
from tubelet.vae.causal import State
from tubelet.vae.config import CausalAutoencoderConfig

__all__ = ["Decoder", "Encoder", "Stage"]


class Stage(nn.Module):
    """Residual blocks at one scale, then a change of scale.

    Example:
        >>> stage = Stage([CausalResBlock(8)], Downsample(8, 16))
        >>> x, state = stage(torch.zeros(1, 8, 3, 4, 4), (None,))
        >>> x.shape, len(state)
        (torch.Size([1, 16, 3, 2, 2]), 1)
    """

    def __init__(self, blocks: Sequence[nn.Module], change: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.change = change

    def reset_parameters(self) -> None:
        """Draw every part anew."""
        _reset(*self.blocks, *([] if isinstance(self.change, nn.Identity) else [self.change]))

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Sequence[Tensor | None]
    ) -> tuple[Float[Tensor, "b d t h2 w2"], State]:
        """The next frames and one state tensor for each block."""
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x, last = block(x, before)
            after.append(last)
        x = self.change(x)
        return x, tuple(after)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Sequence[Tensor | None]) -> tuple[Tensor, State]: ...


class Encoder(nn.Module):
    """Frames to the moments (means, then log variances) of their latents.

    Args:
        config: the sizes.
        out_channels: numbers for each latent position; None for the moments' ``2·z``.

    Example:
        >>> moments, state = Encoder(CausalAutoencoderConfig())(torch.zeros(1, 1, 5, 16, 16))
        >>> moments.shape, len(state)
        (torch.Size([1, 32, 2, 2, 2]), 4)
    """

    def __init__(
        self,
        config: CausalAutoencoderConfig,
        out_channels: int | None = None,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        widths, last = config.widths, config.widths[-1]
        self.depths = config.depths
        self.groups = FrameGroups(
            config.in_channels, widths[0], config.temporal, config.patch, device=device, dtype=dtype
        )
        changes = [Downsample(a, b, device=device, dtype=dtype) for a, b in pairwise(widths)]
        self.stages = _stages(widths, config.depths, changes, device, dtype)
        self.norm = ChannelNorm(last, device=device, dtype=dtype)
        self.project = nn.Linear(last, out_channels or 2 * config.latent_channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw every part anew."""
        _reset(self.groups, *self.stages, self.norm, self.project)

    def forward(
        self, video: Float[Tensor, "b c t h w"], state: State | None = None
    ) -> tuple[Float[Tensor, "b z2 lt lh lw"], State]:
        """Moments of the next frames, and the state after them; ``state`` is None at the start of a video."""
        x = self.groups(video, start=state is None)
        x, state = _run(self.stages, self.depths, x, state)
        x = rearrange(F.silu(self.norm(x)), "b c t h w -> b t h w c")
        return rearrange(self.project(x), "b t h w c -> b c t h w"), state

    if TYPE_CHECKING:

        def __call__(self, video: Tensor, state: State | None = None) -> tuple[Tensor, State]: ...


class Decoder(nn.Module):
    """Latents to frames, the mirror of `Encoder`.

    Example:
        >>> video, state = Decoder(CausalAutoencoderConfig())(torch.zeros(1, 16, 2, 2, 2))
        >>> video.shape, len(state)
        (torch.Size([1, 1, 5, 16, 16]), 4)
    """

    def __init__(
        self, config: CausalAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        widths, depths = (sizes[::-1] for sizes in config.decoder)
        self.depths = depths
        self.project = nn.Linear(config.latent_channels, widths[0], device=device, dtype=dtype)
        changes = [Upsample(a, b, device=device, dtype=dtype) for a, b in pairwise(widths)]
        self.stages = _stages(widths, depths, changes, device, dtype)
        self.norm = ChannelNorm(widths[-1], device=device, dtype=dtype)
        self.ungroups = FrameUngroups(
            widths[-1], config.in_channels, config.temporal, config.patch, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Draw every part anew."""
        _reset(self.project, *self.stages, self.norm, self.ungroups)

    def forward(
        self, z: Float[Tensor, "b z lt lh lw"], state: State | None = None
    ) -> tuple[Float[Tensor, "b c t h w"], State]:
        """The frames of the next latents, and the state after them; ``state`` is None at the start of a video."""
        x: Tensor = self.project(rearrange(z, "b c t h w -> b t h w c"))
        x = rearrange(x, "b t h w c -> b c t h w").contiguous()
        x, after = _run(self.stages, self.depths, x, state)
        return self.ungroups(F.silu(self.norm(x)), start=state is None), after

    if TYPE_CHECKING:

        def __call__(self, z: Tensor, state: State | None = None) -> tuple[Tensor, State]: ...


def _stages(
    widths: Sequence[int],
    depths: Sequence[int],
    changes: Sequence[nn.Module],
    device: Device,
    dtype: torch.dtype | None,
) -> nn.ModuleList:
    """One stage for each width, with a change of scale after all but the last."""
    stages = nn.ModuleList()
    for width, depth, change in zip(widths, depths, [*changes, nn.Identity()], strict=True):
        blocks = [CausalResBlock(width, device=device, dtype=dtype) for _ in range(depth)]
        stages.append(Stage(blocks, change))
    return stages


def _run(stages: nn.ModuleList, depths: Sequence[int], x: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Run the stages in turn, each on its part of the state."""
    left: list[Tensor | None] = [None] * sum(depths) if state is None else list(state)
    if len(left) != sum(depths):
        raise ValueError(f"state must hold {sum(depths)} tensors, not {len(left)}")
    after: State = ()
    for stage, depth in zip(stages, depths, strict=True):
        x, last = stage(x, left[:depth])
        left, after = left[depth:], after + last
    return x, after


def _reset(*modules: nn.Module) -> None:
    for module in modules:
        module.reset_parameters()  # type: ignore[operator]
