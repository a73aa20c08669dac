"""A small causal autoencoder that begins as block PCA and learns what that leaves.

A video is cut into cells, 1×8×8 pixels of the first frame and 4×8×8 of the others. The best linear code of a cell is
its first principal components (Pearson, 1901; the Karhunen-Loève transform of image coding). Here this code is a
shortcut beside the convolutional encoder of :class:`tubelet.vae.CausalAutoencoder`, and its inverse one beside the
decoder. The convolutions add nothing at first, so training starts from the linear code that :func:`start_from`
measures, and learns what cells say about their neighbours. Both shortcuts are trained too.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + temporal·(t - 1)``,
``H = spatial·h``, ``W = spatial·w``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.blocks import GROUP, Device, FrameGroups, FrameUngroups
from tubelet.vae.causal import State
from tubelet.vae.chains import Residual
from tubelet.vae.coders import Decoder, Encoder
from tubelet.vae.config import CausalAutoencoderConfig
from tubelet.vae.factors import check_channels
from tubelet.vae.sizes import check_statistics
from tubelet.vae.statistics import ChannelCovariance
from tubelet.vae.video import VideoAutoencoder

__all__ = ["PrincipalAutoencoder", "PrincipalAutoencoderConfig", "principal_vae", "start_from"]

_LOGVAR = -8.0  # of the posterior at the start: a deviation of 0.02 beside latents of deviation 1


@dataclass(frozen=True, kw_only=True)
class PrincipalAutoencoderConfig(CausalAutoencoderConfig):
    """Sizes of a `PrincipalAutoencoder`: those of a `tubelet.vae.CausalAutoencoder`, and statistics.

    Args:
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: as for `CausalAutoencoderConfig`, or statistics of another number than the latent channels.

    Example:
        >>> PrincipalAutoencoderConfig(widths=(8, 16), depths=(1, 1)).factors
        Factors(temporal=4, spatial=8)
    """

    in_channels: int = 3
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_statistics(self)


class PrincipalAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; as it is made it encodes to zeros, and `start_from` gives it its linear code.

    Args:
        config: the sizes.

    Example:
        >>> vae = PrincipalAutoencoder(PrincipalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1)))
        >>> start_from(vae, [torch.rand(2, 3, 9, 16, 24)])
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 3, 2, 3]), torch.Size([1, 3, 9, 16, 24]))
    """

    encoder: Residual
    decoder: Residual

    def __init__(
        self, config: PrincipalAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        cells = (config.temporal, config.spatial)
        code = _Starting(FrameGroups(config.in_channels, 2 * config.latent_channels, *cells, **made))
        picture = _Starting(FrameUngroups(config.latent_channels, config.in_channels, *cells, **made))
        super().__init__(
            config, Residual(Encoder(config, **made), code), Residual(Decoder(config, **made), picture), **made
        )
        self._quieten()

    def reset_parameters(self) -> None:
        """Draw the convolutions anew; nothing comes through until `start_from`."""
        super().reset_parameters()
        self._quieten()

    def _quieten(self) -> None:
        encoder: Any = self.encoder
        decoder: Any = self.decoder
        for layer in (encoder.branch.project, decoder.branch.ungroups, encoder.shortcut.inner, decoder.shortcut.inner):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


class _Starting(nn.Module):
    """A change of scale that is told whether a video begins, as a streaming layer without a state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def reset_parameters(self) -> None:
        self.inner.reset_parameters()  # type: ignore[operator]

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        return self.inner(x, start=state is None), ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]: ...


@torch.no_grad()
def start_from(vae: PrincipalAutoencoder, videos: Iterable[Float[Tensor, "b c t h w"]]) -> None:
    """Make the shortcuts block PCA of these videos: unit-variance components in, and their inverse out.

    First frames and later ones have a code each. What the convolutions have learned stays, so call it before training.

    Args:
        vae: changed in place.
        videos: batches; together they should hold many times more cells than a cell has numbers.

    Raises:
        ValueError: no videos of more than one frame, videos that do not fit the config, or fewer numbers in a cell of
            the first frame than latent channels.

    Example:
        >>> vae = PrincipalAutoencoder(PrincipalAutoencoderConfig(latent_channels=4, widths=(8,), depths=(1,)))
        >>> start_from(vae, [torch.rand(2, 3, 9, 16, 24)])
        >>> vae.encode(torch.rand(1, 3, 9, 16, 24)).mode().shape
        torch.Size([1, 4, 3, 2, 3])
    """
    config: PrincipalAutoencoderConfig = vae.config
    sides = {"ph": config.spatial, "pw": config.spatial}
    seen: dict[str, ChannelCovariance] = {}
    for video in videos:
        check_channels("videos", video, config.in_channels)
        config.factors.check(*video.shape[2:], start=True)
        for name, part, frames in (("first", video[:, :, :1], 1), ("rest", video[:, :, 1:], config.temporal)):
            if part.shape[2]:
                more = ChannelCovariance.of(rearrange(part, GROUP, pt=frames, **sides).flatten(0, -2))
                seen[name] = seen[name] + more if name in seen else more
    if "rest" not in seen:
        raise ValueError(
            f"videos must hold at least one of more than one frame, got {'images only' if seen else 'none'}"
        )
    for name, covariance in seen.items():
        into, out = (getattr(half.shortcut.inner, name) for half in (vae.encoder, vae.decoder))
        _set_linear_code(into, out, covariance, config.latent_channels)


def _set_linear_code(into: nn.Linear, out: nn.Linear, covariance: ChannelCovariance, count: int) -> None:
    basis, std = covariance.principal(count)
    std = std.clamp(min=1e-3)  # components that hardly vary are not blown up
    analysis = (basis / std).T
    into.weight.zero_()
    into.weight[:count] = analysis
    into.bias[:count] = -analysis @ covariance.mean
    into.bias[count:] = _LOGVAR
    out.weight.copy_(basis * std)
    out.bias.copy_(covariance.mean)


def principal_vae() -> PrincipalAutoencoderConfig:
    """4×8×8 pixels to 16 channels, 1.9 M parameters: for minutes on a CPU.

    Example:
        >>> principal_vae().factors
        Factors(temporal=4, spatial=8)
    """
    return PrincipalAutoencoderConfig(widths=(64, 160), depths=(1, 2), decoder_depths=(2, 3))
