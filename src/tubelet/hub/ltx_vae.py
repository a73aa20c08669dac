"""The checkpoints of LTX-Video's autoencoders in the form of diffusers' ``AutoencoderKLLTXVideo``, both ways.

Theirs counts the scales of the decoder from the coarsest; the weights of its noise keep axes of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.ltx_vae import LTXAutoencoder, LTXAutoencoderConfig

__all__ = ["LTX_VAE", "ltx_vae_config_from_diffusers", "ltx_vae_config_to_diffusers", "ltx_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["LTXVideoDownBlock3D"] * 4,
    "decoder_block_out_channels": [128, 256, 512, 512],
    "layers_per_block": [4, 3, 3, 3, 4],
    "decoder_layers_per_block": [4, 3, 3, 3, 4],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_spatio_temporal_scaling": [True, True, True, False],
    "decoder_inject_noise": [False] * 5,
    "downsample_type": ["conv"] * 4,
    "upsample_residual": [False] * 4,
    "upsample_factor": [1] * 4,
    "timestep_conditioning": False,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
    "spatial_compression_ratio": None,
    "temporal_compression_ratio": None,
}
_FIXED = {"patch_size_t": 1, "resnet_norm_eps": 1e-6, "scaling_factor": 1.0, "encoder_causal": True}
_PLAIN, _FOLDING = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
_TYPES = {"conv": "conv", "spatial": "space", "temporal": "time", "spatiotemporal": "both"}


def ltx_vae_config_from_diffusers(config: Mapping[str, Any]) -> LTXAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `LTXAutoencoder`.

    Example:
        >>> ltx_vae_config_from_diffusers({"decoder_causal": True}).causal
        True
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderKLLTXVideo")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    widths, changes = _scales(c)
    ours = LTXAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        patch=c["patch_size"],
        widths=widths,
        depths=tuple(c["layers_per_block"]),
        changes=changes,
        decoder_widths=tuple(c["decoder_block_out_channels"]),
        decoder_depths=tuple(c["decoder_layers_per_block"]),
        doubles=tuple(c["decoder_spatio_temporal_scaling"]),
        narrows=tuple(c["upsample_factor"]),
        shortcuts=tuple(c["upsample_residual"]),
        noise=tuple(c["decoder_inject_noise"]),
        timed=c["timestep_conditioning"],
        causal=c["decoder_causal"],
    )
    for name in ("temporal", "spatial"):
        ratio, factor = c[f"{name}_compression_ratio"], getattr(ours.factors, name)
        if ratio not in (None, factor):
            raise ValueError(f"{name}_compression_ratio={ratio}, but its scales make {factor}")
    return ours


def _scales(c: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Widths of the encoder with that of its middle, and its changes of scale."""
    widths, kinds = [*c["block_out_channels"]], {*c["down_block_types"]}
    if kinds == {_PLAIN}:
        return (*widths, widths[-1]), tuple("conv" if scales else "none" for scales in c["spatio_temporal_scaling"])
    if kinds != {_FOLDING}:
        raise ValueError(f"down_block_types={c['down_block_types']!r} must all be {_PLAIN} or all {_FOLDING}")
    scaling = c["spatio_temporal_scaling"]
    if unknown := [name for name in c["downsample_type"] if name not in _TYPES]:
        raise ValueError(f"downsample_type {unknown[0]!r} must be one of {[*_TYPES]}")
    types = [_TYPES[name] for name in c["downsample_type"]]
    changes = tuple(change if scales else "none" for change, scales in zip(types, scaling, strict=False))
    pairs = zip(changes, widths[:-1], widths[1:], strict=False)
    if wider := [pair for pair in pairs if pair[0] in ("none", "conv") and pair[1] != pair[2]]:
        raise ValueError(f"block_out_channels={widths} change where {_FOLDING} keeps them: {wider}")
    return tuple(widths), changes


