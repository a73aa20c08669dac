"""Videos of any length through an autoencoder, clip by clip: what is held is one clip and a state of constant size.

A clip may have any number of frames; what comes out, end to end, is what the whole video gives.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.vae.causal import State
from tubelet.vae.posterior import DiagonalGaussian

__all__ = ["StreamingAutoencoder", "decode_stream", "encode_stream"]


@runtime_checkable
class StreamingAutoencoder(Protocol):
    """An autoencoder that takes a video in chunks; ``config.factors`` are its :class:`tubelet.vae.Factors`.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> vae: StreamingAutoencoder = CausalAutoencoder(digits(), device="meta")
    """

    config: Any

    def encode_chunk(self, video: Tensor, state: State | None = None) -> tuple[DiagonalGaussian, State]:
        """The posterior of the next frames, and the state after them."""
        ...

    def decode_chunk(self, z: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The frames of the next latents, and the state after them."""
        ...


def encode_stream(vae: StreamingAutoencoder, clips: Iterable[Float[Tensor, "b c _ h w"]]) -> Iterator[DiagonalGaussian]:
    """The posteriors of a video that comes in clips.

    Frames that do not fill a latent frame wait for the next clip.

    Args:
        vae: the autoencoder.
        clips: of any numbers of frames, together ``first + temporal·k`` (`tubelet.vae.Factors`).

    Raises:
        ValueError: after the last clip, frames are left over; or clips of two sizes.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> clips = torch.zeros(1, 1, 9, 16, 16).split(2, dim=2)
        >>> [p.mode().shape[2] for p in encode_stream(CausalAutoencoder(digits()), clips)]
        [1, 1, 1]
    """
    factors, state, waiting = vae.config.factors, None, None
    for clip in clips:
        if waiting is not None and (waiting.shape[:2], waiting.shape[3:]) != (clip.shape[:2], clip.shape[3:]):
            raise ValueError(
                f"clips must be of one size, but one of {tuple(clip.shape)} follows {tuple(waiting.shape)}"
            )
        frames = clip if waiting is None else torch.cat([waiting, clip], 2)
        count = frames.shape[2]
        first = factors.first if state is None else 0
        ready = count - (count - first) % factors.temporal if count >= first else 0
        waiting = frames[:, :, ready:].clone()
        if ready:
            posterior, state = vae.encode_chunk(frames[:, :, :ready], state)
            yield posterior
    if waiting is not None and waiting.shape[2]:
        raise ValueError(
            f"frames must be {factors.first} + {factors.temporal}·k together, but {waiting.shape[2]} are left over"
        )


def decode_stream(
    vae: StreamingAutoencoder, latents: Iterable[Float[Tensor, "b z _ h w"]], **given: Any
) -> Iterator[Float[Tensor, "b c _ _ _"]]:
    """The frames of latents that come in chunks; ``z.split(1, dim=2)`` decodes with the least memory.

    Frames that depend on later latents (LTX-Video's) come when these have come; an autoencoder of such frames says so
    by ``looks_ahead`` and is told which chunk is the last.

    Args:
        vae: the autoencoder.
        latents: of any numbers of latent frames.
        given: what else ``decode_chunk`` takes, such as the ``time`` of `LTXAutoencoder`.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> latents = torch.zeros(1, 16, 3, 2, 2).split(1, dim=2)
        >>> [x.shape[2] for x in decode_stream(CausalAutoencoder(digits()), latents)]
        [1, 4, 4]
    """
    if getattr(vae, "looks_ahead", False):
        yield from _decode_ahead(vae, latents, given)
        return
    state = None
    for z in latents:
        video, state = vae.decode_chunk(z, state, **given)
        yield video


def _decode_ahead(vae: Any, latents: Iterable[Tensor], given: dict[str, Any]) -> Iterator[Tensor]:
    """As `decode_stream`, each chunk when it is known whether another follows; chunks that give no frame are passed."""
    state, before = None, None
    for z in latents:
        if before is not None:
            video, state = vae.decode_chunk(before, state, last=False, **given)
            if video.shape[2]:
                yield video
        before = z
    if before is not None:
        yield vae.decode_chunk(before, state, **given)[0]
