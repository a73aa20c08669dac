"""A small causal video autoencoder: 1 + 4k frames to and from 1 + k latent frames, an image being one frame.

The encoder groups frames (the first alone, then fours), turns 4×4 pixels into channels, and alternates causal residual
blocks with learned 2×2 downsampling; the decoder is its mirror. Every layer is causal, so a latent frame depends on no
later pixel frame and a pixel frame on no later latent frame, and every layer can stream: chunk by chunk is the whole.
The design follows MAGVIT-v2 (arXiv:2310.05737) and the causal autoencoder of W.A.L.T (arXiv:2312.06662) at a size for
CPUs; the posterior is diagonal Gaussian (arXiv:1312.6114).

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + temporal·(t - 1)``,
``H = spatial·h``, ``W = spatial·w``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Grid
from tubelet.vae.blocks import Device
from tubelet.vae.causal import State
from tubelet.vae.coders import Decoder, Encoder
from tubelet.vae.config import CausalAutoencoderConfig
from tubelet.vae.factors import check_channels
from tubelet.vae.posterior import DiagonalGaussian

__all__ = ["CausalAutoencoder"]


class CausalAutoencoder(nn.Module):
    """Video to latents and back, whole or as a stream.

    ``latent_mean`` and ``latent_std``, one number for each latent channel, turn latents into the unit-variance numbers
    that a diffusion model wants (`scale`) and back (`unscale`); they are the identity until `set_latent_stats`.

    Args:
        config: the sizes.
        posterior: what the encoder's features say of the latents, with the ``in_channels`` it takes, such as
            :class:`tubelet.vae.quantise.CodeBottleneck`; None for a diagonal Gaussian.

    Raises:
        ValueError: a posterior of another number of latent channels than the config's.

    Example:
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig())
        >>> z = vae.encode(torch.zeros(2, 1, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([2, 16, 3, 2, 3]), torch.Size([2, 1, 9, 16, 24]))
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        config: CausalAutoencoderConfig,
        *,
        posterior: Callable[[Tensor], Any] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.posterior = DiagonalGaussian.of if posterior is None else posterior
        found = getattr(posterior, "latent_channels", config.latent_channels)
        if found != config.latent_channels:
            raise ValueError(f"posterior gives {found} latent channels, but the config has {config.latent_channels}")
        self.encoder = Encoder(config, getattr(posterior, "in_channels", None), device=device, dtype=dtype)
        self.decoder = Decoder(config, device=device, dtype=dtype)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, device=device, dtype=dtype))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw all weights anew and forget the latent statistics."""
        if isinstance(self.posterior, nn.Module):
            self.posterior.reset_parameters()  # type: ignore[operator]
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        nn.init.zeros_(self.latent_mean)
        nn.init.ones_(self.latent_std)

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Reconstruct: decode the mode of the posterior."""
        return self.decode(self.encode(video).mode())

    def encode(self, video: Float[Tensor, "b c t h w"]) -> Any:
        """The posterior over the latents of a whole video.

        Args:
            video: ``1 + temporal·k`` frames in [-1, 1], sides divisible by ``spatial``.

        Raises:
            ValueError: channels, frames or sides that do not fit the config.
        """
        return self.encode_chunk(video)[0]

    def decode(self, z: Float[Tensor, "b z lt lh lw"]) -> Float[Tensor, "b c t h w"]:
        """The video of whole latents (not scaled: `unscale` first what a diffusion model made).

        Raises:
            ValueError: a channel count other than the config's, or no frame.
        """
        return self.decode_chunk(z)[0]

    def encode_chunk(self, video: Float[Tensor, "b c t h w"], state: State | None = None) -> tuple[Any, State]:
        """Encode the next frames of a video; the chunks' posteriors end to end are the whole's.

        Args:
            video: ``1 + temporal·j`` frames at the start of a video, ``temporal·j`` frames after it.
            state: what the previous call returned; None at the start.

        Returns:
            The posterior of this chunk's latents, and the state for the next call.

        Raises:
            ValueError: channels, frames or sides that do not fit the config.

        Example:
            >>> vae, video = CausalAutoencoder(CausalAutoencoderConfig()), torch.zeros(1, 1, 9, 16, 16)
            >>> head, state = vae.encode_chunk(video[:, :, :5])
            >>> tail, state = vae.encode_chunk(video[:, :, 5:], state)
            >>> head.mode().shape[2], tail.mode().shape[2]
            (2, 1)
        """
        check_channels("video", video, self.config.in_channels)
        frames, height, width = video.shape[2:]
        self.config.factors.check(frames, height, width, start=state is None)
        moments, after = self.encoder(video, state)
        return self.posterior(moments), after

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
        return self.decoder(z, state)

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        """The latent sides of a video of ``frames × height × width``.

        Raises:
            ValueError: frames other than ``1 + temporal·k``, or sides that ``spatial`` does not divide.

        Example:
            >>> CausalAutoencoder(CausalAutoencoderConfig(), device="meta").latent_grid(17, 32, 48)
            Grid(t=5, h=4, w=6)
        """
        return self.config.factors.latent_grid(frames, height, width)

    def video_size(self, grid: Grid) -> tuple[int, int, int]:
        """Frames, height and width of the video of a latent grid, the inverse of `latent_grid`.

        Example:
            >>> CausalAutoencoder(CausalAutoencoderConfig(), device="meta").video_size(Grid(5, 4, 6))
            (17, 32, 48)
        """
        return self.config.factors.video_size(grid)

    def set_latent_stats(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Remember the mean and standard deviation of each latent channel over the training data.

        Raises:
            ValueError: not one value for each channel, a standard deviation that is not positive, or values that are
                not finite.

        Example:
            >>> vae = CausalAutoencoder(CausalAutoencoderConfig())
            >>> vae.set_latent_stats(torch.ones(16), 2 * torch.ones(16))
            >>> vae.scale(3 * torch.ones(1, 16, 1, 1, 1)).unique().item()
            1.0
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.latent_mean.shape:
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)}, but there are {self.config.latent_channels} channels"
                )
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} must be finite, got {values.tolist()}")
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, not {float(std.min())}")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def scale(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """Latents to unit variance: ``(z - latent_mean) / latent_std``.

        Raises:
            ValueError: a rank or a channel count other than the config's.
        """
        check_channels("z", z, self.config.latent_channels)
        return (z - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def unscale(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `scale`: ``z · latent_std + latent_mean``.

        Raises:
            ValueError: a rank or a channel count other than the config's.
        """
        check_channels("z", z, self.config.latent_channels)
        return z * _per_channel(self.latent_std) + _per_channel(self.latent_mean)

    if TYPE_CHECKING:

        def __call__(self, video: Tensor) -> Tensor: ...


def _per_channel(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
