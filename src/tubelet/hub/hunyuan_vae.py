"""The checkpoints of HunyuanVideo's autoencoder in the form of diffusers' ``AutoencoderKLHunyuanVideo``, both ways.

Only names differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.hunyuan_vae import HunyuanAutoencoder, HunyuanAutoencoderConfig

__all__ = ["HUNYUAN_VAE", "hunyuan_vae_config_from_diffusers", "hunyuan_vae_config_to_diffusers", "hunyuan_vae_keys"]

_DOWN, _UP = "HunyuanVideoDownBlock3D", "HunyuanVideoUpBlock3D"
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "down_block_types": [_DOWN] * 4,
    "up_block_types": [_UP] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.476986,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 4,
    "mid_block_add_attention": True,
}
_FIXED = {"act_fn": "silu", "mid_block_add_attention": True, "temporal_compression_ratio": 4}


def hunyuan_vae_config_from_diffusers(config: Mapping[str, Any]) -> HunyuanAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `HunyuanAutoencoder`.

    Example:
        >>> hunyuan_vae_config_from_diffusers({"block_out_channels": [32, 32, 64, 64]}).widths
        (32, 32, 64, 64)
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderKLHunyuanVideo")
    check_blocks(c, _DOWN, _UP)
    ours = HunyuanAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=tuple(c["block_out_channels"]),
        depth=c["layers_per_block"],
        groups=c["norm_num_groups"],
        scaling_factor=c["scaling_factor"],
    )
    if (named := c["spatial_compression_ratio"]) != (factor := ours.factors.spatial):
        raise ValueError(f"spatial_compression_ratio={named}, but its {len(ours.widths)} scales make {factor}")
    return ours


def check_blocks(config: Mapping[str, Any], down: str, up: str) -> None:
    """Refuse blocks of another kind or number than the widths have, and videos that come out with other channels.

    Raises:
        ValueError: such values.
    """
    scales = len(config["block_out_channels"])
    for name, kind in (("down_block_types", down), ("up_block_types", up)):
        if list(config[name]) != [kind] * scales:
            raise ValueError(f"{name}={list(config[name])}, but {scales} block_out_channels have {kind} each")
    if config["out_channels"] != config["in_channels"]:
        raise ValueError(f"out_channels={config['out_channels']} are not the in_channels={config['in_channels']}")


def hunyuan_vae_config_to_diffusers(config: HunyuanAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.vae.families import hunyuan_vae
        >>> hunyuan_vae_config_to_diffusers(hunyuan_vae())["block_out_channels"]
        [128, 256, 512, 512]
    """
    if config.factors.temporal != 4:
        raise ValueError(f"time_halvings={config.time_halvings}, but AutoencoderKLHunyuanVideo has 2")
    scales = len(config.widths)
    return _DEFAULTS | {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": [_DOWN] * scales,
        "up_block_types": [_UP] * scales,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.depth,
        "norm_num_groups": config.groups,
        "scaling_factor": config.scaling_factor,
        "spatial_compression_ratio": config.factors.spatial,
    }


def hunyuan_vae_keys(config: HunyuanAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import hunyuan_vae
        >>> groups, unknown = hunyuan_vae_keys(hunyuan_vae()).groups(["encoder.moments.inner.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('quant_conv.bias',), [])
    """
    return KeyMap(
        (
            *renamed("encoder.moments.inner", "quant_conv"),
            *renamed("decoder.latents.inner", "post_quant_conv"),
            *(entry for side in ("encoder", "decoder") for entry in _ends(side)),
            *_block("encoder.stages.*.*", "encoder.down_blocks.*.resnets.*"),
            *renamed("encoder.stages.*.change.conv", "encoder.down_blocks.*.downsamplers.0.conv.conv"),
            *_block("decoder.stages.*.*", "decoder.up_blocks.*.resnets.*"),
            *renamed("decoder.stages.*.change.conv", "decoder.up_blocks.*.upsamplers.0.conv.conv"),
        )
    )


def _ends(side: str) -> Sequence[Entry]:
    """The first convolution, the middle and the head, which encoder and decoder share."""
    middle, attention = f"{side}.middle.1.branch", f"{side}.mid_block.attentions.0"
    return (
        *renamed(f"{side}.embed.conv", f"{side}.conv_in.conv"),
        *_block(f"{side}.middle.0", f"{side}.mid_block.resnets.0"),
        *renamed(f"{middle}.norm", f"{attention}.group_norm"),
        *(e for p in "qkv" for e in renamed(f"{middle}.attention.{p}_proj", f"{attention}.to_{p}")),
        *renamed(f"{middle}.attention.out_proj", f"{attention}.to_out.0"),
        *_block(f"{side}.middle.2", f"{side}.mid_block.resnets.1"),
        *renamed(f"{side}.head.norm", f"{side}.conv_norm_out"),
        *renamed(f"{side}.head.conv.conv", f"{side}.conv_out.conv"),
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    """Two convolutions, each after its norm, and the shortcut where the width changes."""
    return (
        *renamed(f"{ours}.branch.0.norm", f"{theirs}.norm1"),
        *renamed(f"{ours}.branch.0.conv.conv", f"{theirs}.conv1.conv"),
        *renamed(f"{ours}.branch.1.norm", f"{theirs}.norm2"),
        *renamed(f"{ours}.branch.1.conv.conv", f"{theirs}.conv2.conv"),
        *renamed(f"{ours}.shortcut.inner", f"{theirs}.conv_shortcut.conv"),
    )


HUNYUAN_VAE = Family(
    HunyuanAutoencoder,
    "AutoencoderKLHunyuanVideo",
    hunyuan_vae_keys,
    hunyuan_vae_config_from_diffusers,
    hunyuan_vae_config_to_diffusers,
)
"""The adapter between `HunyuanAutoencoder` and theirs. Example: ``HUNYUAN_VAE.keys(config)``."""
