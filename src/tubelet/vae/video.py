"""Any encoder and decoder of streaming layers as one video autoencoder.

What differs between autoencoders is in the two chains of layers and in the numbers of the config; what is common is
here: checks, whole videos and chunks of them, and the statistics of the latents.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + temporal·(t - 1)``,
``H = spatial·h``, ``W = spatial·w``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Grid
from tubelet.vae.blocks import Device
from tubelet.vae.causal import State
from tubelet.vae.courses import Course
from tubelet.vae.factors import Factors, check_channels
from tubelet.vae.posterior import DiagonalGaussian

__all__ = ["AutoencoderSizes", "Chunks", "VideoAutoencoder", "through"]


@runtime_checkable
class AutoencoderSizes(Protocol):
    """What `VideoAutoencoder` asks of a config; empty statistics stand for zeros and ones.

    Statistics are a number for each latent channel, or for each of its first frames, side by side (Cosmos has these).

    Example:
        >>> from tubelet.vae.families import wan_vae_2_1
        >>> sizes: AutoencoderSizes = wan_vae_2_1()
    """

    @property
    def in_channels(self) -> int:
        """Channels of the video."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        ...

    @property
    def latent_mean(self) -> Sequence[float]:
        """The mean of each latent channel over the training data."""
        ...

    @property
    def latent_std(self) -> Sequence[float]:
        """The standard deviation of each latent channel."""
        ...

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        ...


