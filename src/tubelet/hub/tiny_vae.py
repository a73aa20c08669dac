"""The checkpoints of tiny preview autoencoders in the form of diffusers' ``AutoencoderTiny``, both ways.

Theirs numbers all layers of a side through. What steers their pipelines alone (``latent_magnitude``, ``latent_shift``,
``force_upcast``) is read and written as the class has it.
"""

from collections.abc import Mapping
from typing import Any

from tubelet.hub.convolutions import framewise
from tubelet.hub.frame_blocks import one_scale
from tubelet.hub.keys import Entry, Family, KeyMap
from tubelet.hub.theirs import checked_config
from tubelet.vae.families.tiny_vae import TinyAutoencoder, TinyAutoencoderConfig

__all__ = ["TINY_VAE", "tiny_vae_config_from_diffusers", "tiny_vae_config_to_diffusers", "tiny_vae_keys"]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "force_upcast": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "block_out_channels": None,
}
_FIXED = {name: _DEFAULTS[name] for name in ("act_fn", "upsample_fn", "upsampling_scaling_factor")}
_FIXED |= {name: _DEFAULTS[name] for name in ("latent_magnitude", "latent_shift", "force_upcast")}


def tiny_vae_config_from_diffusers(config: Mapping[str, Any]) -> TinyAutoencoderConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than `TinyAutoencoder`.

    Example:
        >>> tiny_vae_config_from_diffusers({"latent_channels": 16}).latent_channels
        16
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AutoencoderTiny")
    widths = {*c["encoder_block_out_channels"], *c["decoder_block_out_channels"]}
    if len(widths) != 1:
        raise ValueError(f"block_out_channels {sorted(widths)} differ, but this model has one width")
    if c["out_channels"] != c["in_channels"]:
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    channels, scale, shift = c["latent_channels"], c["scaling_factor"], c["shift_factor"]
    return TinyAutoencoderConfig(
        in_channels=c["in_channels"],
        latent_channels=channels,
        width=widths.pop(),
        depths=tuple(c["num_encoder_blocks"]),
        decoder_depths=tuple(reversed(c["num_decoder_blocks"])),
        latent_mean=(shift,) * channels if shift else (),
        latent_std=(1 / scale,) * channels if scale != 1 else (),
    )


def tiny_vae_config_to_diffusers(config: TinyAutoencoderConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: statistics that differ between channels.

    Example:
        >>> from tubelet.vae.families import tiny_vae
        >>> tiny_vae_config_to_diffusers(tiny_vae())["num_decoder_blocks"]
        [3, 3, 3, 1]
    """
    scale, shift = one_scale(config.latent_mean, config.latent_std, "AutoencoderTiny")
    widths = [config.width] * len(config.depths)
    return {
        **{name: value for name, value in _DEFAULTS.items() if name in _FIXED},
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "block_out_channels": widths,
        "latent_channels": config.latent_channels,
        "num_encoder_blocks": [*config.depths],
        "num_decoder_blocks": [*reversed(config.decoder_depths)],
        "scaling_factor": scale,
        "shift_factor": shift,
    }


def tiny_vae_keys(config: TinyAutoencoderConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.vae.families import tiny_vae
        >>> groups, unknown = tiny_vae_keys(tiny_vae()).groups(["decoder.head.conv.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('decoder.layers.18.bias',), [])
    """
    return KeyMap((*_encoder(config), *_decoder(config)))


def _encoder(config: TinyAutoencoderConfig) -> list[Entry]:
    ours = ["embed"]
    for scale, depth in enumerate(config.depths):
        ours += [f"stages.{scale}.space"] * bool(scale) + _blocks(scale, depth)
    return _numbered("encoder", [*ours, "head"])


def _decoder(config: TinyAutoencoderConfig) -> list[Entry]:
    ours: list[str | None] = ["embed", None]  # their layers without weights stand between
    for place, depth in enumerate(reversed(config.decoder_depths)):
        more = place < len(config.decoder_depths) - 1
        ours += [*_blocks(place, depth), *([None, f"stages.{place}.space"] if more else [])]
    return _numbered("decoder", [*ours, "head"])


def _blocks(scale: int, depth: int) -> list[str]:
    return [f"stages.{scale}.blocks.{i}" for i in range(depth)]


def _numbered(side: str, ours: list[str | None] | list[str]) -> list[Entry]:
    entries: list[Entry] = []
    for number, name in enumerate(ours):
        theirs = f"{side}.layers.{number}"
        if name is not None and ".blocks." in name:
            for place in (0, 2, 4):
                entries += framewise(f"{side}.{name}.add.branch.{place}.conv", f"{theirs}.conv.{place}")
        elif name is not None:
            entries += framewise(f"{side}.{name}.conv", theirs)
    return entries


TINY_VAE = Family(
    TinyAutoencoder, "AutoencoderTiny", tiny_vae_keys, tiny_vae_config_from_diffusers, tiny_vae_config_to_diffusers
)
"""The adapter between :class:`tubelet.vae.families.TinyAutoencoder` and theirs. Example: ``TINY_VAE.keys(config)``."""
