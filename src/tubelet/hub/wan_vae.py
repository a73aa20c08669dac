"""The checkpoints of Wan's autoencoder in the form of diffusers' ``AutoencoderKLWan``, both ways.

What differs beyond names: their attention has one 1×1 convolution for queries, keys and values where ours has three
linear layers, their changes of scale are 2-D convolutions, and their norms keep axes of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.hub.convolutions import framewise
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.wan_vae import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1

__all__ = ["WAN_VAE", "wan_vae_config_from_diffusers", "wan_vae_config_to_diffusers", "wan_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": list(wan_vae_2_1().latent_mean),
    "latents_std": list(wan_vae_2_1().latent_std),
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
_FIXED = ("attn_scales", "dropout")


def wan_vae_config_from_diffusers(config: Mapping[str, Any]) -> WanAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `WanAutoencoder`.

    Example:
        >>> wan_vae_config_from_diffusers({"base_dim": 8}).widths
        (8, 16, 32, 32)
    """
    c = checked_config(config, _DEFAULTS, {}, "AutoencoderKLWan")
    for name in _FIXED:
        if c[name] != _DEFAULTS[name]:
            raise ValueError(f"{name}={c[name]!r}, but Wan's is {_DEFAULTS[name]!r}")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    if c["dim_mult"][0] != 1:
        raise ValueError(f"dim_mult={c['dim_mult']}, but Wan's finest scale is as wide as its first convolution")
    decoder_base, patch = c["decoder_base_dim"], c["patch_size"] or 1
    if c["in_channels"] % patch**2:
        raise ValueError(f"in_channels={c['in_channels']} are no channels of patches of patch_size={patch}")
    ours = WanAutoencoderConfig(
        in_channels=c["in_channels"] // patch**2,
        latent_channels=c["z_dim"],
        widths=tuple(c["base_dim"] * mult for mult in c["dim_mult"]),
        decoder_widths=None if decoder_base is None else tuple(decoder_base * mult for mult in c["dim_mult"]),
        depth=c["num_res_blocks"],
        halve_time=tuple(c["temperal_downsample"]),
        patch=patch,
        shortcuts=c["is_residual"],
        latent_mean=tuple(c["latents_mean"]),
        latent_std=tuple(c["latents_std"]),
    )
    for name in ("temporal", "spatial"):
        if c[f"scale_factor_{name}"] != (factor := getattr(ours.factors, name)):
            raise ValueError(f"scale_factor_{name}={c[f'scale_factor_{name}']}, but its scales make {factor}")
    return ours


