"""The parts of a causal video autoencoder: frame groups, channel norm, residual block, learned changes of scale.

Only the residual block mixes frames, through one causal convolution; the other parts act on each latent frame alone, so
they need no state. Activations are ``(b, c, t, h, w)`` throughout; fold orders are written in the einops patterns.
The causal layout of 1 + 4k frames with the first frame on its own is that of MAGVIT-v2 (arXiv:2310.05737) and W.A.L.T
(arXiv:2312.06662); trading space for channels before the first convolution is that of LTX-Video (arXiv:2501.00103).
"""

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blockwise import Pieces, pieces_of_tensor
from tubelet.vae.causal import CausalConv3d

__all__ = ["CausalResBlock", "ChannelNorm", "Downsample", "FrameGroups", "FrameUngroups", "Upsample"]

Device = torch.device | str | None
GROUP = "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)"
UNGROUP = "b t h w (pt ph pw c) -> b c (t pt) (h ph) (w pw)"


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of each position: ``x / sqrt(mean_c x² + eps) · weight``.

    It has no statistics over time or space, so a chunk is normalised as the whole is (arXiv:1910.07467, per position).
    The mean is taken in at least float32. Without ``affine`` there is no weight; with ``bias`` one is added.

    Example:
        >>> x = 7 * torch.ones(1, 4, 1, 2, 2)
        >>> ChannelNorm(4)(x).mean().item()
        1.0
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        eps: float = 1e-6,
        *,
        affine: bool = True,
        bias: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if affine else None
        self.register_parameter("weight", weight)
        added = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", added)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of one, biases of zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalise over axis 1."""
        y = _normed(x, self.eps)
        if self.weight is not None:
            weight = self.weight.to(x.dtype).reshape(-1, 1, 1, 1)
            y = y * weight if y.requires_grad or weight.requires_grad else y.mul_(weight)
        return y if self.bias is None else y + self.bias.to(x.dtype).reshape(-1, 1, 1, 1)

    def pieces(self, x: Float[Tensor, "b c t h w"]) -> Pieces:
        """The same of pieces (:mod:`tubelet.vae.normed_pieces`)."""
        cut = pieces_of_tensor(x)
        return lambda *place: self._piece(cut, *place)

    def _piece(self, pieces: Pieces, *place: int) -> Tensor:
        return self(pieces(*place))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


def _normed(x: Tensor, eps: float) -> Tensor:
    """Over the channels, in at least float32 and rounded once; a narrow ``x`` is held in that once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if wide is x:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)
    norm: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    scale = torch.rsqrt(norm.square() / x.shape[1] + eps)
    return (wide * scale if wide.requires_grad else wide.mul_(scale)).to(x.dtype)


class CausalResBlock(nn.Module):
    """``x + temporal(silu(norm(spatial(silu(norm(x))))))``: a 1×3×3 convolution, then a causal 3×1×1 one.

    The factorised pair costs 12 instead of 27 multiplications per weight of a full 3×3×3 kernel. The second convolution
    starts at zero, so the block starts as the identity.

    Args:
        channels: channels in, inside and out.

    Example:
        >>> block = CausalResBlock(8)
        >>> x = torch.randn(1, 8, 3, 4, 4)
        >>> y, state = block(x)
        >>> torch.equal(x, y), tuple(state.shape)
        (True, (1, 8, 2, 4, 4))
    """

    def __init__(self, channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, device=device, dtype=dtype)
        self.spatial = CausalConv3d(channels, channels, (1, 3, 3), device=device, dtype=dtype)
        self.norm2 = ChannelNorm(channels, device=device, dtype=dtype)
        self.temporal = CausalConv3d(channels, channels, (3, 1, 1), device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh first convolution, zero second: the identity."""
        for part in (self.norm1, self.norm2, self.spatial):
            part.reset_parameters()
        for parameter in self.temporal.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c s h w"] | None = None
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c r h w"]]:
        """The next frames and the state of the temporal convolution after them."""
        hidden, _ = self.spatial(F.silu(self.norm1(x)))
        hidden, state = self.temporal(F.silu(self.norm2(hidden)), state)
        return x + hidden, state

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class FrameGroups(nn.Module):
    """Frames to latent frames: the first frame alone, then groups of ``temporal``, each patch through a linear map.

    The first frame has its own map, since a group of one holds less than a group of four.

    Args:
        channels: channels of the video.
        width: channels of the result.
        temporal: frames in each later group.
        patch: side of a square patch in pixels.

    Example:
        >>> groups = FrameGroups(1, 8, temporal=4, patch=4)
        >>> groups(torch.randn(2, 1, 5, 16, 16), start=True).shape
        torch.Size([2, 8, 2, 4, 4])
        >>> groups(torch.randn(2, 1, 4, 16, 16), start=False).shape
        torch.Size([2, 8, 1, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        width: int,
        temporal: int,
        patch: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.temporal, self.patch = temporal, patch
        area = channels * patch * patch
        self.first = nn.Linear(area, width, device=device, dtype=dtype)
        self.rest = nn.Linear(temporal * area, width, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw both maps anew."""
        self.first.reset_parameters()
        self.rest.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"], start: bool) -> Float[Tensor, "b d lt lh lw"]:
        """Group ``1 + temporal·k`` frames at the start of a video, ``temporal·k`` frames elsewhere."""
        sides, alone = {"ph": self.patch, "pw": self.patch}, int(start)
        first = self.first(rearrange(x[:, :, :alone], GROUP, pt=1, **sides))
        rest = self.rest(rearrange(x[:, :, alone:], GROUP, pt=self.temporal, **sides))
        return rearrange(torch.cat([first, rest], 1), "b t h w d -> b d t h w").contiguous()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, start: bool) -> Tensor: ...


