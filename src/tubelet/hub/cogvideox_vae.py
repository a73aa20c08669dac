"""The checkpoints of CogVideoX's autoencoder in the form of diffusers' ``AutoencoderKLCogVideoX``, both ways.

Their changes of scale are 2-D convolutions. Their config also holds the size of the published videos
(``sample_height``, ``sample_width``), by which they cut frames into tiles, and ``force_upcast``, which is no matter of
the model: they are read past, and written as diffusers' defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.convolutions import framewise
from tubelet.hub.hunyuan_vae import check_blocks
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.cogvideox_vae import CogVideoXAutoencoder, CogVideoXAutoencoderConfig

__all__ = [
    "COGVIDEOX_VAE",
    "cogvideox_vae_config_from_diffusers",
    "cogvideox_vae_config_to_diffusers",
    "cogvideox_vae_keys",
]

_DOWN, _UP = "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": [_DOWN] * 4,
    "up_block_types": [_UP] * 4,
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "temporal_compression_ratio": 4,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 1.15258426,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "invert_scale_latents": False,
}
_FIXED = {
    name: _DEFAULTS[name]
    for name in (
        "act_fn",
        "norm_eps",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "use_quant_conv",
        "use_post_quant_conv",
    )
}


def cogvideox_vae_config_from_diffusers(config: Mapping[str, Any]) -> CogVideoXAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `CogVideoXAutoencoder`.

    Example:
        >>> cogvideox_vae_config_from_diffusers({"scaling_factor": 0.7}).scaling_factor
        0.7
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderKLCogVideoX")
    check_blocks(c, _DOWN, _UP)
    halvings = int(c["temporal_compression_ratio"]).bit_length() - 1
    if c["temporal_compression_ratio"] != 2**halvings:
        raise ValueError(f"temporal_compression_ratio={c['temporal_compression_ratio']} is no power of two")
    return CogVideoXAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=tuple(c["block_out_channels"]),
        depth=c["layers_per_block"],
        groups=c["norm_num_groups"],
        time_halvings=halvings,
        scaling_factor=c["scaling_factor"],
        invert_scale=c["invert_scale_latents"],
    )


def cogvideox_vae_config_to_diffusers(config: CogVideoXAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Example:
        >>> from tubelet.vae.families import cogvideox_vae_5b
        >>> cogvideox_vae_config_to_diffusers(cogvideox_vae_5b())["temporal_compression_ratio"]
        4
    """
    scales = len(config.widths)
    return _DEFAULTS | {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": [_DOWN] * scales,
        "up_block_types": [_UP] * scales,
        "block_out_channels": list(config.widths),
        "latent_channels": config.latent_channels,
        "layers_per_block": config.depth,
        "norm_num_groups": config.groups,
        "temporal_compression_ratio": config.factors.temporal,
        "scaling_factor": config.scaling_factor,
        "invert_scale_latents": config.invert_scale,
    }


def cogvideox_vae_keys(config: CogVideoXAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import cogvideox_vae_2b
        >>> groups, unknown = cogvideox_vae_keys(cogvideox_vae_2b()).groups(["encoder.embed.conv.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('encoder.conv_in.conv.bias',), [])
    """
    inner = "decoder.inner"
    return KeyMap(
        (
            *_ends("encoder", "encoder"),
            *renamed("encoder.head.norm", "encoder.norm_out"),
            *_block("encoder.stages.*.*", "encoder.down_blocks.*.resnets.*", renamed),
            *_block("encoder.middle.*", "encoder.mid_block.resnets.*", renamed),
            *framewise("encoder.stages.*.space.inner.conv", "encoder.down_blocks.*.downsamplers.0.conv"),
            *_ends(inner, "decoder"),
            *_guided(f"{inner}.head.norm", "decoder.norm_out"),
            *_block(f"{inner}.stages.*.*", "decoder.up_blocks.*.resnets.*", _guided),
            *_block(f"{inner}.middle.*", "decoder.mid_block.resnets.*", _guided),
            *framewise(f"{inner}.stages.*.space.inner.conv", "decoder.up_blocks.*.upsamplers.0.conv"),
        )
    )


def _ends(ours: str, theirs: str) -> Sequence[Entry]:
    """The first and the last convolution."""
    return (
        *renamed(f"{ours}.embed.conv", f"{theirs}.conv_in.conv"),
        *renamed(f"{ours}.head.conv.conv", f"{theirs}.conv_out.conv"),
    )


def _block(ours: str, theirs: str, norm: Any) -> Sequence[Entry]:
    """Two convolutions, each after its norm, and the shortcut where the width changes."""
    return (
        *norm(f"{ours}.branch.0.norm", f"{theirs}.norm1"),
        *renamed(f"{ours}.branch.0.conv.conv", f"{theirs}.conv1.conv"),
        *norm(f"{ours}.branch.1.norm", f"{theirs}.norm2"),
        *renamed(f"{ours}.branch.1.conv.conv", f"{theirs}.conv2.conv"),
        *renamed(f"{ours}.shortcut.inner", f"{theirs}.conv_shortcut"),
    )


def _guided(ours: str, theirs: str) -> Sequence[Entry]:
    """A norm, and its modulation by the latents."""
    return (
        *renamed(f"{ours}.norm", f"{theirs}.norm_layer"),
        *renamed(f"{ours}.scale", f"{theirs}.conv_y.conv"),
        *renamed(f"{ours}.shift", f"{theirs}.conv_b.conv"),
    )


COGVIDEOX_VAE = Family(
    CogVideoXAutoencoder,
    "AutoencoderKLCogVideoX",
    cogvideox_vae_keys,
    cogvideox_vae_config_from_diffusers,
    cogvideox_vae_config_to_diffusers,
)
"""The adapter between `CogVideoXAutoencoder` and theirs. Example: ``COGVIDEOX_VAE.keys(config)``."""