def wan_vae_config_to_diffusers(config: WanAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> wan_vae_config_to_diffusers(wan_vae_2_1())["dim_mult"]
        [1, 2, 4, 4]
    """
    base, decoder_base = config.widths[0], config.decoder[0]
    multiples = [width // base for width in config.widths]
    for name, first, widths in (("widths", base, config.widths), ("decoder_widths", decoder_base, config.decoder)):
        if tuple(first * mult for mult in multiples) != widths:
            raise ValueError(f"{name} {widths} are not {first} times {multiples}, as diffusers' class has it")
    channels = config.latent_channels
    return {
        "base_dim": base,
        "decoder_base_dim": None if config.decoder_widths is None else decoder_base,
        "z_dim": channels,
        "dim_mult": multiples,
        "num_res_blocks": config.depth,
        "attn_scales": [],
        "temperal_downsample": list(config.halve_time),
        "dropout": 0.0,
        "latents_mean": list(config.latent_mean or (0.0,) * channels),
        "latents_std": list(config.latent_std or (1.0,) * channels),
        "is_residual": config.shortcuts,
        "in_channels": config.in_channels * config.patch**2,
        "out_channels": config.in_channels * config.patch**2,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_temporal": config.factors.temporal,
        "scale_factor_spatial": config.factors.spatial,
    }


def wan_vae_keys(config: WanAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> groups, unknown = wan_vae_keys(wan_vae_2_1()).groups(["encoder.moments.inner.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('quant_conv.bias',), [])
    """
    scales = range(len(config.widths))
    return KeyMap(
        (
            *renamed("encoder.moments.inner", "quant_conv"),
            *renamed("decoder.latents.inner", "post_quant_conv"),
            *(entry for side in ("encoder", "decoder") for entry in _ends(side)),
            *(entry for scale in scales for entry in (_scale if config.shortcuts else _counted)(config, scale)),
            *_up(config),
        )
    )


def _ends(side: str) -> Sequence[Entry]:
    """The first convolution, the middle and the head, which encoder and decoder share."""
    middle = f"{side}.mid_block"
    return (
        *renamed(f"{side}.embed.conv", f"{side}.conv_in"),
        *_block(f"{side}.middle.0", f"{middle}.resnets.0"),
        *_attention(f"{side}.middle.1.branch.inner", f"{middle}.attentions.0"),
        *_block(f"{side}.middle.2", f"{middle}.resnets.1"),
        _norm(f"{side}.head.norm", f"{side}.norm_out", 3),
        *renamed(f"{side}.head.conv.conv", f"{side}.conv_out"),
    )


def _counted(config: WanAutoencoderConfig, scale: int) -> Sequence[Entry]:
    """One scale of the encoder of Wan 2.1, whose blocks they count through all scales."""
    first, stage = scale * (config.depth + 1), f"encoder.stages.{scale}"
    blocks = (_block(f"{stage}.{i}", f"encoder.down_blocks.{first + i}") for i in range(config.depth))
    change = _change(stage, f"encoder.down_blocks.{first + config.depth}") if scale < len(config.halve_time) else ()
    return (*(entry for block in blocks for entry in block), *change)


def _scale(config: WanAutoencoderConfig, scale: int) -> Sequence[Entry]:
    """One scale of the encoder of Wan 2.2, inside its shortcut."""
    stage, theirs = f"encoder.stages.{scale}.branch", f"encoder.down_blocks.{scale}"
    return (*_block(f"{stage}.*", f"{theirs}.resnets.*"), *_change(stage, f"{theirs}.downsampler"))


def _up(config: WanAutoencoderConfig) -> Sequence[Entry]:
    """The scales of the decoder; those of Wan 2.2 have a shortcut, but for the last."""
    block, last = "decoder.up_blocks.*", len(config.widths) - 1
    if not config.shortcuts:
        stages = "decoder.stages.*"
        return (*_block(f"{stages}.*", f"{block}.resnets.*"), *_change(stages, f"{block}.upsamplers.0"))
    return (
        *_block(f"decoder.stages.{last}.*", f"decoder.up_blocks.{last}.resnets.*"),
        *_block("decoder.stages.*.branch.*", f"{block}.resnets.*"),
        *_change("decoder.stages.*.branch", f"{block}.upsampler"),
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    """Two convolutions, each after its norm, and the shortcut where the width changes."""
    return (
        _norm(f"{ours}.branch.0.norm", f"{theirs}.norm1", 3),
        *renamed(f"{ours}.branch.0.conv.conv", f"{theirs}.conv1"),
        _norm(f"{ours}.branch.1.norm", f"{theirs}.norm2", 3),
        *renamed(f"{ours}.branch.1.conv.conv", f"{theirs}.conv2"),
        *renamed(f"{ours}.shortcut.inner", f"{theirs}.conv_shortcut"),
    )


def _change(ours: str, theirs: str) -> Sequence[Entry]:
    """A change of scale: over space a 2-D convolution of theirs, over time a causal one."""
    space = framewise(f"{ours}.space.inner.conv", f"{theirs}.resample.1")
    return (*space, *renamed(f"{ours}.time.conv.conv", f"{theirs}.time_conv"))


def _attention(ours: str, theirs: str) -> Sequence[Entry]:
    """Queries, keys and values in one 1×1 convolution of theirs."""
    projections = [f"{ours}.attention.{name}_proj" for name in "qkv"]
    return (
        _norm(f"{ours}.norm", f"{theirs}.norm", 2),
        Entry(
            tuple(f"{name}.weight" for name in projections),
            (f"{theirs}.to_qkv.weight",),
            lambda qkv: qkv[:, :, 0, 0].chunk(3),
            lambda *qkv: [_pointwise(torch.cat(qkv))],
        ),
        Entry(
            tuple(f"{name}.bias" for name in projections),
            (f"{theirs}.to_qkv.bias",),
            lambda qkv: qkv.chunk(3),
            lambda *qkv: [torch.cat(qkv)],
        ),
        Entry(
            (f"{ours}.attention.out_proj.weight",),
            (f"{theirs}.proj.weight",),
            lambda conv: [conv[:, :, 0, 0]],
            lambda linear: [_pointwise(linear)],
        ),
        *renamed(f"{ours}.attention.out_proj", f"{theirs}.proj", ["bias"]),
    )


def _pointwise(linear: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1×1 convolution."""
    return linear[:, :, None, None]


def _norm(ours: str, theirs: str, axes: int) -> Entry:
    """One weight for each channel, theirs with axes of one behind."""
    return Entry(
        (f"{ours}.weight",),
        (f"{theirs}.gamma",),
        lambda gamma: [gamma.flatten()],
        lambda weight: [weight.reshape(-1, *[1] * axes)],
    )


WAN_VAE = Family(
    WanAutoencoder,
    "AutoencoderKLWan",
    wan_vae_keys,
    wan_vae_config_from_diffusers,
    wan_vae_config_to_diffusers,
)
"""The adapter between :class:`tubelet.vae.families.WanAutoencoder` and theirs. Example: ``WAN_VAE.keys(config)``."""
