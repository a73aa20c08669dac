"""LTX-Video's autoencoders (arXiv:2501.00103), to 0.9.1 and since 0.9.5, of the blocks of :mod:`tubelet.vae`.

Few scales with many channels: 4×4 pixels become channels at once, and time and space shrink 8 and 32 times. Every
convolution of the encoder is causal with copies of the first frame before it, so encoding streams. The published
decoders see frames on both sides, so the first latents do not decode to the first frames; in chunks, frames come as
soon as all latents that they see are there (:mod:`tubelet.vae.ahead`). Some of them know the noise level of the latents
and take the last step of diffusion themselves, and some add noise.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 8·(t - 1)``, ``H = 32·h``.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.conditioning import TimestepEmbedding
from tubelet.norms import LayerNorm
from tubelet.vae.ahead import advance
from tubelet.vae.blocks import ChannelNorm, Device
from tubelet.vae.causal import CausalConv3d, State, copies
from tubelet.vae.cells import CellsToChannels, ChannelsToCells, TileChannels
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual, SkipFrames
from tubelet.vae.clips import ClipConv3d
from tubelet.vae.factors import Factors, check_channels
from tubelet.vae.leads import Lead
from tubelet.vae.noise import FrameNoise
from tubelet.vae.over_channels import OverChannels
from tubelet.vae.posterior import DiagonalGaussian
from tubelet.vae.shortcuts import Depatch, MeanShortcut, Patch
from tubelet.vae.sizes import check_counts, check_widths
from tubelet.vae.timed import ModulatedConv, ShiftsAndScales, TimedBlock, TimedDecoder, TimedHead, TimedStage
from tubelet.vae.video import VideoAutoencoder

__all__ = ["LTXAutoencoder", "LTXAutoencoderConfig", "ltx_vae_0_9", "ltx_vae_0_9_1", "ltx_vae_0_9_5"]

STRIDES = {"none": (1, 1), "conv": (2, 2), "space": (1, 2), "time": (2, 1), "both": (2, 2)}
"""By what a change of scale divides time and space. ``conv`` is a convolution with that stride; ``space``, ``time`` and
``both`` move cells into channels, with a shortcut of means round it."""
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class LTXAutoencoderConfig:
    """Sizes of an `LTXAutoencoder`; all tuples go from the finest scale to the middle.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        patch: side in pixels of the squares that become channels first.
        widths: channels at each scale of the encoder and in its middle.
        depths: residual blocks at each scale of the encoder and in its middle.
        changes: what follows the blocks of each scale: ``"none"``, ``"conv"``, ``"space"``, ``"time"`` or ``"both"``.
        decoder_widths: channels of the decoder before each of its scales doubles and narrows.
        decoder_depths: residual blocks at each scale of the decoder and in its middle.
        doubles: whether each scale of the decoder doubles time and space.
        narrows: by what each such change divides the channels.
        shortcuts: whether each has a shortcut without weights round it.
        noise: whether the blocks of each scale and of the middle add noise.
        timed: whether the decoder knows the noise level of the latents.
        causal: whether the decoder is causal; the published ones are not.

    Raises:
        ValueError: sizes that are not positive, tuples of other lengths than the scales, changes of another name, or an
            encoder and a decoder that do not have the same factors or cannot be joined.

    Example:
        >>> ltx_vae_0_9_5().factors
        Factors(temporal=8, spatial=32)
    """

    in_channels: int = 3
    latent_channels: int = 128
    patch: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512, 512)
    depths: tuple[int, ...] = (4, 3, 3, 3, 4)
    changes: tuple[str, ...] = ("conv", "conv", "conv", "none")
    decoder_widths: tuple[int, ...] = (128, 256, 512, 512)
    decoder_depths: tuple[int, ...] = (4, 3, 3, 3, 4)
    doubles: tuple[bool, ...] = (True, True, True, False)
    narrows: tuple[int, ...] = (1, 1, 1, 1)
    shortcuts: tuple[bool, ...] = (False, False, False, False)
    noise: tuple[bool, ...] = (False, False, False, False, False)
    timed: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "patch")
        scales, decoder_scales = len(self.widths) - 1, len(self.decoder_widths)
        check_widths(self, "widths")
        check_widths(self, "depths", scales=scales + 1)
        check_widths(self, "decoder_widths")
        check_widths(self, "decoder_depths", scales=decoder_scales + 1)
        check_widths(self, "narrows", scales=decoder_scales)
        lengths = {
            "changes": scales,
            "doubles": decoder_scales,
            "shortcuts": decoder_scales,
            "noise": decoder_scales + 1,
        }
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} {getattr(self, name)} must have {length} values")
        if unknown := [change for change in self.changes if change not in STRIDES]:
            raise ValueError(f"changes must be of {[*STRIDES]}, not {unknown}")
        strides = [STRIDES[change] for change in self.changes]
        made = [2 ** sum(stride[axis] > 1 for stride in strides) for axis in (0, 1)]
        if made != [2 ** sum(self.doubles)] * 2:
            raise ValueError(f"changes {self.changes} divide time and space by {made}, but doubles are {self.doubles}")
        self._check_joints()

    def _check_joints(self) -> None:
        """Whether each scale of the decoder takes the channels of the one before it."""
        for scale, before in self.before.items():
            width, narrows = self.decoder_widths[scale], self.narrows[scale]
            if width % narrows or (narrows > 1 and not self.doubles[scale]):
                raise ValueError(
                    f"narrows {self.narrows} must divide decoder_widths {self.decoder_widths} where doubled"
                )
            if self.shortcuts[scale] and (width % 8 or 8 % narrows):
                raise ValueError(f"shortcuts {self.shortcuts} need eighths of decoder_widths {self.decoder_widths}")
            if before != width and (narrows > 1 or self.timed):
                raise ValueError(
                    f"decoder_widths {self.decoder_widths}: {before} channels come to scale {scale} of {width}, "
                    "but only a scale that does not narrow and has no time can change them"
                )

    @property
    def latent_mean(self) -> tuple[float, ...]:
        """Zeros, before the weights bring those of their training."""
        return ()

    @property
    def latent_std(self) -> tuple[float, ...]:
        """Ones, before the weights bring those of their training."""
        return ()

    @property
    def before(self) -> dict[int, int]:
        """The channels that come to each scale of the decoder, coarsest first."""
        found, width = {}, self.decoder_widths[-1]
        for scale in reversed(range(len(self.decoder_widths))):
            found[scale], width = width, self.decoder_widths[scale] // self.narrows[scale]
        return found

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(2 ** sum(self.doubles), self.patch * 2 ** sum(self.doubles))


class LTXAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; what it decodes is not clamped, and its statistics are stored with the weights.

    Unless the config says ``causal``, the decoder sees later latents, and ``decode_chunk`` has to be told which chunks
    are not the last.

    Args:
        config: the sizes.

    Example:
        >>> sizes = {"widths": (8, 8), "depths": (1, 1), "changes": ("conv",), "decoder_widths": (8,)}
        >>> sizes |= {"decoder_depths": (1, 1), "doubles": (True,), "narrows": (1,), "shortcuts": (True,)}
        >>> vae = LTXAutoencoder(LTXAutoencoderConfig(**sizes, noise=(False, False)))
        >>> z = vae.encode(torch.zeros(1, 3, 5, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 128, 3, 2, 3]), torch.Size([1, 3, 5, 16, 24]))
    """

    def __init__(
        self, config: LTXAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        sides = (_encoder(config, **made), _decoder(config, **made))
        super().__init__(config, *sides, posterior=DiagonalGaussian.shared, stored=True, **made)

    def decode(
        self, z: Float[Tensor, "b z lt lh lw"], time: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c t h w"]:
        """The video of whole latents; `unscale` first what a diffusion model made.

        Args:
            z: the latents.
            time: for a decoder that knows it, the noise level of each sample's latents, from 0 to 1; None for clean.

        Raises:
            ValueError: a channel count other than the config's, no frame, or a time for a decoder that has none.
        """
        return super().decode(z) if time is None else self.decode_chunk(z, None, time)[0]

    def decode_chunk(
        self,
        z: Float[Tensor, "b z lt lh lw"],
        state: State | None = None,
        time: Float[Tensor, " b"] | None = None,
        *,
        last: bool = True,
    ) -> tuple[Float[Tensor, "b c t h w"], State]:
        """Decode the next latent frames; the chunks' frames end to end are the whole video.

        Args:
            z: the next latent frames, any number.
            state: what the previous call returned; None at the start.
            time: as in `decode`, the same for all chunks.
            last: whether the video ends with these latents. A decoder that sees later latents keeps back the frames
                that do, none to all of a chunk's, and gives them with the next chunks; a causal one needs not know.

        Returns:
            The frames that see no later latents, perhaps none; and the state for the next call.

        Raises:
            ValueError: as in `decode`; the state of a clip that has ended, where the decoder is not causal.

        Example:
            >>> sizes = {"widths": (8, 8), "depths": (1, 1), "changes": ("conv",), "decoder_widths": (8,)}
            >>> sizes |= {"decoder_depths": (1, 1), "doubles": (True,), "narrows": (1,), "shortcuts": (True,)}
            >>> vae = LTXAutoencoder(LTXAutoencoderConfig(**sizes, noise=(False, False)))
            >>> head, state = vae.decode_chunk(torch.zeros(1, 128, 9, 2, 2), last=False)
            >>> tail, state = vae.decode_chunk(torch.zeros(1, 128, 1, 2, 2), state)
            >>> head.shape[2], tail.shape[2]
            (6, 13)
        """
        check_channels("z", z, self.config.latent_channels)
        if time is not None and not self.config.timed:
            raise ValueError(f"time is {time.tolist()}, but this decoder knows no time")
        given = () if time is None else (time,)
        if self.config.causal or (last and state is None):
            video, state = self.decoder(z, state, *given)
            return video, state
        made, state = advance(self.decoder, z, state, *given, last=last)
        return self._none(z) if made is None else made, state

    @property
    def looks_ahead(self) -> bool:
        """Whether decoded frames depend on later latents, so that ``decode_chunk`` has to know the last chunk."""
        return not self.config.causal

    def _none(self, z: Tensor) -> Tensor:
        """No frames."""
        height, width = (side * self.config.factors.spatial for side in z.shape[3:])
        return z.new_zeros(z.shape[0], self.config.in_channels, 0, height, width)


def _encoder(config: LTXAutoencoderConfig, **made: Any) -> Chain:
    """Video to means and one log variance: scales from fine to coarse, the middle, the head."""
    widths, z = config.widths, config.latent_channels
    conv: Any = partial(CausalConv3d, before=copies, **made)
    return Chain(
        patch=PerFrame(Patch(config.patch)),
        embed=conv(config.in_channels * config.patch**2, widths[0]),
        stages=Chain(*(_down(config, i, conv, **made) for i in range(len(config.changes)))),
        middle=Chain(**_blocks(widths[-1], config.depths[-1], conv, noise=False, **made)),
        head=NormedConv(_norm(widths[-1]), conv(widths[-1], z + 1)),
    )


def _down(config: LTXAutoencoderConfig, scale: int, conv: Any, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then a change of scale, and of width."""
    width, after = config.widths[scale : scale + 2]
    change, (time, space) = config.changes[scale], STRIDES[config.changes[scale]]
    layers = _blocks(width, config.depths[scale], conv, noise=False, **made)
    if change in ("none", "conv"):
        if change == "conv":
            layers["change"] = conv(width, width, (3, 3, 3), (time, space, space))
        if width != after:
            layers["widen"] = _block(width, after, conv, noise=False, **made)
        return Chain(**layers)
    folded = Chain(
        lead=Lead(time - 1),
        conv=conv(width, after // (time * space**2)),
        cells=PerFrame(CellsToChannels(time, space)),
    )
    layers["change"] = Residual(folded, MeanShortcut(width, after, time, space, before=copies))
    return Chain(**layers)


def _decoder(config: LTXAutoencoderConfig, **made: Any) -> nn.Module:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    causal = partial(CausalConv3d, before=copies, **made)
    conv: Any = causal if config.causal else partial(ClipConv3d, around=copies, **made)
    scales, coarsest = [*reversed(range(len(config.decoder_widths)))], config.decoder_widths[-1]
    finest = config.decoder_widths[0] // config.narrows[0]
    embed, last = conv(config.latent_channels, coarsest), conv(finest, config.in_channels * config.patch**2)
    patch = PerFrame(Depatch(config.patch))
    if config.timed:
        stages = [_timed_middle(config, conv, **made), *(_timed_up(config, scale, conv, **made) for scale in scales)]
        time, table = TimestepEmbedding(2 * finest, **made), ShiftsAndScales(2, finest, **made)
        head = TimedHead(time, table, ModulatedConv(_norm(finest), last))
        return TimedDecoder(embed, stages, head, patch, **made)
    return Chain(
        embed=embed,
        middle=Chain(**_blocks(coarsest, config.decoder_depths[-1], conv, noise=config.noise[-1], **made)),
        stages=Chain(*(_up(config, scale, conv, **made) for scale in scales)),
        head=NormedConv(_norm(finest), last),
        patch=patch,
    )


def _up(config: LTXAutoencoderConfig, scale: int, conv: Any, **made: Any) -> Chain:
    """The decoder at one scale: perhaps another width, perhaps twice the time and space, then blocks."""
    before, width, noise = config.before[scale], config.decoder_widths[scale], config.noise[scale]
    layers: dict[str, nn.Module] = (
        {} if before == width else {"widen": _block(before, width, conv, noise=noise, **made)}
    )
    if config.doubles[scale]:
        layers["change"] = _double(config, scale, conv)
    narrow = width // config.narrows[scale]
    return Chain(**layers, **_blocks(narrow, config.decoder_depths[scale], conv, noise=noise, **made))


def _double(config: LTXAutoencoderConfig, scale: int, conv: Any) -> Chain:
    """Twice the time and space out of channels, the first frame standing alone."""
    width, narrows = config.decoder_widths[scale], config.narrows[scale]
    doubled: nn.Module = Chain(conv=conv(width, 8 * width // narrows), cells=PerFrame(ChannelsToCells(2, 2)))
    if config.shortcuts[scale]:
        copied = Chain(cells=PerFrame(ChannelsToCells(2, 2)), tile=PerFrame(TileChannels(8 // narrows)))
        doubled = Residual(doubled, copied)
    return Chain(doubled=doubled, lead=SkipFrames(1))


def _timed_middle(config: LTXAutoencoderConfig, conv: Any, **made: Any) -> TimedStage:
    width, depth, noise = config.decoder_widths[-1], config.decoder_depths[-1], config.noise[-1]
    blocks = [_timed_block(width, conv, noise=noise, **made) for _ in range(depth)]
    return TimedStage(TimestepEmbedding(4 * width, **made), PerFrame(nn.Identity()), blocks)


def _timed_up(config: LTXAutoencoderConfig, scale: int, conv: Any, **made: Any) -> TimedStage:
    width, depth, noise = config.decoder_widths[scale], config.decoder_depths[scale], config.noise[scale]
    narrow = width // config.narrows[scale]
    change = _double(config, scale, conv) if config.doubles[scale] else PerFrame(nn.Identity())
    blocks = [_timed_block(narrow, conv, noise=noise, **made) for _ in range(depth)]
    return TimedStage(TimestepEmbedding(4 * narrow, **made), change, blocks)


def _timed_block(width: int, conv: Any, *, noise: bool, **made: Any) -> TimedBlock:
    halves = [ModulatedConv(_norm(width), _noisy(conv(width, width), width, noise, **made)) for _ in range(2)]
    return TimedBlock(ShiftsAndScales(4, width, **made), *halves)


def _blocks(width: int, depth: int, conv: Any, *, noise: bool, **made: Any) -> dict[str, nn.Module]:
    return {str(i): _block(width, width, conv, noise=noise, **made) for i in range(depth)}


def _block(before: int, width: int, conv: Any, *, noise: bool, **made: Any) -> Residual:
    """Two convolutions, each after its norm; where the width changes, a norm and a 1×1 convolution beside them."""
    branch = Chain(
        NormedConv(_norm(before), _noisy(conv(before, width), width, noise, **made)),
        NormedConv(_norm(width), _noisy(conv(width, width), width, noise, **made)),
    )
    if before == width:
        return Residual(branch)
    norm, mix = OverChannels(LayerNorm(before, **made)), nn.Conv3d(before, width, 1, **made)
    return Residual(branch, Chain(norm=PerFrame(norm), conv=PerFrame(mix)))


def _noisy(conv: nn.Module, width: int, noise: bool, **made: Any) -> nn.Module:
    return Chain(conv=conv, noise=FrameNoise(width, **made)) if noise else conv


def _norm(width: int) -> ChannelNorm:
    return ChannelNorm(width, _EPS, affine=False)


def ltx_vae_0_9() -> LTXAutoencoderConfig:
    """Of LTX-Video 0.9.0: 8×32×32 to 128 channels.

    Example:
        >>> ltx_vae_0_9().factors
        Factors(temporal=8, spatial=32)
    """
    return LTXAutoencoderConfig()


def ltx_vae_0_9_1() -> LTXAutoencoderConfig:
    """Of 0.9.1: the encoder of 0.9.0, and a decoder that knows the noise level and adds noise.

    Example:
        >>> ltx_vae_0_9_1().timed
        True
    """
    return LTXAutoencoderConfig(
        decoder_widths=(256, 512, 1024),
        decoder_depths=(5, 6, 7, 8),
        doubles=(True,) * 3,
        narrows=(2,) * 3,
        shortcuts=(True,) * 3,
        noise=(True, True, True, False),
        timed=True,
    )


def ltx_vae_0_9_5() -> LTXAutoencoderConfig:
    """Of 0.9.5 and later: wider at the coarse scales, which space and time reach through channels.

    Example:
        >>> ltx_vae_0_9_5().changes
        ('space', 'time', 'both', 'both')
    """
    return LTXAutoencoderConfig(
        widths=(128, 256, 512, 1024, 2048),
        depths=(4, 6, 6, 2, 2),
        changes=("space", "time", "both", "both"),
        decoder_widths=(256, 512, 1024),
        decoder_depths=(5, 5, 5, 5),
        doubles=(True,) * 3,
        narrows=(2,) * 3,
        shortcuts=(True,) * 3,
        noise=(False,) * 4,
        timed=True,
    )
