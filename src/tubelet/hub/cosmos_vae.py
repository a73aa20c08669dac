"""The checkpoints of Cosmos's continuous video tokenizers in the form of diffusers' ``AutoencoderKLCosmos``, both ways.

Their attentions project by 1×1×1 convolutions where ours have linear layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.cosmos_statistics import MEAN_8X8X8, STD_8X8X8
from tubelet.vae.families.cosmos_vae import CosmosAutoencoder, CosmosAutoencoderConfig

__all__ = ["COSMOS_VAE", "cosmos_vae_config_from_diffusers", "cosmos_vae_config_to_diffusers", "cosmos_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "encoder_block_out_channels": [128, 256, 512, 512],
    "decode_block_out_channels": [256, 512, 512, 512],
    "attention_resolutions": [32],
    "resolution": 1024,
    "num_layers": 2,
    "patch_size": 4,
    "patch_type": "haar",
    "scaling_factor": 1.0,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 8,
    "latents_mean": [*MEAN_8X8X8],
    "latents_std": [*STD_8X8X8],
}
_PATCHES = {"haar": True, "rearrange": False}


def cosmos_vae_config_from_diffusers(config: Mapping[str, Any]) -> CosmosAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `CosmosAutoencoder`.

    Example:
        >>> cosmos_vae_config_from_diffusers({"num_layers": 1}).factors
        Factors(temporal=8, spatial=8)
    """
    c = checked_config(config, _DEFAULTS, {"scaling_factor": 1.0}, "AutoencoderKLCosmos")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    if c["patch_type"] not in _PATCHES:
        raise ValueError(f"patch_type={c['patch_type']!r} must be one of {[*_PATCHES]}")
    return CosmosAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=tuple(c["encoder_block_out_channels"]),
        decoder_widths=tuple(c["decode_block_out_channels"]),
        depth=c["num_layers"],
        temporal=c["temporal_compression_ratio"],
        spatial=c["spatial_compression_ratio"],
        patch=c["patch_size"],
        wavelets=_PATCHES[c["patch_type"]],
        resolution=c["resolution"],
        attention=tuple(c["attention_resolutions"]),
        latent_mean=tuple(c["latents_mean"] or ()),
        latent_std=tuple(c["latents_std"] or ()),
    )


