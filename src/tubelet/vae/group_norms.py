"""Group norms of videos: which frames share their statistics decides what can be streamed.

``y = (x - mean) / sqrt(var + eps) · weight + bias`` over the channels of a group (Wu & He, arXiv:1803.08494) and

- the positions of one frame: `FrameGroupNorm`; a chunk is normalised as the whole is;
- all positions that it is given: ``nn.GroupNorm`` itself. Chunk by chunk is then another answer than the whole, and how
  a video is cut is part of the answer.

`SpatialNorm` modulates either by the latents that are being decoded (MoVQ, arXiv:2209.09002, section 3.1), position by
position. Activations are ``(b, c, t, h, w)``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.blocks import Device
from tubelet.vae.blockwise import Pieces
from tubelet.vae.formats import layout_of
from tubelet.vae.normed_pieces import frame_statistics, group_normed, normed_pieces
from tubelet.vae.unwatched import transformed

__all__ = ["FrameGroupNorm", "SpatialNorm"]


class FrameGroupNorm(nn.Module):
    """Group norm of each frame alone.

    Args:
        groups: how many groups of channels.
        channels: of the input.
        eps: added to the variance.

    Raises:
        ValueError: channels that the groups do not divide.

    Example:
        >>> x = torch.randn(1, 4, 3, 8, 8) * torch.tensor([1.0, 5.0, 9.0]).reshape(3, 1, 1)
        >>> FrameGroupNorm(2, 4)(x).std((1, 3, 4)).round(decimals=1).tolist()
        [[1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        groups: int,
        channels: int,
        eps: float = 1e-5,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Weight one, bias zero."""
        self.norm.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalise each frame."""
        y: Tensor = self.norm(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])

    def pieces(self, x: Float[Tensor, "b c t h w"]) -> Pieces:
        """The same of pieces (:mod:`tubelet.vae.normed_pieces`)."""
        return group_normed(self.norm, x, *frame_statistics(x, self.norm.num_groups))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class SpatialNorm(nn.Module):
    """``norm(x) · scale(z) + shift(z)``: each position is modulated by its latent ``z``.

    Scale and shift are pointwise, so they are computed on the latents and not on copies of them.

    Args:
        norm: of ``channels``.
        channels: of the activations.
        latent_channels: of the latents.

    Example:
        >>> x, z = torch.randn(1, 8, 5, 6, 4), torch.randn(1, 2, 3, 3, 2)
        >>> SpatialNorm(nn.GroupNorm(4, 8), 8, 2)(x, z, True).shape
        torch.Size([1, 8, 5, 6, 4])
    """

    def __init__(
        self,
        norm: nn.Module,
        channels: int,
        latent_channels: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.Conv3d(latent_channels, channels, 1, device=device, dtype=dtype)
        self.shift = nn.Conv3d(latent_channels, channels, 1, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw all anew."""
        for part in (self.norm, self.scale, self.shift):
            part.reset_parameters()  # type: ignore[operator]

    def forward(
        self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"], start: bool
    ) -> Float[Tensor, "b c t h w"]:
        """Normalise and modulate.

        Args:
            x: activations, ``s`` frames and ``r × r`` positions to each of ``z``.
            z: the latents of these frames.
            start: whether the first is the first of its video, which has one frame of ``x`` alone.

        Raises:
            ValueError: sides of ``x`` that are not those of ``z`` times whole numbers.
        """
        by = _ratios(x, z, start)
        layout = layout_of(x)
        scale, shift = (
            _spread(of(z), by, start).contiguous(memory_format=layout).unsqueeze(4) for of in (self.scale, self.shift)
        )
        normed: Tensor = self.norm(x)
        rows = torch.unflatten(normed, 3, (z.shape[3], by[1]))
        if any(each.requires_grad for each in (rows, scale, shift)) or transformed():
            return torch.addcmul(shift, rows, scale).flatten(3, 4)
        torch.addcmul(shift, rows, scale, out=rows)
        return normed

    def pieces(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"], start: bool) -> Pieces:
        """The same of pieces (:mod:`tubelet.vae.normed_pieces`)."""
        by, alone = _ratios(x, z, start), int(start)
        frames = (torch.arange(x.shape[2], device=x.device) - alone).div(by[0], rounding_mode="floor") + alone
        rows = torch.arange(x.shape[3], device=x.device) // by[1]
        scale, shift = (_Spread(of(z), frames, rows, by[2], layout_of(x)) for of in (self.scale, self.shift))
        normed = normed_pieces(self.norm, x)
        return lambda *place: _modulated(normed, scale, shift, *place)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, z: Tensor, start: bool) -> Tensor: ...


@dataclass(frozen=True)
class _Spread:
    """Numbers of the latents at their frames, rows and columns, piece by piece."""

    numbers: Tensor
    frames: Tensor
    rows: Tensor
    columns: int
    layout: torch.memory_format

    def __call__(self, start: int, stop: int, top: int, bottom: int) -> Tensor:
        found = self.numbers[:, :, self.frames[start:stop]][:, :, :, self.rows[top:bottom]]
        return repeat(found, "b c t h w -> b c t h (w r)", r=self.columns).contiguous(memory_format=self.layout)


def _modulated(pieces: Pieces, scale: Pieces, shift: Pieces, *place: int) -> Tensor:
    return pieces(*place).mul_(scale(*place)).add_(shift(*place))


def _ratios(x: Tensor, z: Tensor, start: bool) -> tuple[int, int, int]:
    """How many frames, rows and columns of ``x`` there are to each of ``z``."""
    sides, latent = x.shape[2:], z.shape[2:]
    frames = (sides[0] - start) // max(latent[0] - start, 1) or 1
    by = (frames, sides[1] // latent[1], sides[2] // latent[2])
    if (start + by[0] * (latent[0] - start), by[1] * latent[1], by[2] * latent[2]) != tuple(sides):
        raise ValueError(f"x has sides {tuple(sides)}, which are no multiples of the sides {tuple(latent)} of z")
    return by


def _spread(y: Tensor, by: tuple[int, int, int], start: bool) -> Tensor:
    """Each latent at its frames and columns."""
    if by[0] > 1:
        rest = repeat(y[:, :, int(start) :], "b c t h w -> b c (t s) h w", s=by[0])
        y = torch.cat([y[:, :, :1], rest], 2) if start else rest
    return repeat(y, "b c t h w -> b c t h (w r)", r=by[2])
