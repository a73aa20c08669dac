"""Video to patches and back: exact folding, and its linear embedding (the tubelets of ViViT, arXiv:2103.15691, 3.2).

A patch of ``pt`` frames by ``ph`` by ``pw`` cells becomes one vector, its features in the order ``pt ph pw c``; patches
lie in ``(t, h, w)`` raster order. ``fold`` followed by a linear map equals ``conv3d`` with kernel = stride = patch, and
the weights convert both ways without loss.

Shapes: dense ``(b, c, T, H, W)`` and ``(b, n, p)`` with ``p = pt·ph·pw·c``; packed: videos ``(c, T_i, H_i, W_i)`` of
any sizes and ``(n, p)``, samples end to end.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tubelet.layout import Grid

__all__ = [
    "Patchify",
    "Unpatchify",
    "central_frame_",
    "conv3d_weight_to_linear",
    "crop_padding",
    "fold",
    "fold_packed",
    "grid_of",
    "inflate_",
    "linear_weight_to_conv3d",
    "pad_to_patch",
    "unfold",
    "unfold_packed",
]

Patch = tuple[int, int, int]
"""Sides ``(pt, ph, pw)`` of a patch, in frames and cells."""


def grid_of(video_shape: Sequence[int], patch: Patch) -> Grid:
    """The token grid of a video.

    Args:
        video_shape: a shape that ends in ``(T, H, W)``.
        patch: ``(pt, ph, pw)``.

    Raises:
        ValueError: a side of the video is not a multiple of the patch's.

    Example:
        >>> grid_of((2, 3, 8, 32, 48), (2, 16, 16))
        Grid(t=4, h=2, w=3)
    """
    return Grid(*_token_sides(video_shape, patch))


def fold(video: Shaped[Tensor, "b c t h w"], patch: Patch) -> Shaped[Tensor, "b n p"]:
    """Cut a batch of videos into patches, in raster order.

    Args:
        video: any dtype, so masks fold like pixels.
        patch: ``(pt, ph, pw)``.

    Returns:
        Patches ``(b, n, pt·ph·pw·c)``.

    Raises:
        ValueError: ``video`` has another rank, or a side that is not a multiple of the patch's.

    Example:
        >>> fold(torch.arange(8).view(1, 1, 2, 2, 2), (1, 2, 2)).tolist()
        [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    """
    _check_rank("video", video, "b c t h w")
    _token_sides(video.shape, patch)
    pt, ph, pw = patch
    return rearrange(video, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unfold(patches: Shaped[Tensor, "b n p"], grid: Grid, patch: Patch) -> Shaped[Tensor, "b c t h w"]:
    """Put patches back together; the exact inverse of :func:`fold`.

    Raises:
        ValueError: another rank, ``n`` is not the grid's tokens, or the width is not a multiple of ``pt·ph·pw``.

    Example:
        >>> video = torch.randn(2, 3, 4, 6, 8)
        >>> torch.equal(unfold(fold(video, (2, 3, 4)), Grid(2, 2, 2), (2, 3, 4)), video)
        True
    """
    _check_rank("patches", patches, "b n p")
    if patches.shape[-2] != grid.tokens:
        raise ValueError(f"patches has {patches.shape[-2]} tokens, but {grid} has {grid.tokens}")
    if patches.shape[-1] % math.prod(patch):
        raise ValueError(f"patches has width {patches.shape[-1]}, not a multiple of patch={tuple(patch)}")
    pt, ph, pw = patch
    return rearrange(
        patches,
        "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
        t=grid.t, h=grid.h, w=grid.w, pt=pt, ph=ph, pw=pw,
    )  # fmt: skip


def fold_packed(
    videos: Sequence[Shaped[Tensor, "c _ _ _"]], patch: Patch
) -> tuple[Shaped[Tensor, "n p"], tuple[Grid, ...]]:
    """Cut videos of any sizes into patches, end to end on one axis.

    Returns:
        Patches ``(n, pt·ph·pw·c)`` and the grid of each video, as ``TokenLayout.packed`` takes them.

    Raises:
        ValueError: no videos, other ranks, different channels, or a side that is not a multiple of the patch's.

    Example:
        >>> patches, grids = fold_packed([torch.zeros(3, 2, 4, 4), torch.zeros(3, 1, 2, 6)], (1, 2, 2))
        >>> patches.shape, grids
        (torch.Size([11, 12]), (Grid(t=2, h=2, w=2), Grid(t=1, h=1, w=3)))
    """
    if not videos:
        raise ValueError("videos is empty: there is nothing to fold")
    channels = [_check_rank("a video", video, "c t h w")[0] for video in videos]
    if min(channels) != max(channels):
        raise ValueError(f"videos must have the same channels, got {min(channels)} and {max(channels)}")
    grids = tuple(grid_of(video.shape, patch) for video in videos)
    return torch.cat([fold(video[None], patch)[0] for video in videos]), grids


def unfold_packed(
    patches: Shaped[Tensor, "n p"], grids: Sequence[Grid], patch: Patch
) -> list[Shaped[Tensor, "c _ _ _"]]:
    """Put packed patches back together; the exact inverse of :func:`fold_packed`.

    Raises:
        ValueError: another rank, the grids together do not have ``n`` tokens, or the width does not fit the patch.

    Example:
        >>> [video.shape[1:] for video in unfold_packed(torch.zeros(11, 12), [Grid(2, 2, 2), Grid(1, 1, 3)], (1, 2, 2))]
        [torch.Size([2, 4, 4]), torch.Size([1, 2, 6])]
    """
    _check_rank("patches", patches, "n p")
    counts = [grid.tokens for grid in grids]
    if sum(counts) != patches.shape[0]:
        raise ValueError(f"patches has {patches.shape[0]} tokens, but grids have {sum(counts)} together")
    parts = torch.split(patches, counts)
    return [unfold(part[None], grid, patch)[0] for part, grid in zip(parts, grids, strict=True)]


def pad_to_patch(
    video: Shaped[Tensor, "*lead t h w"], patch: Patch
) -> tuple[Shaped[Tensor, "*lead tp hp wp"], tuple[int, int, int]]:
    """Extend a video to whole patches by repeating its border.

    The **first** frame is repeated in front, so that an image stays one moment and the end of a clip stays its end (as
    causal autoencoders and CogVideoX 1.5 do); the last row and the last column are repeated behind.

    Returns:
        The padded video and the ``(frames, rows, columns)`` that were added, for :func:`crop_padding`.

    Example:
        >>> padded, padding = pad_to_patch(torch.arange(3.0).view(1, 3, 1, 1), (2, 1, 2))
        >>> padded[0, :, 0].tolist(), padding
        ([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], (1, 0, 1))
    """
    sides = video.shape[-3:]
    t, h, w = (-side % p for side, p in zip(sides, patch, strict=True))
    frames, rows, columns = (torch.arange(n, device=video.device) for n in (sides[0] + t, sides[1] + h, sides[2] + w))
    video = video.index_select(-3, (frames - t).clamp(min=0)).index_select(-2, rows.clamp(max=sides[1] - 1))
    return video.index_select(-1, columns.clamp(max=sides[2] - 1)), (t, h, w)


def crop_padding(
    video: Shaped[Tensor, "*lead tp hp wp"], padding: tuple[int, int, int]
) -> Shaped[Tensor, "*lead t h w"]:
    """Take off the ``(frames, rows, columns)`` that :func:`pad_to_patch` added.

    Example:
        >>> crop_padding(torch.zeros(3, 6, 8, 12), (1, 1, 3)).shape
        torch.Size([3, 5, 7, 9])
    """
    t, h, w = padding
    return video[..., t:, : video.shape[-2] - h, : video.shape[-1] - w]


def conv3d_weight_to_linear(weight: Float[Tensor, "d c pt ph pw"]) -> Float[Tensor, "d p"]:
    """The linear weight on folded patches that equals a ``Conv3d`` of kernel = stride = patch. Lossless.

    Example:
        >>> conv3d_weight_to_linear(torch.zeros(8, 3, 2, 4, 4)).shape
        torch.Size([8, 96])
    """
    return rearrange(weight, "d c pt ph pw -> d (pt ph pw c)")


def linear_weight_to_conv3d(weight: Float[Tensor, "d p"], patch: Patch) -> Float[Tensor, "d c pt ph pw"]:
    """The ``Conv3d`` weight (kernel = stride = patch) that equals a linear weight on folded patches. Lossless.

    Raises:
        ValueError: the width of ``weight`` is not a multiple of ``pt·ph·pw``.

    Example:
        >>> linear_weight_to_conv3d(torch.zeros(8, 96), (2, 4, 4)).shape
        torch.Size([8, 3, 2, 4, 4])
    """
    if weight.shape[-1] % math.prod(patch):
        raise ValueError(f"weight has width {weight.shape[-1]}, not a multiple of patch={tuple(patch)}")
    pt, ph, pw = patch
    return rearrange(weight, "d (pt ph pw c) -> d c pt ph pw", pt=pt, ph=ph, pw=pw)


class Patchify(nn.Module):
    """:func:`fold`, then one linear map ``proj``: the tubelet embedding.

    Args:
        patch: ``(pt, ph, pw)``.
        channels: of the video.
        dim: width of the tokens.
        bias: give ``proj`` a bias.

    Raises:
        ValueError: at the call, a side does not divide or the channels are not ``channels``.

    Example:
        >>> patchify = Patchify((1, 2, 2), channels=4, dim=16)
        >>> patchify(torch.randn(2, 4, 3, 8, 8)).shape
        torch.Size([2, 48, 16])
        >>> patchify([torch.randn(4, 3, 8, 8), torch.randn(4, 1, 4, 2)]).shape
        torch.Size([50, 16])
    """

    def __init__(
        self,
        patch: Patch,
        channels: int,
        dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.proj = nn.Linear(math.prod(patch) * channels, dim, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform over the flattened patch, zero bias (DiT's initialisation)."""
        _xavier_(self.proj)

    def forward(
        self, video: Float[Tensor, "b c t h w"] | Sequence[Float[Tensor, "c _ _ _"]]
    ) -> Float[Tensor, "*lead d"]:
        """A batch ``(b, c, T, H, W)`` to ``(b, n, d)``, or a list of ``(c, T_i, H_i, W_i)`` to packed ``(n, d)``."""
        patches = fold(video, self.patch) if isinstance(video, Tensor) else fold_packed(video, self.patch)[0]
        if patches.shape[-1] != self.proj.in_features:
            channels = patches.shape[-1] // math.prod(self.patch)
            raise ValueError(f"video has {channels} channels, but Patchify was made for channels={self.channels}")
        tokens: Tensor = self.proj(patches)
        return tokens

    if TYPE_CHECKING:

        def __call__(
            self, video: Float[Tensor, "b c t h w"] | Sequence[Float[Tensor, "c _ _ _"]]
        ) -> Float[Tensor, "*lead d"]: ...


class Unpatchify(nn.Module):
    """One linear map ``proj``, then :func:`unfold`: tokens back to video.

    Args:
        patch: ``(pt, ph, pw)``.
        channels: of the video.
        dim: width of the tokens.
        bias: give ``proj`` a bias.

    Raises:
        ValueError: at the call, the grid or grids do not have the number of tokens.

    Example:
        >>> unpatchify = Unpatchify((1, 2, 2), channels=4, dim=16)
        >>> unpatchify(torch.randn(2, 48, 16), Grid(3, 4, 4)).shape
        torch.Size([2, 4, 3, 8, 8])
        >>> [video.shape for video in unpatchify(torch.randn(50, 16), [Grid(3, 4, 4), Grid(1, 2, 1)])]
        [torch.Size([4, 3, 8, 8]), torch.Size([4, 1, 4, 2])]
    """

    def __init__(
        self,
        patch: Patch,
        channels: int,
        dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.proj = nn.Linear(dim, math.prod(patch) * channels, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, zero bias; a model that must start at zero zeroes ``proj`` itself."""
        _xavier_(self.proj)

    def forward(
        self, tokens: Float[Tensor, "*lead d"], grid: Grid | Sequence[Grid]
    ) -> Float[Tensor, "b c t h w"] | list[Float[Tensor, "c _ _ _"]]:
        """``(b, n, d)`` and one grid to a batch, or packed ``(n, d)`` and a grid per sample to a list of videos."""
        patches: Tensor = self.proj(tokens)
        if isinstance(grid, Grid):
            return unfold(patches, grid, self.patch)
        return unfold_packed(patches, grid, self.patch)

    if TYPE_CHECKING:

        @overload
        def __call__(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b c t h w"]: ...
        @overload
        def __call__(self, tokens: Float[Tensor, "n d"], grid: Sequence[Grid]) -> list[Float[Tensor, "c _ _ _"]]: ...
        def __call__(self, tokens: Tensor, grid: Grid | Sequence[Grid]) -> Tensor | list[Tensor]: ...


@torch.no_grad()
def central_frame_(
    patchify: Patchify, weight: Float[Tensor, "d c ph pw"], bias: Float[Tensor, " d"] | None = None
) -> None:
    """Start a tubelet embedding as an image embedding of its middle frame (ViViT, section 3.4).

    The frame ``pt // 2`` of the kernel gets the image weight and every other frame zero; the released JAX code zeroes
    the wrong axis in its random variant, so follow the paper.

    Args:
        patchify: filled in place.
        weight: of the image model's ``Conv2d`` with kernel = stride = ``(ph, pw)``.
        bias: of the same; None means zero.

    Raises:
        ValueError: the sizes disagree, or ``bias`` is given and ``patchify`` has none.

    Example:
        >>> patchify = Patchify((3, 1, 1), channels=1, dim=1)
        >>> central_frame_(patchify, torch.full((1, 1, 1, 1), 6.0))
        >>> patchify.proj.weight.tolist()
        [[0.0, 6.0, 0.0]]
    """
    kernel = torch.zeros_like(weight)[:, :, None].repeat_interleave(patchify.patch[0], dim=2)
    kernel[:, :, patchify.patch[0] // 2] = weight
    _fill_(patchify, kernel, bias)


@torch.no_grad()
def inflate_(patchify: Patchify, weight: Float[Tensor, "d c ph pw"], bias: Float[Tensor, " d"] | None = None) -> None:
    """Start a tubelet embedding as the mean of an image embedding over its frames (ViViT, section 3.4).

    Args:
        patchify: filled in place; every frame gets ``weight / pt``.
        weight: of the image model, as in :func:`central_frame_`.
        bias: of the same.

    Raises:
        ValueError: the sizes disagree, or ``bias`` is given and ``patchify`` has none.

    Example:
        >>> patchify = Patchify((3, 1, 1), channels=1, dim=1)
        >>> inflate_(patchify, torch.full((1, 1, 1, 1), 6.0))
        >>> patchify.proj.weight.tolist()
        [[2.0, 2.0, 2.0]]
    """
    frames = patchify.patch[0]
    _fill_(patchify, weight[:, :, None].repeat_interleave(frames, dim=2) / frames, bias)


def _fill_(patchify: Patchify, kernel: Float[Tensor, "d c pt ph pw"], bias: Tensor | None) -> None:
    """Copy a Conv3d kernel and bias into ``patchify``."""
    proj = patchify.proj
    expected = (proj.out_features, patchify.channels, *patchify.patch)
    if tuple(kernel.shape) != expected:
        raise ValueError(f"weight makes a (d, c, pt, ph, pw) kernel {tuple(kernel.shape)}, but patchify has {expected}")
    if bias is not None and proj.bias is None:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, but patchify was made with bias=False")
    proj.weight.copy_(conv3d_weight_to_linear(kernel))
    if proj.bias is not None:
        proj.bias.copy_(torch.zeros_like(proj.bias) if bias is None else bias)


def _check_rank(name: str, values: Tensor, axes: str) -> torch.Size:
    if values.ndim != len(axes.split()):
        raise ValueError(f"{name} must be ({', '.join(axes.split())}), got shape {tuple(values.shape)}")
    return values.shape


def _token_sides(video_shape: Sequence[int], patch: Patch) -> tuple[int, int, int]:
    sides = tuple(video_shape[-3:])
    if min(patch) < 1:
        raise ValueError(f"patch must be positive, got {tuple(patch)} for a video of {tuple(video_shape[-3:])}")
    if any(side % p for side, p in zip(sides, patch, strict=True)):
        raise ValueError(f"video (t, h, w)={sides} is not a multiple of patch={tuple(patch)}; see pad_to_patch")
    t, h, w = (side // p for side, p in zip(sides, patch, strict=True))
    return t, h, w


def _xavier_(projection: nn.Linear) -> None:
    nn.init.xavier_uniform_(projection.weight)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
