"""The checkpoints of deep-compression autoencoders in the form of diffusers' ``AutoencoderDC``, both ways.

Theirs has queries, keys and values as three linear layers where ours has one convolution, whose channels are the three
end to end. Decoders with batch norms, which some releases have, are another model.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tubelet.hub.convolutions import framewise, pointwise
from tubelet.hub.frame_blocks import one_scale
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.dc_vae import DCAutoencoder, DCAutoencoderConfig

__all__ = ["DC_VAE", "dc_vae_config_from_diffusers", "dc_vae_config_to_diffusers", "dc_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
_FIXED = {"encoder_out_shortcut": True, "decoder_in_shortcut": True, "decoder_conv_act_fn": "relu"}
_BLOCKS = {"ResBlock": False, "EfficientViTBlock": True}
_DOWN = {"pixel_unshuffle": "fold", "Conv": "stride", "conv": "stride"}
_UP = {"pixel_shuffle": "unfold", "interpolate": "copy"}


def dc_vae_config_from_diffusers(config: Mapping[str, Any]) -> DCAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `DCAutoencoder`.

    Example:
        >>> dc_vae_config_from_diffusers({}).attends
        (False, False, False, False, False, False)
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderDC")
    scales = len(c["encoder_block_out_channels"])
    sides = {side: _side(c, side, scales) for side in ("encoder", "decoder")}
    if sides["encoder"] != sides["decoder"]:
        raise ValueError(f"encoder and decoder differ: {sides['encoder']} and {sides['decoder']}")
    for name, known in (("decoder_norm_types", "rms_norm"), ("decoder_act_fns", "silu")):
        if {*_each(c[name], scales)} != {known}:
            raise ValueError(f"{name}={c[name]!r}, but this model has {known!r}")
    for name, kinds in (("downsample_block_type", _DOWN), ("upsample_block_type", _UP)):
        if c[name] not in kinds:
            raise ValueError(f"{name}={c[name]!r}, but known are {', '.join(kinds)}")
    widths, attends, kernels = sides["encoder"]
    scale = c["scaling_factor"]
    return DCAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=widths,
        depths=tuple(c["encoder_layers_per_block"]),
        decoder_depths=tuple(c["decoder_layers_per_block"]),
        attends=attends,
        head_dim=c["attention_head_dim"],
        kernels=kernels,
        down=_DOWN[c["downsample_block_type"]],  # type: ignore[arg-type]
        up=_UP[c["upsample_block_type"]],  # type: ignore[arg-type]
        latent_std=(1 / scale,) * c["latent_channels"] if scale != 1 else (),
    )


def _each(value: Any, scales: int) -> list[Any]:
    return [value] * scales if isinstance(value, str) else [*value]


def _side(c: Mapping[str, Any], side: str, scales: int) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]:
    """Widths, where it attends, and the kernels of the attention, which are the same wherever it attends."""
    kinds = _each(c[f"{side}_block_types"], scales)
    if not {*kinds} <= _BLOCKS.keys():
        raise ValueError(f"{side}_block_types={kinds!r}, but known are {', '.join(_BLOCKS)}")
    attends = tuple(_BLOCKS[kind] for kind in kinds)
    found = {tuple(k) for k, attending in zip(c[f"{side}_qkv_multiscales"], attends, strict=True) if attending}
    if len(found) > 1:
        raise ValueError(f"{side}_qkv_multiscales {sorted(found)} differ between scales")
    return tuple(c[f"{side}_block_out_channels"]), attends, found.pop() if found else (5,)


def dc_vae_config_to_diffusers(config: DCAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: statistics that differ between channels, or a mean, which theirs has not.

    Example:
        >>> from tubelet.vae.families import dc_vae_f32
        >>> dc_vae_config_to_diffusers(dc_vae_f32())["scaling_factor"]
        0.41407
    """
    scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderDC")
    if shift:
        raise ValueError(f"latent_mean {config.latent_mean}, but AutoencoderDC has none")
    kinds = ["EfficientViTBlock" if attends else "ResBlock" for attends in config.attends]
    kernels = [[*config.kernels] if attends else [] for attends in config.attends]
    written: dict[str, Any] = {"in_channels": config.in_channels, "latent_channels": config.latent_channels}
    for side, depths in (("encoder", config.depths), ("decoder", config.decoder_depths)):
        written[f"{side}_block_types"] = kinds
        written[f"{side}_block_out_channels"] = [*config.widths]
        written[f"{side}_layers_per_block"] = [*depths]
        written[f"{side}_qkv_multiscales"] = kernels
    return written | {
        **_FIXED,
        "attention_head_dim": config.head_dim,
        "upsample_block_type": "pixel_shuffle" if config.up == "unfold" else "interpolate",
        "downsample_block_type": "pixel_unshuffle" if config.down == "fold" else "Conv",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": scale,
    }


