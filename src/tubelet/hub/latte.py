"""Latte's checkpoints in the form of diffusers' ``LatteTransformer3DModel``, both ways.

Their config fixes the number of frames (``video_length``); ours takes any, and writes their default. Their blocks over
space and over time are two lists, ours is one in the order of use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.pixart import attention_keys, ends_keys, square_patch
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.latte import LatteConfig, LatteTransformer

__all__ = ["LATTE", "latte_config_from_diffusers", "latte_config_to_diffusers", "latte_keys"]

_PEER = "LatteTransformer3DModel"
_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "in_channels": None,
    "out_channels": None,
    "num_layers": 1,
    "dropout": 0.0,
    "cross_attention_dim": None,
    "attention_bias": False,
    "sample_size": 64,
    "patch_size": None,
    "activation_fn": "geglu",
    "num_embeds_ada_norm": None,
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "caption_channels": None,
    "video_length": 16,
}
_FIXED: dict[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
}
_OURS = {"variant": "interleaved", "temporal_from": 1, "frequencies": 256, "time_scale": 1000.0, "time_shift": -1.0}


def latte_config_from_diffusers(config: Mapping[str, Any]) -> LatteConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`LatteTransformer`.

    Example:
        >>> from tubelet.models import latte_1
        >>> latte_config_from_diffusers(latte_config_to_diffusers(latte_1())) == latte_1()
        True
    """
    c = checked_config(config, _DEFAULTS, _FIXED, _PEER)
    if missing := [key for key in ("in_channels", "patch_size", "caption_channels") if c[key] is None]:
        raise ValueError(f"config has no {missing}, which have no default")
    dim, out = c["num_attention_heads"] * c["attention_head_dim"], c["out_channels"] or c["in_channels"]
    if c["cross_attention_dim"] != dim:
        raise ValueError(f"cross_attention_dim={c['cross_attention_dim']}, but text is projected to width {dim}")
    if out < c["in_channels"]:
        raise ValueError(f"out_channels={out} are fewer than in_channels={c['in_channels']}")
    return LatteConfig(
        dim=dim,
        depth=2 * c["num_layers"],
        heads=c["num_attention_heads"],
        latent_channels=c["in_channels"],
        variance_channels=out - c["in_channels"],
        text_dim=c["caption_channels"],
        patch=(1, c["patch_size"], c["patch_size"]),
        sample_size=c["sample_size"],
        eps=c["norm_eps"],
    )


def latte_config_to_diffusers(config: LatteConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a variant, patches or other values that their class cannot have.

    Example:
        >>> from tubelet.models import latte_1
        >>> latte_config_to_diffusers(latte_1())["num_layers"]
        28
    """
    check_own(config, _OURS, "diffusers' class")
    return {
        **_DEFAULTS,
        **_FIXED,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels + config.variance_channels,
        "num_layers": config.depth // 2,
        "cross_attention_dim": config.dim,
        "sample_size": config.sample_size,
        "patch_size": square_patch(config.patch),
        "num_embeds_ada_norm": 1000,
        "norm_eps": config.eps,
        "caption_channels": config.text_dim,
    }


def latte_keys(config: LatteConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import latte_1
        >>> groups, unknown = latte_keys(latte_1()).groups(["blocks.7.inner.modulation.table"], "ours")
        >>> groups[0].theirs, unknown
        (('temporal_transformer_blocks.3.scale_shift_table',), [])
    """
    channels = [config.latent_channels, config.variance_channels]
    return KeyMap(
        (
            *ends_keys(config.patch[1], channels),
            *(entry for i in range(config.depth // 2) for entry in _pair(i)),
        )
    )


def _pair(i: int) -> Sequence[Entry]:
    """Their block over space and that over time of number ``i``."""
    space, time = f"blocks.{2 * i}", f"blocks.{2 * i + 1}.inner"
    return (
        *_block(space, f"transformer_blocks.{i}", mlp=2),
        *attention_keys(f"{space}.branches.1.inner", f"transformer_blocks.{i}.attn2"),
        *_block(time, f"temporal_transformer_blocks.{i}", mlp=1),
    )


def _block(ours: str, theirs: str, mlp: int) -> Sequence[Entry]:
    """Table, self-attention and MLP, which is the branch of that number."""
    return (
        Entry((f"{ours}.modulation.table",), (f"{theirs}.scale_shift_table",)),
        *attention_keys(f"{ours}.branches.0.inner", f"{theirs}.attn1"),
        *renamed(f"{ours}.branches.{mlp}.inner.up", f"{theirs}.ff.net.0.proj"),
        *renamed(f"{ours}.branches.{mlp}.inner.down", f"{theirs}.ff.net.2"),
    )


LATTE = Family(LatteTransformer, _PEER, latte_keys, latte_config_from_diffusers, latte_config_to_diffusers)
"""The adapter between :class:`tubelet.models.LatteTransformer` and diffusers' class. Example: ``LATTE.peer``."""
