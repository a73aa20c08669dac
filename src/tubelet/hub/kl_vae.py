"""The checkpoints of latent diffusion's image autoencoder in the form of diffusers' ``AutoencoderKL``, both ways.

Theirs has convolutions of images where ours has those of single frames. What steers their pipelines alone
(``force_upcast``) is read and written as the class has it. Files of Stable Diffusion 1 and 2 have older names of the
attention, which are read too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.convolutions import framewise
from tubelet.hub.frame_blocks import frame_attention_keys, frame_res_keys, normed_conv_keys, one_scale
from tubelet.hub.keys import Entry, Family, KeyMap
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.kl_vae import KLAutoencoder, KLAutoencoderConfig

__all__ = ["KL_VAE", "kl_vae_config_from_diffusers", "kl_vae_config_to_diffusers", "kl_vae_keys", "side_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


def kl_vae_config_from_diffusers(config: Mapping[str, Any]) -> KLAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `KLAutoencoder`.

    Example:
        >>> kl_vae_config_from_diffusers({"block_out_channels": [64]}).widths
        (64,)
    """
    c = checked_config(config, _DEFAULTS, {"act_fn": "silu"}, "AutoencoderKL")
    widths, channels = tuple(c["block_out_channels"]), c["latent_channels"]
    for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if [*c[name]] != [known] * len(widths):
            raise ValueError(f"{name}={c[name]!r}, but this model has a {known} for each of {len(widths)} scales")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    if c["use_quant_conv"] != c["use_post_quant_conv"]:
        raise ValueError(
            f"use_quant_conv={c['use_quant_conv']}, but use_post_quant_conv={c['use_post_quant_conv']}: "
            "this model has both convolutions or neither"
        )
    mean, std = c["latents_mean"], c["latents_std"]
    scale, shift = c["scaling_factor"], c["shift_factor"] or 0.0
    return KLAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=channels,
        widths=widths,
        depth=c["layers_per_block"],
        groups=c["norm_num_groups"],
        attention=c["mid_block_add_attention"],
        mixed=c["use_quant_conv"],
        latent_mean=tuple(mean) if mean else (shift,) * channels if shift else (),
        latent_std=tuple(value / scale for value in std or (1.0,) * channels),
        sample_size=c["sample_size"],
    )


def kl_vae_config_to_diffusers(config: KLAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values; statistics that differ by channel have the scale 1.

    Example:
        >>> from tubelet.vae.families import kl_f8
        >>> kl_vae_config_to_diffusers(kl_f8())["scaling_factor"]
        0.18215
    """
    scales = len(config.widths)
    written = {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * scales,
        "up_block_types": ["UpDecoderBlock2D"] * scales,
        "block_out_channels": [*config.widths],
        "layers_per_block": config.depth,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        "sample_size": config.sample_size,
        "force_upcast": True,
        "use_quant_conv": config.mixed,
        "use_post_quant_conv": config.mixed,
        "mid_block_add_attention": config.attention,
    }
    return written | _statistics(config)


def _statistics(config: KLAutoencoderConfig) -> dict[str, Any]:
    if len({*config.latent_mean}) < 2 and len({*config.latent_std}) < 2:
        scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderKL")
        return {"scaling_factor": scale, "shift_factor": shift or None, "latents_mean": None, "latents_std": None}
    channels = config.latent_channels
    mean, std = [*config.latent_mean] or [0.0] * channels, [*config.latent_std] or [1.0] * channels
    return {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": mean, "latents_std": std}


def kl_vae_keys(config: KLAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import kl_f8
        >>> groups, unknown = kl_vae_keys(kl_f8()).groups(["encoder.moments.inner.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('quant_conv.bias',), [])
    """
    return KeyMap(
        (
            *framewise("encoder.moments.inner", "quant_conv"),
            *framewise("decoder.latents.inner", "post_quant_conv"),
            *side_keys("encoder", "down_blocks", "downsamplers"),
            *side_keys("decoder", "up_blocks", "upsamplers"),
        )
    )


def side_keys(side: str, blocks: str, change: str) -> Sequence[Entry]:
    """The encoder or the decoder: its ends, its middle and its scales.

    Example:
        >>> side_keys("encoder", "down_blocks", "downsamplers")[0].theirs
        ('encoder.conv_in.weight',)
    """
    ours, theirs, middle = f"{side}.stages.*", f"{side}.{blocks}.*", f"{side}.mid_block"
    return (
        *framewise(f"{side}.embed.conv", f"{side}.conv_in"),
        *frame_res_keys(f"{ours}.*", f"{theirs}.resnets.*"),
        *framewise(f"{ours}.space.inner.conv", f"{theirs}.{change}.0.conv"),
        *frame_res_keys(f"{side}.middle.first", f"{middle}.resnets.0"),
        *frame_attention_keys(f"{side}.middle.attention", f"{middle}.attentions.0"),
        *frame_res_keys(f"{side}.middle.second", f"{middle}.resnets.1"),
        *normed_conv_keys(f"{side}.head", f"{side}.conv_norm_out", f"{side}.conv_out"),
    )


_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
KL_VAE = Family(
    KLAutoencoder,
    "AutoencoderKL",
    kl_vae_keys,
    kl_vae_config_from_diffusers,
    kl_vae_config_to_diffusers,
    older=tuple((f".attentions.0.{then}.", f".attentions.0.{now}.") for then, now in _OLDER.items()),
)
"""The adapter between :class:`tubelet.vae.families.KLAutoencoder` and theirs. Example: ``KL_VAE.keys(config)``."""
