"""Allegro's checkpoints, both ways: diffusers' ``AllegroTransformer3DModel``, and its authors' class of that name.

Both configs name the size of the published videos (``sample_height``, ``sample_size_t`` and so on), which bounds
nothing; ours has no such size and writes the default. All names of tensors are the same in both. Of a file alone the
shapes say all but the number of heads, which are 96 wide.

Source: https://github.com/rhymes-ai/Allegro, ``allegro/models/transformers/transformer_3d_allegro.py``.
"""

from collections.abc import Mapping
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.pixart import attention_keys, ends_keys, square_patch
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.models.allegro import AllegroConfig, AllegroTransformer

__all__ = [
    "ALLEGRO",
    "ALLEGRO_ORIGINAL",
    "allegro_config_from_diffusers",
    "allegro_config_from_original",
    "allegro_config_to_diffusers",
    "allegro_config_to_original",
    "allegro_keys",
    "allegro_original_config",
]

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
_ORIGINAL_FIXED: dict[str, Any] = {
    **_FIXED,
    "double_self_attention": False,
    "downsampler": None,
    "norm_type": "ada_norm_single",
    "only_cross_attention": False,
    "use_linear_projection": False,
    "use_rope": True,
}
_ORIGINAL_DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in _DEFAULTS.items() if not key.startswith("sample_")},
    **_ORIGINAL_FIXED,
    "ca_attention_mode": "xformers",
    "model_max_length": 300,
    "num_embeds_ada_norm": 1000,
    "sa_attention_mode": "flash",
    "sample_size": [90, 160],
    "sample_size_t": 22,
    "upcast_attention": False,
    "use_additional_conditions": None,
}
_HEAD_DIM = 96
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
    return _config(checked_config(config, _DEFAULTS, _FIXED, _PEER))


def _config(c: Mapping[str, Any]) -> AllegroConfig:
    """What both configs say under the same names."""
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
    return {**_DEFAULTS, **_sizes(config)}


def _sizes(config: AllegroConfig) -> dict[str, Any]:
    """Ours under their names."""
    if (config.time_scale, config.time_shift) != (1000, -1) or config.frequencies != 256:
        found = f"time_scale={config.time_scale}, time_shift={config.time_shift}, frequencies={config.frequencies}"
        raise ValueError(f"{found}, but Allegro is fed indices of 1000 steps to 256 frequencies")
    return {
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


def allegro_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of the authors' leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`allegro_config_from_original` reads.

    Raises:
        ValueError: tensors that every Allegro has are missing, or a width that makes no heads of 96 where their number
            is not given.

    Example:
        >>> allegro_original_config({}, {"proj_in.weight": (2304, 16)})
        Traceback (most recent call last):
        ValueError: the tensors are not AllegroTransformer3DModel's: there is no pos_embed.proj.weight of rank 4
    """
    file = FileShapes(_PEER, shapes)
    dim, channels, side, _ = file.of("pos_embed.proj.weight", 4)
    heads = config.get("num_attention_heads", dim // _HEAD_DIM)
    if not heads or dim % heads:
        raise ValueError(f"num_attention_heads={heads} do not divide the width {dim}")
    return {
        "attention_head_dim": dim // heads,
        "caption_channels": file.of("caption_projection.linear_1.weight")[1],
        "cross_attention_dim": dim,
        "in_channels": channels,
        "num_attention_heads": heads,
        "num_layers": file.count("transformer_blocks"),
        "out_channels": file.of("proj_out.weight")[0] // side**2,
        "patch_size": side,
        **config,
    }


def allegro_config_from_original(config: Mapping[str, Any]) -> AllegroConfig:
    """Our config from the authors'; keys that are missing are those of the published model.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`AllegroTransformer`.

    Example:
        >>> allegro_config_from_original({"num_layers": 3, "sa_attention_mode": "math"}).depth
        3
    """
    return _config(checked_config(config, _ORIGINAL_DEFAULTS, _ORIGINAL_FIXED, _PEER))


def allegro_config_to_original(config: AllegroConfig) -> dict[str, Any]:
    """The authors' config from ours, as JSON values.

    Raises:
        ValueError: patches, ``frequencies`` or ``time_scale`` that their class cannot have.

    Example:
        >>> from tubelet.models import allegro_3b
        >>> allegro_config_to_original(allegro_3b())["sample_size_t"]
        22
    """
    return {**_ORIGINAL_DEFAULTS, **_sizes(config)}


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

ALLEGRO_ORIGINAL = Family(
    AllegroTransformer,
    _PEER,
    allegro_keys,
    allegro_config_from_original,
    allegro_config_to_original,
    wide=ALLEGRO.wide,
    form="original",
    complete=allegro_original_config,
)
"""The adapter between :class:`tubelet.models.AllegroTransformer` and its authors' class.

Example: ``ALLEGRO_ORIGINAL.form``.
"""
