"""Allegro's checkpoints in the form of diffusers' ``AllegroTransformer3DModel``, both ways.

Their config names the size of the published videos (``sample_height`` and so on), which bounds nothing; ours has no
such size and writes their default.
"""

from collections.abc import Mapping
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.pixart import attention_keys, checked_config, ends_keys, square_patch
from tubelet.models.allegro import AllegroConfig, AllegroTransformer

__all__ = ["ALLEGRO", "allegro_config_from_diffusers", "allegro_config_to_diffusers", "allegro_keys"]

_PEER = "AllegroTransformer3DModel"
_DEFAULTS: dict[str, Any] = {
    "patch_size": 2,
    "patch_size_t": 1,
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 32,
    "dropout": 0.0,
    "cross_attention_dim": 2304,
    "attention_bias": True,
    "sample_height": 90,
    "sample_width": 160,
    "sample_frames": 22,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "interpolation_scale_h": 2.0,
    "interpolation_scale_w": 2.0,
    "interpolation_scale_t": 2.2,
}
_FIXED = {
    key: _DEFAULTS[key]
    for key in ("patch_size_t", "dropout", "attention_bias", "activation_fn", "norm_elementwise_affine")
}
_SCALES = ("interpolation_scale_t", "interpolation_scale_h", "interpolation_scale_w")


def allegro_config_from_diffusers(config: Mapping[str, Any]) -> AllegroConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`AllegroTransformer`.

    Example:
        >>> allegro_config_from_diffusers({"num_layers": 3}).depth
        3
    """
    c = checked_config(config, _DEFAULTS, _FIXED, _PEER)
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    if c["cross_attention_dim"] != dim:
        raise ValueError(f"cross_attention_dim={c['cross_attention_dim']}, but text is projected to width {dim}")
    if c["in_channels"] != c["out_channels"]:
        raise ValueError(f"in_channels={c['in_channels']}, but out_channels={c['out_channels']}")
    if None in (scale := tuple(c[name] for name in _SCALES)):
        raise ValueError(f"interpolation scales (t, h, w) are {scale}, but positions need a number for each axis")
    t, h, w = scale
    return AllegroConfig(
        dim=dim,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        latent_channels=c["in_channels"],
        text_dim=c["caption_channels"],
        patch=(1, c["patch_size"], c["patch_size"]),
        scale=(float(t), float(h), float(w)),
        eps=c["norm_eps"],
    )


def allegro_config_to_diffusers(config: AllegroConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: patches, ``frequencies`` or ``time_scale`` that their class cannot have.

    Example:
        >>> from tubelet.models import allegro_3b
        >>> allegro_config_to_diffusers(allegro_3b())["attention_head_dim"]
        96
    """
    if (config.time_scale, config.time_shift) != (1000, -1) or config.frequencies != 256:
        found = f"time_scale={config.time_scale}, time_shift={config.time_shift}, frequencies={config.frequencies}"
        raise ValueError(f"{found}, but diffusers feeds indices of 1000 steps to 256 frequencies")
    return {
        **_DEFAULTS,
        "patch_size": square_patch(config.patch),
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "num_layers": config.depth,
        "cross_attention_dim": config.dim,
        "norm_eps": config.eps,
        "caption_channels": config.text_dim,
        **dict(zip(_SCALES, config.scale, strict=True)),
    }


def allegro_keys(config: AllegroConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import allegro_3b
        >>> groups, unknown = allegro_keys(allegro_3b()).groups(["blocks.3.modulation.table"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.scale_shift_table',), [])
    """
    block = "transformer_blocks.*"
    return KeyMap(
        (
            *ends_keys(config.patch[1], [config.latent_channels, 0]),
            Entry(("blocks.*.modulation.table",), (f"{block}.scale_shift_table",)),
            *attention_keys("blocks.*.branches.0.inner", f"{block}.attn1"),
            *attention_keys("blocks.*.branches.1.inner", f"{block}.attn2"),
            *renamed("blocks.*.branches.2.inner.up", f"{block}.ff.net.0.proj"),
            *renamed("blocks.*.branches.2.inner.down", f"{block}.ff.net.2"),
        )
    )


ALLEGRO = Family(AllegroTransformer, _PEER, allegro_keys, allegro_config_from_diffusers, allegro_config_to_diffusers)
"""The adapter between :class:`tubelet.models.AllegroTransformer` and diffusers' class. Example: ``ALLEGRO.peer``."""
