"""The checkpoints of EasyAnimate's autoencoder in the form of diffusers' ``AutoencoderKLMagvit``, both ways.

Theirs names the kind of each scale, with those of the decoder from the coarsest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.frame_blocks import one_scale
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.magvit_vae import MagvitAutoencoder, MagvitAutoencoderConfig

__all__ = ["MAGVIT_VAE", "magvit_vae_config_from_diffusers", "magvit_vae_config_to_diffusers", "magvit_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 16,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
    "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.7125,
    "spatial_group_norm": True,
}
_FIXED = {"act_fn": "silu", "spatial_group_norm": True}


def magvit_vae_config_from_diffusers(config: Mapping[str, Any]) -> MagvitAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Norms over several frames (``spatial_group_norm=False``) are refused: theirs see a batch of frames, whose length the
    config does not say.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `MagvitAutoencoder`.

    Example:
        >>> magvit_vae_config_from_diffusers({}).halve_time
        (False, True, True)
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderKLMagvit")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    widths, times = tuple(c["block_out_channels"]), {}
    for side in ("Down", "Up"):
        kinds = c[name := f"{side.lower()}_block_types"]
        known = {f"SpatialTemporal{side}Block3D": True, f"Spatial{side}Block3D": False}
        if len(kinds) != len(widths) or not {*kinds} <= {*known}:
            raise ValueError(f"{name}={kinds!r} must be one of {[*known]} for each of {len(widths)} scales")
        times[side] = tuple(known[kind] for kind in kinds[:-1])
    return MagvitAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=c["latent_channels"],
        widths=widths,
        depth=c["layers_per_block"],
        groups=c["norm_num_groups"],
        halve_time=times["Down"],
        double_time=times["Up"][::-1],
        latent_std=(1 / c["scaling_factor"],) * c["latent_channels"],
    )


def magvit_vae_config_to_diffusers(config: MagvitAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values; the last scales change no size, so that their kind says nothing.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.vae.families import magvit_vae
        >>> magvit_vae_config_to_diffusers(magvit_vae())["scaling_factor"]
        0.7125
    """
    scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderKLMagvit")
    if shift:
        raise ValueError(f"latent_mean {config.latent_mean}, but AutoencoderKLMagvit has no shift")

    def kinds(side: str, times: Sequence[bool]) -> list[str]:
        return [f"Spatial{'Temporal' if time else ''}{side}Block3D" for time in (*times, True)]

    return {
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "out_channels": config.in_channels,
        "block_out_channels": [*config.widths],
        "down_block_types": kinds("Down", config.halve_time),
        "up_block_types": kinds("Up", config.double_time[::-1]),
        "layers_per_block": config.depth,
        "act_fn": "silu",
        "norm_num_groups": config.groups,
        "scaling_factor": scale,
        "spatial_group_norm": True,
    }


def magvit_vae_keys(config: MagvitAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import magvit_vae
        >>> groups, _ = magvit_vae_keys(magvit_vae()).groups(["decoder.embed.conv.bias"], "ours")
        >>> groups[0].theirs
        ('decoder.conv_in.bias',)
    """
    return KeyMap(
        (
            *renamed("encoder.moments.inner", "quant_conv"),
            *renamed("decoder.latents.inner", "post_quant_conv"),
            *renamed("encoder.stages.*.halve.conv", "encoder.down_blocks.*.downsampler.conv"),
            *renamed("decoder.stages.*.conv.conv", "decoder.up_blocks.*.upsampler.conv"),
            *_side("encoder", "down_blocks"),
            *_side("decoder", "up_blocks"),
        )
    )


def _side(side: str, blocks: str) -> Sequence[Entry]:
    return (
        *renamed(f"{side}.embed.conv", f"{side}.conv_in"),
        *_block(f"{side}.stages.*.*", f"{side}.{blocks}.*.convs.*"),
        *_block(f"{side}.middle.*", f"{side}.mid_block.convs.*"),
        *renamed(f"{side}.head.norm.norm", f"{side}.conv_norm_out"),
        *renamed(f"{side}.head.conv.conv", f"{side}.conv_out"),
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    halves = ((f"{ours}.branch.{i}", i + 1) for i in range(2))
    return (
        *(entry for half, number in halves for entry in _half(half, theirs, number)),
        *renamed(f"{ours}.shortcut.inner", f"{theirs}.shortcut"),
    )


def _half(ours: str, theirs: str, number: int) -> Sequence[Entry]:
    return (
        *renamed(f"{ours}.norm.norm", f"{theirs}.norm{number}"),
        *renamed(f"{ours}.conv.conv", f"{theirs}.conv{number}"),
    )


MAGVIT_VAE = Family(
    MagvitAutoencoder,
    "AutoencoderKLMagvit",
    magvit_vae_keys,
    magvit_vae_config_from_diffusers,
    magvit_vae_config_to_diffusers,
)
"""Between :class:`tubelet.vae.families.MagvitAutoencoder` and theirs. Example: ``MAGVIT_VAE.keys(config)``."""