@dataclass(frozen=True)
class Chunks:
    """Into which chunks a whole video is cut, to hold less or because they are part of the answer; None for one chunk.

    Chunks of so many frames, the first of which takes what is left over as well: 9 and 8 of 17 frames in eights. That
    is CogVideoX's way, whose norms see one chunk at a time.

    Example:
        >>> Chunks.lengths(17, 8), Chunks.lengths(5, 8), Chunks.lengths(5, None)
        ([9, 8], [5], [5])
    """

    encode: int | None = None
    decode: int | None = None

    @staticmethod
    def lengths(frames: int, chunk: int | None) -> list[int]:
        """The numbers of frames of the chunks.

        Example:
            >>> Chunks.lengths(13, 2)
            [3, 2, 2, 2, 2, 2]
        """
        count = max(frames // chunk, 1) if chunk else 1
        rest = chunk or 0
        return [frames - (count - 1) * rest, *[rest] * (count - 1)]


class VideoAutoencoder(nn.Module):
    """Video to latents and back, whole or as a stream.

    ``latent_mean`` and ``latent_std`` of the config turn latents into the unit-variance numbers of the diffusion model
    (`scale`) and back (`unscale`).

    Args:
        config: channels, factors and statistics, besides whatever made the encoder and the decoder.
        encoder: a streaming layer, ``encoder(video, state) -> (moments, state)``.
        decoder: a streaming layer, ``decoder(latents, state) -> (video, state)``.
        posterior: what the moments say of the latents.
        chunks: how `encode` and `decode` cut a whole.
        stored: whether the statistics are stored with the weights; otherwise they are the config's alone.

    Example:
        >>> from tubelet.vae import Chain, PerFrame, Patch, Depatch
        >>> from tubelet.vae.families import WanAutoencoderConfig
        >>> sizes = WanAutoencoderConfig(latent_channels=6, widths=(8,), halve_time=(), patch=2)
        >>> down = Chain(PerFrame(Patch(2)))
        >>> vae = VideoAutoencoder(sizes, down, Chain(PerFrame(nn.Conv3d(6, 12, 1)), PerFrame(Depatch(2))))
        >>> z = vae.encode(torch.zeros(1, 3, 5, 4, 4)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 6, 5, 2, 2]), torch.Size([1, 3, 5, 4, 4]))
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        config: AutoencoderSizes,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        posterior: Callable[[Tensor], Any] = DiagonalGaussian.of,
        chunks: Chunks = Chunks(),
        stored: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.encoder, self.decoder = encoder, decoder
        self.posterior, self.chunks = posterior, chunks
        for name in ("latent_mean", "latent_std"):
            count = len(getattr(config, name)) or config.latent_channels
            blank = torch.empty(count, device=device, dtype=dtype)
            self.register_buffer(name, blank, persistent=stored)
        self._fill_statistics()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.encoder.reset_parameters()  # type: ignore[operator]
        self.decoder.reset_parameters()  # type: ignore[operator]
        self._fill_statistics()

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Reconstruct: decode the mode of the posterior."""
        return self.decode(self.encode(video).mode())

    def encode(self, video: Float[Tensor, "b c t h w"]) -> Any:
        """The posterior over the latents of a whole video.

        Args:
            video: ``1 + temporal·k`` frames in [-1, 1], sides divisible by ``spatial``; ``config.factors.padded`` makes
                such a video of any.

        Raises:
            ValueError: channels, frames or sides that do not fit the config.
        """
        self._check_video(video, start=True)
        return self.posterior(through(self.encoder, video, self.chunks.encode))

    def decode(self, z: Float[Tensor, "b z lt lh lw"]) -> Float[Tensor, "b c t h w"]:
        """The video of whole latents; `unscale` first what a diffusion model made.

        Raises:
            ValueError: a channel count other than the config's, or no frame.
        """
        check_channels("z", z, self.config.latent_channels)
        return through(self.decoder, z, self.chunks.decode)

    def encode_chunk(self, video: Float[Tensor, "b c t h w"], state: State | None = None) -> tuple[Any, State]:
        """Encode the next frames of a video; the chunks' posteriors end to end are the whole's.

        Args:
            video: ``1 + temporal·j`` frames at the start of a video, ``temporal·j`` frames after it.
            state: what the previous call returned; None at the start.

        Returns:
            The posterior of this chunk's latents, and the state for the next call.

        Raises:
            ValueError: channels, frames or sides that do not fit the config.
        """
        self._check_video(video, start=state is None)
        moments, state = self.encoder(video, state)
        return self.posterior(moments), state

    def decode_chunk(
        self, z: Float[Tensor, "b z lt lh lw"], state: State | None = None
    ) -> tuple[Float[Tensor, "b c t h w"], State]:
        """Decode the next latent frames; the chunks' frames end to end are the whole video.

        Args:
            z: the next latent frames, any number.
            state: what the previous call returned; None at the start.

        Returns:
            ``temporal`` frames for each latent frame (one for the first of the video), and the state for the next call.

        Raises:
            ValueError: a channel count other than the config's, or no frame.
        """
        check_channels("z", z, self.config.latent_channels)
        video, state = self.decoder(z, state)
        return video, state

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        """The latent sides of a video of ``frames × height × width``; errors as in `Factors.latent_grid`."""
        factors: Factors = self.config.factors
        return factors.latent_grid(frames, height, width)

    def video_size(self, grid: Grid) -> tuple[int, int, int]:
        """Frames, height and width of the video of a latent grid, the inverse of `latent_grid`."""
        factors: Factors = self.config.factors
        return factors.video_size(grid)

    def set_latent_stats(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Remember the mean and standard deviation of each latent channel over the training data, in the config too.

        Raises:
            ValueError: a config without fields for them, or one that refuses them: not one number for each channel, not
                finite, or a deviation that is not positive.

        Example:
            >>> from tubelet.vae.families import WaltAutoencoder, WaltAutoencoderConfig
            >>> sizes = WaltAutoencoderConfig(latent_channels=2, widths=(4,), depth=1, halve_time=())
            >>> vae = WaltAutoencoder(sizes)
            >>> vae.set_latent_stats(torch.ones(2), 2 * torch.ones(2))
            >>> vae.scale(3 * torch.ones(1, 2, 1, 1, 1)).unique().item(), vae.config.latent_std
            (1.0, (2.0, 2.0))
        """
        names = {field.name for field in fields(self.config)}
        if missing := sorted({"latent_mean", "latent_std"} - names):
            raise ValueError(f"{type(self.config).__name__} has no field {missing[0]}: it cannot hold statistics")
        if mean.shape != std.shape or mean.shape != (self.config.latent_channels,):
            shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
            raise ValueError(f"mean and std have shapes {shapes}, but there are {self.config.latent_channels} channels")
        self.config = replace(self.config, latent_mean=tuple(mean.tolist()), latent_std=tuple(std.tolist()))
        self.latent_mean = mean.to(self.latent_mean, copy=True)
        self.latent_std = std.to(self.latent_std, copy=True)

    def scale(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """Latents to unit variance: ``(z - latent_mean) / latent_std``.

        Raises:
            ValueError: a channel count other than the config's, or more frames than there are statistics of frames.
        """
        check_channels("z", z, self.config.latent_channels)
        return (z - self._spread(self.latent_mean, z)) / self._spread(self.latent_std, z)

    def unscale(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `scale`: ``z · latent_std + latent_mean``.

        Raises:
            ValueError: as in `scale`.
        """
        check_channels("z", z, self.config.latent_channels)
        return z * self._spread(self.latent_std, z) + self._spread(self.latent_mean, z)

    def _spread(self, values: Tensor, z: Tensor) -> Tensor:
        """Statistics of the channels, or of their frames, along latents that begin a video."""
        spread, frames = values.reshape(z.shape[1], -1, 1, 1), z.shape[2]
        if 1 < spread.shape[1] < frames:
            raise ValueError(f"z has {frames} frames, but there are statistics of the first {spread.shape[1]}")
        return spread[:, :frames]

    def _check_video(self, video: Tensor, *, start: bool) -> None:
        check_channels("video", video, self.config.in_channels)
        frames, height, width = video.shape[2:]
        self.config.factors.check(frames, height, width, start=start)

    def _fill_statistics(self) -> None:
        channels, config = self.config.latent_channels, self.config
        self.latent_mean.copy_(torch.tensor(tuple(config.latent_mean) or (0.0,) * channels, dtype=torch.float64))
        self.latent_std.copy_(torch.tensor(tuple(config.latent_std) or (1.0,) * channels, dtype=torch.float64))

    if TYPE_CHECKING:

        def __call__(self, video: Tensor) -> Tensor: ...


def through(layer: nn.Module, x: Tensor, chunk: int | None = None) -> Tensor:
    """A whole video through a streaming layer in chunks.

    Example:
        >>> from tubelet.vae import CausalConv3d
        >>> through(CausalConv3d(2, 3), torch.zeros(1, 2, 5, 4, 4), 2).shape
        torch.Size([1, 3, 5, 4, 4])
    """
    course, chunks = Course(layer), torch.split(x, Chunks.lengths(x.shape[2], chunk), 2)
    parts = [course(part, last=part is chunks[-1]) for part in chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