class FrameUngroups(nn.Module):
    """Latent frames to frames, the mirror of `FrameGroups`: the first gives one frame, the others ``temporal`` each.

    Args:
        width: channels of the input.
        channels: channels of the video.
        temporal: frames that each later latent frame gives.
        patch: side of a square patch in pixels.

    Example:
        >>> ungroups = FrameUngroups(8, 1, temporal=4, patch=4)
        >>> ungroups(torch.randn(2, 8, 2, 4, 4), start=True).shape
        torch.Size([2, 1, 5, 16, 16])
    """

    def __init__(
        self,
        width: int,
        channels: int,
        temporal: int,
        patch: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.temporal, self.patch = temporal, patch
        area = channels * patch * patch
        self.first = nn.Linear(width, area, device=device, dtype=dtype)
        self.rest = nn.Linear(width, temporal * area, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw both maps anew."""
        self.first.reset_parameters()
        self.rest.reset_parameters()

    def forward(self, x: Float[Tensor, "b d lt lh lw"], start: bool) -> Float[Tensor, "b c t h w"]:
        """Frames of the next latent frames; ``start`` says that the first of them is the first of its video."""
        sides, alone = {"ph": self.patch, "pw": self.patch}, int(start)
        x = rearrange(x, "b d t h w -> b t h w d")
        first = rearrange(self.first(x[:, :alone]), UNGROUP, pt=1, **sides)
        rest = rearrange(self.rest(x[:, alone:]), UNGROUP, pt=self.temporal, **sides)
        return torch.cat([first, rest], 2)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, start: bool) -> Tensor: ...


class Downsample(nn.Module):
    """Halve height and width: each 2×2 square of positions through one linear map.

    Example:
        >>> Downsample(8, 16)(torch.randn(1, 8, 3, 4, 4)).shape
        torch.Size([1, 16, 3, 2, 2])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * in_channels, out_channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the map anew."""
        self.proj.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """Even sides in, half of them out."""
        y: Tensor = self.proj(rearrange(x, GROUP, pt=1, ph=2, pw=2))
        return rearrange(y, "b t h w d -> b d t h w").contiguous()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Upsample(nn.Module):
    """Double height and width: one linear map from each position to a 2×2 square.

    Example:
        >>> Upsample(16, 8)(torch.randn(1, 16, 3, 2, 2)).shape
        torch.Size([1, 8, 3, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 4 * out_channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the map anew."""
        self.proj.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """Sides in, twice them out."""
        y: Tensor = self.proj(rearrange(x, "b c t h w -> b t h w c"))
        return rearrange(y, UNGROUP, pt=1, ph=2, pw=2)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
