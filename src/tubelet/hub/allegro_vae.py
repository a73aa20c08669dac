"""The checkpoints of Allegro's autoencoder in the form of diffusers' ``AutoencoderKLAllegro``, both ways.

Theirs names the scales of the decoder from the coarsest and counts what stands in a layer: norm, activation, perhaps
dropout, convolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.convolutions import framewise
from tubelet.hub.frame_blocks import frame_attention_keys, frame_res_keys, one_scale
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.allegro_vae import AllegroAutoencoder, AllegroAutoencoderConfig

__all__ = ["ALLEGRO_VAE", "allegro_vae_config_from_diffusers", "allegro_vae_config_to_diffusers", "allegro_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["AllegroDownBlock3D"] * 4,
    "up_block_types": ["AllegroUpBlock3D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "temporal_downsample_blocks": [True, True, False, False],
    "temporal_upsample_blocks": [False, True, True, False],
    "latent_channels": 4,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "temporal_compression_ratio": 4,
    "sample_size": 320,
    "scaling_factor": 0.13,
    "force_upcast": True,
}


def allegro_vae_config_from_diffusers(config: Mapping[str, Any]) -> AllegroAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `AllegroAutoencoder`.

    Example:
        >>> allegro_vae_config_from_diffusers({}).halve_time
        (True, True, False, False)
    """
    c = checked_config(config, _DEFAULTS, {"act_fn": "silu"}, "AutoencoderKLAllegro")
    widths = tuple(c["block_out_channels"])
    for name, known in (("down_block_types", "AllegroDownBlock3D"), ("up_block_types", "AllegroUpBlock3D")):
        if [*c[name]] != [known] * len(widths):
            raise ValueError(f"{name}={c[name]!r}, but this model has a {known} for each of {len(widths)} scales")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    ours = AllegroAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=widths,
        depth=c["layers_per_block"],
        groups=c["norm_num_groups"],
        halve_time=tuple(c["temporal_downsample_blocks"]),
        double_time=tuple(c["temporal_upsample_blocks"])[::-1],
        latent_std=(1 / c["scaling_factor"],) * c["latent_channels"],
        sample_size=c["sample_size"],
    )
    if (ratio := c["temporal_compression_ratio"]) != (made := ours.factors.temporal):
        raise ValueError(f"temporal_compression_ratio={ratio}, but its scales make {made}")
    return ours


def allegro_vae_config_to_diffusers(config: AllegroAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.vae.families import allegro_vae
        >>> allegro_vae_config_to_diffusers(allegro_vae())["scaling_factor"]
        0.13
    """
    scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderKLAllegro")
    if shift:
        raise ValueError(f"latent_mean {config.latent_mean}, but AutoencoderKLAllegro has no shift")
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["AllegroDownBlock3D"] * len(config.widths),
        "up_block_types": ["AllegroUpBlock3D"] * len(config.widths),
        "block_out_channels": [*config.widths],
        "temporal_downsample_blocks": [*config.halve_time],
        "temporal_upsample_blocks": [*config.double_time[::-1]],
        "latent_channels": config.latent_channels,
        "layers_per_block": config.depth,
        "act_fn": "silu",
        "norm_num_groups": config.groups,
        "temporal_compression_ratio": config.factors.temporal,
        "sample_size": config.sample_size,
        "scaling_factor": scale,
        "force_upcast": True,
    }


def allegro_vae_keys(config: AllegroAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import allegro_vae
        >>> groups, _ = allegro_vae_keys(allegro_vae()).groups(["decoder.time.branch.conv.bias"], "ours")
        >>> groups[0].theirs
        ('decoder.temp_conv_in.bias',)
    """
    halve, double = "encoder.stages.*.halved.branch", "decoder.stages.*.doubled.branch"
    return KeyMap(
        (
            *framewise("encoder.moments.inner", "quant_conv"),
            *framewise("decoder.latents.inner", "post_quant_conv"),
            *_changed(halve, "0.conv.inner", "encoder.down_blocks.*.temp_convs_down"),
            *_changed(double, "0.conv.conv.inner", "decoder.up_blocks.*.temp_conv_up"),
            *_side("encoder", "down_blocks", "downsamplers"),
            *_side("decoder", "up_blocks", "upsamplers"),
        )
    )


def _side(side: str, blocks: str, change: str) -> Sequence[Entry]:
    stage, theirs, middle = f"{side}.stages.*", f"{side}.{blocks}.*", f"{side}.mid_block"
    return (
        *framewise(f"{side}.embed.conv", f"{side}.conv_in"),
        *renamed(f"{side}.time.branch.conv", f"{side}.temp_conv_in"),
        *_block(f"{stage}.*", theirs, "*"),
        *framewise(f"{stage}.space.inner.conv", f"{theirs}.{change}.0.conv"),
        *_block(f"{side}.middle.first", middle, "0"),
        *frame_attention_keys(f"{side}.middle.attention", f"{middle}.attentions.0"),
        *_block(f"{side}.middle.second", middle, "1"),
        *renamed(f"{side}.head.norm.inner.norm", f"{side}.conv_norm_out"),
        *renamed(f"{side}.head.time.branch.conv", f"{side}.temp_conv_out"),
        *framewise(f"{side}.head.conv.conv", f"{side}.conv_out"),
    )


def _block(ours: str, theirs: str, number: str) -> Sequence[Entry]:
    """The block of a frame and the four convolutions over time behind it."""
    temporal = f"{theirs}.temp_convs.{number}"
    return (
        *frame_res_keys(f"{ours}.frame", f"{theirs}.resnets.{number}"),
        *_over_time(f"{ours}.time.branch.0", f"{temporal}.conv1", 2),
        *_last_three(f"{ours}.time.branch", temporal),
    )


def _changed(ours: str, conv: str, theirs: str) -> Sequence[Entry]:
    """Four convolutions over time, the first of which changes their number."""
    return (
        *renamed(f"{ours}.0.norm", f"{theirs}.conv1.0"),
        *renamed(f"{ours}.{conv}", f"{theirs}.conv1.2"),
        *_last_three(ours, theirs),
    )


def _last_three(ours: str, theirs: str) -> Sequence[Entry]:
    """Theirs has dropout before the second and the third."""
    places = {1: 3, 2: 3, 3: 2}
    return [entry for i, at in places.items() for entry in _over_time(f"{ours}.{i}", f"{theirs}.conv{i + 1}", at)]


def _over_time(ours: str, theirs: str, at: int) -> Sequence[Entry]:
    return (
        *renamed(f"{ours}.conv.norm", f"{theirs}.0"),
        *renamed(f"{ours}.conv.conv.inner", f"{theirs}.{at}"),
    )


ALLEGRO_VAE = Family(
    AllegroAutoencoder,
    "AutoencoderKLAllegro",
    allegro_vae_keys,
    allegro_vae_config_from_diffusers,
    allegro_vae_config_to_diffusers,
)
"""Between :class:`tubelet.vae.families.AllegroAutoencoder` and theirs. Example: ``ALLEGRO_VAE.keys(config)``."""