def dc_vae_keys(config: DCAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import dc_vae_f32
        >>> groups, unknown = dc_vae_keys(dc_vae_f32()).groups(["decoder.norm.inner.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('decoder.norm_out.bias',), [])
    """
    first, scales = int(not config.depths[0]), len(config.widths)
    entries: list[Entry] = [
        *framewise("encoder.embed.conv.conv" if first else "encoder.embed.conv", "encoder.conv_in" + ".conv" * first),
        *framewise("encoder.head.branch.conv", "encoder.conv_out"),
        *framewise("decoder.embed.branch.conv", "decoder.conv_in"),
        *renamed("decoder.norm.inner", "decoder.norm_out"),
        *framewise("decoder.head.conv.conv" if first else "decoder.head.conv", "decoder.conv_out" + ".conv" * first),
    ]
    for scale in range(first, scales):
        last = scale == scales - 1
        down, up = f"encoder.stages.{scale - first}", f"decoder.stages.{scales - 1 - scale}"
        for i in range(config.depths[scale]):
            entries += _block(f"{down}.{i}", f"encoder.down_blocks.{scale}.{i}", config.attends[scale], config)
        for i in range(config.decoder_depths[scale]):
            theirs = f"decoder.up_blocks.{scale}.{i + (not last)}"
            entries += _block(f"{up}.{i}", theirs, config.attends[scale], config)
        if not last:
            theirs = f"encoder.down_blocks.{scale}.{config.depths[scale]}.conv"
            entries += framewise(f"{down}.space.branch.conv.conv", theirs)
            entries += framewise(f"{up}.space.branch.conv.conv", f"decoder.up_blocks.{scale}.0.conv")
    return KeyMap(tuple(entries))


def _block(ours: str, theirs: str, attends: bool, config: DCAutoencoderConfig) -> list[Entry]:
    if not attends:
        return [
            *framewise(f"{ours}.branch.0.conv", f"{theirs}.conv1"),
            *framewise(f"{ours}.branch.2.conv", f"{theirs}.conv2"),
            *renamed(f"{ours}.branch.3.inner", f"{theirs}.norm"),
        ]
    attention, gated = f"{ours}.attention.branch", f"{ours}.gated.branch"
    inner = f"{attention}.attention.inner"
    entries = [
        Entry(
            (f"{inner}.qkv.weight",),
            tuple(f"{theirs}.attn.to_{name}.weight" for name in "qkv"),
            lambda *parts: [torch.cat(parts)[:, :, None, None, None]],
            lambda conv: conv[:, :, 0, 0, 0].chunk(3),
        ),
        *pointwise(f"{inner}.out", f"{theirs}.attn.to_out", ["weight"]),
        *renamed(f"{attention}.norm.inner", f"{theirs}.attn.norm_out"),
        *framewise(f"{gated}.wide.inner", f"{theirs}.conv_out.conv_inverted"),
        *framewise(f"{gated}.near.inner", f"{theirs}.conv_out.conv_depth"),
        *framewise(f"{gated}.narrow.inner", f"{theirs}.conv_out.conv_point"),
        *renamed(f"{gated}.norm.inner", f"{theirs}.conv_out.norm"),
    ]
    for i in range(len(config.kernels)):
        scale = f"{theirs}.attn.to_qkv_multiscale.{i}"
        entries += framewise(f"{inner}.scales.{i}.0", f"{scale}.proj_in")
        entries += framewise(f"{inner}.scales.{i}.1", f"{scale}.proj_out")
    return entries


DC_VAE = Family(DCAutoencoder, "AutoencoderDC", dc_vae_keys, dc_vae_config_from_diffusers, dc_vae_config_to_diffusers)
"""The adapter between :class:`tubelet.vae.families.DCAutoencoder` and theirs. Example: ``DC_VAE.keys(config)``."""
