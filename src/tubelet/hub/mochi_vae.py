"""The checkpoints of Mochi's autoencoder in the form of diffusers' ``AutoencoderKLMochi``, both ways.

What differs beyond names: their maps of single positions are linear layers where ours are 1×1×1 convolutions, and
their ``in_channels`` count the sines and cosines too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.convolutions import pointwise
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.mochi_vae import MochiAutoencoder, MochiAutoencoderConfig, mochi_vae

__all__ = ["MOCHI_VAE", "mochi_vae_config_from_diffusers", "mochi_vae_config_to_diffusers", "mochi_vae_keys"]

_FEATURES = 5  # a pixel, and its sine and cosine at two frequencies
_DEFAULTS: dict[str, Any] = {
    "in_channels": 15,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 128, 256, 384],
    "decoder_block_out_channels": [128, 256, 512, 768],
    "latent_channels": 12,
    "layers_per_block": [3, 3, 4, 6, 3],
    "act_fn": "silu",
    "temporal_expansions": [1, 2, 3],
    "spatial_expansions": [2, 2, 2],
    "add_attention_block": [False, True, True, True, True],
    "latents_mean": list(mochi_vae().latent_mean),
    "latents_std": list(mochi_vae().latent_std),
    "scaling_factor": 1.0,
}
_FIXED = {"act_fn": "silu", "scaling_factor": 1.0}


def mochi_vae_config_from_diffusers(config: Mapping[str, Any]) -> MochiAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `MochiAutoencoder`.

    Example:
        >>> mochi_vae_config_from_diffusers({}) == mochi_vae()
        True
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderKLMochi")
    if c["in_channels"] != _FEATURES * c["out_channels"]:
        raise ValueError(f"in_channels={c['in_channels']} are not {_FEATURES} times out_channels={c['out_channels']}")
    return MochiAutoencoderConfig(
        in_channels=c["out_channels"],
        latent_channels=c["latent_channels"],
        widths=tuple(c["encoder_block_out_channels"]),
        decoder_widths=tuple(c["decoder_block_out_channels"]),
        temporal=tuple(c["temporal_expansions"]),
        spatial=tuple(c["spatial_expansions"]),
        depths=tuple(c["layers_per_block"]),
        attends=tuple(c["add_attention_block"]),
        latent_mean=tuple(c["latents_mean"]),
        latent_std=tuple(c["latents_std"]),
    )


def mochi_vae_config_to_diffusers(config: MochiAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Example:
        >>> mochi_vae_config_to_diffusers(mochi_vae())["in_channels"]
        15
    """
    channels = config.latent_channels
    return _DEFAULTS | {
        "in_channels": _FEATURES * config.in_channels,
        "out_channels": config.in_channels,
        "encoder_block_out_channels": list(config.widths),
        "decoder_block_out_channels": list(config.decoder_widths),
        "latent_channels": channels,
        "layers_per_block": list(config.depths),
        "temporal_expansions": list(config.temporal),
        "spatial_expansions": list(config.spatial),
        "add_attention_block": list(config.attends),
        "latents_mean": list(config.latent_mean or (0.0,) * channels),
        "latents_std": list(config.latent_std or (1.0,) * channels),
    }


def mochi_vae_keys(config: MochiAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> groups, unknown = mochi_vae_keys(mochi_vae()).groups(["encoder.embed.inner.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('encoder.proj_in.bias',), [])
    """
    last = len(config.widths) - 1
    down = {f"encoder.stages.{i}": f"encoder.down_blocks.{i - 1}" for i in range(1, last + 1)}
    up = {f"decoder.stages.{i}": f"decoder.up_blocks.{i}" for i in range(last)}
    ends = {
        "encoder.stages.0": "encoder.block_in",
        "encoder.middle": "encoder.block_out",
        "decoder.middle": "decoder.block_in",
        f"decoder.stages.{last}": "decoder.block_out",
    }
    return KeyMap(
        (
            *pointwise("encoder.embed.inner", "encoder.proj_in"),
            *renamed("encoder.head.norm.norm", "encoder.norm_out.norm_layer"),
            *pointwise("encoder.head.conv.inner", "encoder.proj_out", ["weight"]),
            *renamed("decoder.embed.inner", "decoder.conv_in"),
            *pointwise("decoder.head.conv.inner", "decoder.proj_out"),
            *(entry for ours, theirs in (down | up | ends).items() for entry in _blocks(ours, theirs)),
            *(e for ours, theirs in down.items() for e in renamed(f"{ours}.change.conv", f"{theirs}.conv_in.conv")),
            *(e for ours, theirs in up.items() for e in pointwise(f"{ours}.change.inner.conv", f"{theirs}.proj")),
        )
    )


def _blocks(ours: str, theirs: str) -> Sequence[Entry]:
    """Residual blocks of one scale, each of two convolutions after their norms, and the attention after them."""
    attention, named = f"{ours}.attention*.branch", f"{theirs}.attentions.*"
    return (
        *renamed(f"{ours}.*.branch.0.norm.norm", f"{theirs}.resnets.*.norm1.norm_layer"),
        *renamed(f"{ours}.*.branch.0.conv.conv", f"{theirs}.resnets.*.conv1.conv"),
        *renamed(f"{ours}.*.branch.1.norm.norm", f"{theirs}.resnets.*.norm2.norm_layer"),
        *renamed(f"{ours}.*.branch.1.conv.conv", f"{theirs}.resnets.*.conv2.conv"),
        *renamed(f"{attention}.norm.norm", f"{theirs}.norms.*.norm_layer"),
        *(e for p in "qkv" for e in renamed(f"{attention}.attention.{p}_proj", f"{named}.to_{p}", ["weight"])),
        *renamed(f"{attention}.attention.out_proj", f"{named}.to_out.0"),
    )


MOCHI_VAE = Family(
    MochiAutoencoder,
    "AutoencoderKLMochi",
    mochi_vae_keys,
    mochi_vae_config_from_diffusers,
    mochi_vae_config_to_diffusers,
)
"""The adapter between `MochiAutoencoder` and theirs. Example: ``MOCHI_VAE.keys(config)``."""