def cosmos_vae_config_to_diffusers(config: CosmosAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Example:
        >>> from tubelet.vae.families import cosmos_vae
        >>> cosmos_vae_config_to_diffusers(cosmos_vae(8, 8))["patch_type"]
        'haar'
    """
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "encoder_block_out_channels": [*config.widths],
        "decode_block_out_channels": [*config.decoder_widths],
        "attention_resolutions": [*config.attention],
        "resolution": config.resolution,
        "num_layers": config.depth,
        "patch_size": config.patch,
        "patch_type": "haar" if config.wavelets else "rearrange",
        "scaling_factor": 1.0,
        "spatial_compression_ratio": config.spatial,
        "temporal_compression_ratio": config.temporal,
        "latents_mean": [*config.latent_mean] or None,
        "latents_std": [*config.latent_std] or None,
    }


def cosmos_vae_keys(config: CosmosAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import cosmos_vae
        >>> groups, _ = cosmos_vae_keys(cosmos_vae()).groups(["decoder.latents.inner.bias"], "ours")
        >>> groups[0].theirs
        ('post_quant_conv.bias',)
    """
    return KeyMap(
        (
            *renamed("encoder.latents.inner", "quant_conv"),
            *renamed("decoder.latents.inner", "post_quant_conv"),
            *_side(config, "encoder", "down_blocks"),
            *_side(config, "decoder", "up_blocks"),
        )
    )


def _side(config: CosmosAutoencoderConfig, side: str, blocks: str) -> Sequence[Entry]:
    stage, theirs, middle = f"{side}.stages.*", f"{side}.{blocks}.*", f"{side}.mid_block"
    changes = _halvings(stage, theirs) if side == "encoder" else _doublings(stage, theirs)
    return (
        *_convs(f"{side}.embed", f"{side}.conv_in"),
        *_block(f"{stage}.*", f"{theirs}.resnets.*"),
        *_attention(f"{stage}.frame_attention*.branch.inner", f"{theirs}.attentions.*"),
        *_attention(f"{stage}.time_attention*.branch", f"{theirs}.temp_attentions.*"),
        *changes,
        *_block(f"{side}.middle.first", f"{middle}.resnets.0"),
        *_attention(f"{side}.middle.frame_attention.branch.inner", f"{middle}.attentions.0"),
        *_attention(f"{side}.middle.time_attention.branch", f"{middle}.temp_attentions.0"),
        *_block(f"{side}.middle.second", f"{middle}.resnets.1"),
        *renamed(f"{side}.head.norm.norm", f"{side}.norm_out.norm"),
        *_convs(f"{side}.head.conv", f"{side}.conv_out"),
    )


def _halvings(stage: str, theirs: str) -> Sequence[Entry]:
    """Space first."""
    down = f"{theirs}.downsamplers.0"
    return (
        *renamed(f"{stage}.space.branch.inner.conv", f"{down}.conv1"),
        *renamed(f"{stage}.time.branch.conv", f"{down}.conv2"),
        *renamed(f"{stage}.mix.inner", f"{down}.conv3"),
    )


def _doublings(stage: str, theirs: str) -> Sequence[Entry]:
    """Time first."""
    up = f"{theirs}.upsamplers.0"
    return (
        *renamed(f"{stage}.time.conv.branch.conv", f"{up}.conv1"),
        *renamed(f"{stage}.space.conv.branch.conv", f"{up}.conv2"),
        *renamed(f"{stage}.mix.inner", f"{up}.conv3"),
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    halves = ((f"{ours}.branch.{i}", i + 1) for i in range(2))
    return (
        *(entry for half, number in halves for entry in _half(half, theirs, number)),
        *renamed(f"{ours}.shortcut.inner", f"{theirs}.conv_shortcut"),
    )


def _half(ours: str, theirs: str, number: int) -> Sequence[Entry]:
    return (
        *renamed(f"{ours}.norm.norm", f"{theirs}.norm{number}.norm"),
        *_convs(f"{ours}.conv", f"{theirs}.conv{number}"),
    )


def _convs(ours: str, theirs: str) -> Sequence[Entry]:
    """The convolution of each frame and that over time."""
    return (*renamed(f"{ours}.space.conv", f"{theirs}.conv_s"), *renamed(f"{ours}.time.conv", f"{theirs}.conv_t"))


def _attention(ours: str, theirs: str) -> Sequence[Entry]:
    names = {f"{name}_proj": f"to_{name}" for name in "qkv"} | {"out_proj": "to_out.0"}
    projections = (_linear(f"{ours}.attention.{mine}", f"{theirs}.{name}") for mine, name in names.items())
    return (*renamed(f"{ours}.norm.norm", f"{theirs}.norm.norm"), *(entry for pair in projections for entry in pair))


def _linear(ours: str, theirs: str) -> Sequence[Entry]:
    """A linear layer that is their 1×1×1 convolution."""
    weight = Entry((f"{ours}.weight",), (f"{theirs}.weight",), _narrow, _deep)
    return (weight, *renamed(ours, theirs, ["bias"]))


def _narrow(conv: Tensor) -> list[Tensor]:
    return [conv.flatten(1)]


def _deep(linear: Tensor) -> list[Tensor]:
    return [linear[:, :, None, None, None]]


COSMOS_VAE = Family(
    CosmosAutoencoder,
    "AutoencoderKLCosmos",
    cosmos_vae_keys,
    cosmos_vae_config_from_diffusers,
    cosmos_vae_config_to_diffusers,
)
"""Between :class:`tubelet.vae.families.CosmosAutoencoder` and theirs. Example: ``COSMOS_VAE.keys(config)``."""
