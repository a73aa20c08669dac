"""How well an autoencoder keeps handwriting, and the linear rival it has to beat.

``psnr_db = 10 log10(2² / mse)`` counts the *foreground* only: what has more than a tenth of full ink in the original,
and its eight neighbours. On the empty paper every method is perfect, which says nothing.

The rival is principal component analysis of blocks (K. Pearson, 1901; the Karhunen-Loève transform of image coding): a
block of 4x8x8 pixels, 1x8x8 for the first frame, becomes as many numbers as a latent position has channels. Blocks,
counts and first frame are those of a causal autoencoder of factors 4x8x8.

Videos are ``(1, t, h, w)`` in [-1, 1] with t = 1 + 4k and sides that are multiples of 8, of any sizes in one list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BlockPCA", "compression", "foreground", "psnr_db"]

_INK = -0.8
_FRAMES, _SIDE = 4, 8


def foreground(video: Float[Tensor, "1 t h w"]) -> Bool[Tensor, "1 t h w"]:
    """The pixels with more than a tenth of full ink (above -0.8), and their neighbours in the frame.

    Example:
        >>> video = torch.full((1, 1, 8, 8), -1.0)
        >>> video[0, 0, 3, 5] = 1
        >>> foreground(video).sum().item()
        9
    """
    ink = (video[0, :, None] > _INK).float()
    return F.max_pool2d(ink, 3, stride=1, padding=1)[None, :, 0] > 0


def psnr_db(originals: Sequence[Float[Tensor, "1 _ _ _"]], others: Sequence[Float[Tensor, "1 _ _ _"]]) -> float:
    """Peak signal to noise ratio, in dB, of the foreground pixels of all clips together; the peak is 2.

    Raises:
        ValueError: not as many ``others`` as originals, another shape, or no ink anywhere.

    Example:
        >>> original = torch.ones(1, 1, 8, 8)
        >>> round(psnr_db([original], [original - 0.2]), 4)
        20.0
    """
    shapes = [[tuple(video.shape) for video in videos] for videos in (originals, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"others must have the shapes of the originals, got {shapes[1]} for {shapes[0]}")
    masks = [foreground(video) for video in originals]
    pixels = sum(int(mask.sum()) for mask in masks)
    if pixels == 0:
        raise ValueError(f"originals must have ink above {_INK} somewhere, got none in {len(originals)} clips")
    squared = [((a - b).double() ** 2)[mask].sum() for a, b, mask in zip(originals, others, masks, strict=True)]
    error = float(torch.stack(squared).sum()) / pixels
    return 10 * math.log10(4 / error) if error else math.inf


def compression(videos: Sequence[Float[Tensor, "..."]], latents: Sequence[Float[Tensor, "..."]]) -> float:
    """How many pixels there are for each latent number, over all clips.

    Raises:
        ValueError: no latents.

    Example:
        >>> compression([torch.zeros(1, 5, 16, 16)], [torch.zeros(16, 2, 2, 2)])
        10.0
    """
    numbers = sum(latent.numel() for latent in latents)
    if numbers == 0:
        raise ValueError(f"latents must hold numbers, got {len(latents)} latents of {numbers} numbers")
    return sum(video.numel() for video in videos) / numbers


@dataclass(frozen=True, eq=False)
class BlockPCA:
    """Mean and principal directions of the blocks of first frames ``(64)`` and of later ones ``(256)``.

    Example:
        >>> from tubelet.demo import digits
        >>> clips = [c.video for c in digits.batch("train", 0, 0, 20, size=(5, 24, 24))]
        >>> pca = BlockPCA.fit(clips, coefficients=16)
        >>> pca.later_basis.shape, pca.reconstruct(clips[0]).shape
        (torch.Size([256, 16]), torch.Size([1, 5, 24, 24]))
    """

    first_mean: Float[Tensor, " p"]
    first_basis: Float[Tensor, "p c"]
    later_mean: Float[Tensor, " q"]
    later_basis: Float[Tensor, "q c"]

    @classmethod
    def fit(cls, videos: Sequence[Float[Tensor, "1 _ _ _"]], coefficients: int) -> "BlockPCA":
        """The best linear code of the blocks of these clips.

        Args:
            videos: at least one longer than a frame.
            coefficients: kept of each block.

        Raises:
            ValueError: more coefficients than the 64 pixels of a block, sizes that do not divide into blocks, or only
                images.
        """
        area = _SIDE * _SIDE
        if not 1 <= coefficients <= area:
            raise ValueError(f"coefficients must be in 1..{area}, got {coefficients}")
        parts = [_split(video) for video in videos]
        if not any(later.shape[1] for _, later in parts):
            raise ValueError(f"videos must hold a clip of more than one frame, got {len(parts)} images")
        first = torch.cat([_blocks(first, 1) for first, _ in parts])
        later = torch.cat([_blocks(later, _FRAMES) for _, later in parts])
        return cls(*_principal(first, coefficients), *_principal(later, coefficients))

    def reconstruct(self, video: Float[Tensor, "1 t h w"]) -> Float[Tensor, "1 t h w"]:
        """The video after its blocks went through the code.

        Raises:
            ValueError: a size that does not divide into blocks.
        """
        first, later = _split(video)
        heads = _through(_blocks(first, 1), self.first_mean, self.first_basis)
        tails = _through(_blocks(later, _FRAMES), self.later_mean, self.later_basis)
        return torch.cat([_unblocks(heads, first, 1), _unblocks(tails, later, _FRAMES)], dim=1)


def _split(video: Float[Tensor, "1 t h w"]) -> tuple[Float[Tensor, "1 1 h w"], Float[Tensor, "1 s h w"]]:
    t, h, w = video.shape[1:]
    if (t - 1) % _FRAMES or h % _SIDE or w % _SIDE:
        raise ValueError(
            f"a video needs 1 + {_FRAMES}k frames and sides in multiples of {_SIDE}, got (t, h, w) = ({t}, {h}, {w})"
        )
    return video[:, :1], video[:, 1:]


def _blocks(video: Float[Tensor, "1 s h w"], frames: int) -> Float[Tensor, "n p"]:
    return rearrange(video, "c (t f) (h a) (w b) -> (c t h w) (f a b)", f=frames, a=_SIDE, b=_SIDE)


def _unblocks(blocks: Float[Tensor, "n p"], like: Float[Tensor, "1 s h w"], frames: int) -> Float[Tensor, "1 s h w"]:
    sides = {"h": like.shape[2] // _SIDE, "w": like.shape[3] // _SIDE}
    return rearrange(blocks, "(t h w) (f a b) -> 1 (t f) (h a) (w b)", f=frames, a=_SIDE, b=_SIDE, **sides)


def _principal(blocks: Float[Tensor, "n p"], count: int) -> tuple[Float[Tensor, " p"], Float[Tensor, "p c"]]:
    """The mean and the directions of largest variance."""
    mean = blocks.double().mean(0)
    centred = blocks.double() - mean
    _, directions = torch.linalg.eigh(centred.T @ centred)
    return mean.to(blocks), directions[:, -count:].to(blocks)


def _through(blocks: Float[Tensor, "n p"], mean: Float[Tensor, " p"], basis: Float[Tensor, "p c"]) -> Tensor:
    return mean + (blocks - mean) @ basis @ basis.T