def ltx_vae_config_to_diffusers(config: LTXAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.vae.families import ltx_vae_0_9_5
        >>> ltx_vae_config_to_diffusers(ltx_vae_0_9_5())["downsample_type"]
        ['spatial', 'temporal', 'spatiotemporal', 'spatiotemporal']
    """
    names, plain = {ours: theirs for theirs, ours in _TYPES.items()}, {*config.changes} <= {"conv", "none"}
    if plain and config.widths[-1] != config.widths[-2]:
        raise ValueError(f"widths {config.widths} must end in two equal ones, since {_PLAIN} widens for the next scale")
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": [*(config.widths[:-1] if plain else config.widths)],
        "down_block_types": [_PLAIN if plain else _FOLDING] * len(config.changes),
        "decoder_block_out_channels": [*config.decoder_widths],
        "layers_per_block": [*config.depths],
        "decoder_layers_per_block": [*config.decoder_depths],
        "spatio_temporal_scaling": [change != "none" for change in config.changes],
        "decoder_spatio_temporal_scaling": [*config.doubles],
        "decoder_inject_noise": [*config.noise],
        "downsample_type": [names.get(change, "conv") for change in config.changes],
        "upsample_residual": [*config.shortcuts],
        "upsample_factor": [*config.narrows],
        "timestep_conditioning": config.timed,
        "patch_size": config.patch,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": 1.0,
        "encoder_causal": True,
        "decoder_causal": config.causal,
        "spatial_compression_ratio": None if plain else config.factors.spatial,
        "temporal_compression_ratio": None if plain else config.factors.temporal,
    }


def ltx_vae_keys(config: LTXAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import ltx_vae_0_9
        >>> groups, _ = ltx_vae_keys(ltx_vae_0_9()).groups(["decoder.embed.conv.bias"], "ours")
        >>> groups[0].theirs
        ('decoder.conv_in.conv.bias',)
    """
    statistics = (Entry((f"latent_{name}",), (f"latents_{name}",)) for name in ("mean", "std"))
    return KeyMap((*statistics, *_encoder(config), *(_timed(config) if config.timed else _decoder(config))))


def _encoder(config: LTXAutoencoderConfig) -> Sequence[Entry]:
    stage, theirs = "encoder.stages.*", "encoder.down_blocks.*"
    down = f"{theirs}.downsamplers.0"
    return (
        *renamed("encoder.embed.conv", "encoder.conv_in.conv"),
        *_block(f"{stage}.*", f"{theirs}.resnets.*"),
        *renamed(f"{stage}.change.conv", f"{down}.conv"),
        *renamed(f"{stage}.change.branch.conv.conv", f"{down}.conv.conv"),
        *_block(f"{stage}.widen", f"{theirs}.conv_out"),
        *_block("encoder.middle.*", "encoder.mid_block.resnets.*"),
        *renamed("encoder.head.conv.conv", "encoder.conv_out.conv"),
    )


def _decoder(config: LTXAutoencoderConfig) -> Sequence[Entry]:
    return (
        *renamed("decoder.embed.conv", "decoder.conv_in.conv"),
        *_block("decoder.middle.*", "decoder.mid_block.resnets.*", config.noise[-1]),
        *(entry for at, scale in enumerate(_coarsest_first(config)) for entry in _up(config, at, scale)),
        *renamed("decoder.head.conv.conv", "decoder.conv_out.conv"),
    )


def _coarsest_first(config: LTXAutoencoderConfig) -> list[int]:
    return [*reversed(range(len(config.decoder_widths)))]


def _up(config: LTXAutoencoderConfig, at: int, scale: int) -> Sequence[Entry]:
    ours, theirs, noise = f"decoder.stages.{at}", f"decoder.up_blocks.{at}", config.noise[scale]
    return (
        *_block(f"{ours}.widen", f"{theirs}.conv_in", noise),
        *_double(f"{ours}.change", theirs, config.shortcuts[scale]),
        *_block(f"{ours}.*", f"{theirs}.resnets.*", noise),
    )


def _timed(config: LTXAutoencoderConfig) -> Sequence[Entry]:
    """The middle is the first of our stages."""
    ups = (_timed_up(config, at, scale) for at, scale in enumerate(_coarsest_first(config)))
    return (
        *renamed("decoder.embed.conv", "decoder.conv_in.conv"),
        *_timed_stage("decoder.stages.0", "decoder.mid_block", config.noise[-1]),
        *(entry for entries in ups for entry in entries),
        *_time("decoder.head.time", "decoder.time_embedder"),
        Entry(("decoder.head.table.table",), ("decoder.scale_shift_table",)),
        *renamed("decoder.head.layer.conv.conv", "decoder.conv_out.conv"),
        Entry(("decoder.time_scale",), ("decoder.timestep_scale_multiplier",)),
    )


def _timed_up(config: LTXAutoencoderConfig, at: int, scale: int) -> Sequence[Entry]:
    ours, theirs = f"decoder.stages.{at + 1}", f"decoder.up_blocks.{at}"
    return (
        *_double(f"{ours}.change", theirs, config.shortcuts[scale]),
        *_timed_stage(ours, theirs, config.noise[scale]),
    )


def _timed_stage(ours: str, theirs: str, noise: bool) -> Sequence[Entry]:
    block = f"{theirs}.resnets.*"
    return (
        *_time(f"{ours}.time", f"{theirs}.time_embedder"),
        Entry((f"{ours}.blocks.*.table.table",), (f"{block}.scale_shift_table",)),
        *_half(f"{ours}.blocks.*.first", block, 1, noise),
        *_half(f"{ours}.blocks.*.second", block, 2, noise),
    )


def _time(ours: str, theirs: str) -> Sequence[Entry]:
    embedder = f"{theirs}.timestep_embedder"
    return (*renamed(f"{ours}.up", f"{embedder}.linear_1"), *renamed(f"{ours}.down", f"{embedder}.linear_2"))


def _double(ours: str, theirs: str, shortcut: bool) -> Sequence[Entry]:
    branch = ".branch" if shortcut else ""
    return renamed(f"{ours}.doubled{branch}.conv.conv", f"{theirs}.upsamplers.0.conv.conv")


def _block(ours: str, theirs: str, noise: bool = False) -> Sequence[Entry]:
    """Two convolutions; the norm and the convolution beside them where the width changes."""
    return (
        *_half(f"{ours}.branch.0", theirs, 1, noise),
        *_half(f"{ours}.branch.1", theirs, 2, noise),
        *renamed(f"{ours}.shortcut.norm.inner.inner", f"{theirs}.norm3"),
        *renamed(f"{ours}.shortcut.conv.inner", f"{theirs}.conv_shortcut.conv"),
    )


def _half(ours: str, theirs: str, number: int, noise: bool) -> Sequence[Entry]:
    """One convolution, and perhaps the weight of the noise behind it."""
    conv = f"{theirs}.conv{number}.conv"
    if not noise:
        return renamed(f"{ours}.conv.conv", conv)
    weight = Entry(
        (f"{ours}.conv.noise.weight",),
        (f"{theirs}.per_channel_scale{number}",),
        lambda scale: [scale.flatten()],
        lambda weight: [weight.reshape(-1, 1, 1)],
    )
    return (*renamed(f"{ours}.conv.conv.conv", conv), weight)


LTX_VAE = Family(
    LTXAutoencoder,
    "AutoencoderKLLTXVideo",
    ltx_vae_keys,
    ltx_vae_config_from_diffusers,
    ltx_vae_config_to_diffusers,
)
"""The adapter between :class:`tubelet.vae.families.LTXAutoencoder` and theirs. Example: ``LTX_VAE.keys(config)``."""
