"""From known pixels to known latents: which cells they determine, and what those cells hold.

The first frame is a latent frame of its own, then every ``temporal`` frames are one; a cell is ``spatial`` pixels wide.
A cell is known where all of its pixels are, though its latents depend a little on the pixels around and before it.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion import Known
from tubelet.pipeline import decode_latents, encode_videos
from tubelet.vae import CausalAutoencoder

__all__ = ["consistent", "filled", "known_latents"]


def filled(known: Known) -> Float[Tensor, "c t h w"]:
    """The video with a guess where it is unknown: the pixel's nearest known frame, else the mean of what is known.

    Example:
        >>> from tubelet.diffusion.tasks import place
        >>> filled(place({1: torch.full((1, 1, 1, 1), 7.0)}, frames=3)).flatten().tolist()
        [7.0, 7.0, 7.0]
    """
    video, mask = known.video, known.tokens
    frames = torch.arange(mask.shape[0], device=mask.device).reshape(-1, 1, 1)
    far = 2 * mask.shape[0]
    before = torch.where(mask, frames, -far).cummax(0).values
    after = torch.where(mask, frames, far).flip(0).cummin(0).values.flip(0)
    nearest = torch.where(frames - before <= after - frames, before, after)
    ever = mask.any(0)
    guess = video.gather(1, nearest.clamp(0, mask.shape[0] - 1).expand(video.shape))
    mean = torch.where(mask, video, 0).sum((1, 2, 3)) / mask.sum().clamp(min=1)
    return torch.where(ever, guess, mean[:, None, None, None])


def known_latents(vae: CausalAutoencoder, knowns: Sequence[Known]) -> list[Known]:
    """What is known of the latents of videos of which some pixels are known; equal sizes are encoded together.

    Raises:
        ValueError: a video that the autoencoder's factors do not divide.

    Example:
        >>> from tubelet.diffusion.tasks import extend
        >>> from tubelet.vae import digits
        >>> known, = known_latents(CausalAutoencoder(digits()), [extend(torch.zeros(1, 5, 16, 16), frames=13)])
        >>> known.video.shape, known.tokens[:, 0, 0].tolist()
        (torch.Size([16, 4, 2, 2]), [True, True, False, False])
    """
    latents = encode_videos(vae, [filled(known) for known in knowns])
    return [
        Known.of_video(latent, _cells(vae, known.tokens).all(-1), known.noise_level)
        for latent, known in zip(latents, knowns, strict=True)
    ]


def consistent(
    vae: CausalAutoencoder, knowns: Sequence[Known], patch: tuple[int, int, int] = (1, 1, 1)
) -> Callable[[list[Tensor]], list[Tensor]] | None:
    """A map of predicted latents to latents of videos that agree with the known pixels: decode, replace, encode.

    None where every patch of ``patch`` cells is known or unknown as a whole, so that holding those is all there is to
    do.

    Example:
        >>> from tubelet.diffusion.tasks import upsample
        >>> from tubelet.vae import digits
        >>> vae, known = CausalAutoencoder(digits()), upsample(torch.zeros(1, 3, 16, 16), factor=2)
        >>> agree = consistent(vae, [known])
        >>> agree([torch.zeros(16, 2, 2, 2)])[0].shape, consistent(vae, [])
        (torch.Size([16, 2, 2, 2]), None)
    """
    partly = [bool((cells.any(-1) & ~cells.all(-1)).any()) for cells in (_cells(vae, k.tokens, patch) for k in knowns)]
    members = [i for i, each in enumerate(partly) if each]

    def agree(latents: list[Tensor]) -> list[Tensor]:
        videos = decode_latents(vae, [latents[i] for i in members])
        again = encode_videos(vae, [_paste(knowns[i], video) for i, video in zip(members, videos, strict=True)])
        new = dict(zip(members, again, strict=True))
        return [new.get(i, latent) for i, latent in enumerate(latents)]

    return agree if members else None


def _paste(known: Known, video: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
    """The video with the known pixels in place, in its own dtype."""
    return rearrange(known.apply(rearrange(video, "c t h w -> t h w c")), "t h w c -> c t h w")


def _cells(
    vae: CausalAutoencoder, pixels: Bool[Tensor, "T H W"], patch: tuple[int, int, int] = (1, 1, 1)
) -> Bool[Tensor, "t h w p"]:
    """The pixels of each patch of cells; the first frame counts ``temporal`` times."""
    vae.latent_grid(*pixels.shape)  # refuses sides that are not whole cells
    whole = torch.cat([pixels[:1].expand(vae.config.temporal, -1, -1), pixels[1:]])
    a, b, c = (size * each for size, each in zip(_sides(vae), patch, strict=True))
    return rearrange(whole, "(t a) (h b) (w c) -> t h w (a b c)", a=a, b=b, c=c)


def _sides(vae: CausalAutoencoder) -> tuple[int, int, int]:
    return vae.config.temporal, vae.config.spatial, vae.config.spatial
