"""Wan's checkpoints in the form of diffusers' ``WanTransformer3DModel``, both ways.

What differs beyond names: their patch embedding is a convolution over all channels, ours a linear layer on patches with
the given channels apart; their tables have a leading axis of one. Their config bounds the positions by
``rope_max_seq_len``; ours has no bound, and writes their default.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.models.wan import WanConfig, WanTransformer

__all__ = ["WAN", "wan_config_from_diffusers", "wan_config_to_diffusers", "wan_keys"]

_DEFAULTS: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
    "pos_embed_seq_len": None,
}


def wan_config_from_diffusers(config: Mapping[str, Any]) -> WanConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`WanTransformer`.

    Example:
        >>> wan_config_from_diffusers({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}).dim
        1536
    """
    c = checked_config(config, _DEFAULTS, {}, "WanTransformer3DModel")
    dim, out = c["num_attention_heads"] * c["attention_head_dim"], c["out_channels"] or c["in_channels"]
    if c["qk_norm"] != _DEFAULTS["qk_norm"]:
        raise ValueError(f"qk_norm={c['qk_norm']!r}, but Wan's is {_DEFAULTS['qk_norm']!r}")
    if c["added_kv_proj_dim"] != (None if c["image_dim"] is None else dim):
        raise ValueError(f"added_kv_proj_dim={c['added_kv_proj_dim']} with image_dim={c['image_dim']} and width {dim}")
    if c["in_channels"] < out:
        raise ValueError(f"in_channels={c['in_channels']} are fewer than out_channels={out}")
    t, h, w = c["patch_size"]
    return WanConfig(
        dim=dim,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["ffn_dim"],
        latent_channels=out,
        given_channels=c["in_channels"] - out,
        text_dim=c["text_dim"],
        image_dim=c["image_dim"],
        image_tokens=c["pos_embed_seq_len"],
        patch=(t, h, w),
        frequencies=c["freq_dim"],
        cross_norm=c["cross_attn_norm"],
        eps=c["eps"],
    )


def wan_config_to_diffusers(config: WanConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: ``time_scale`` is not 1000; their class is fed the scaled time.

    Example:
        >>> from tubelet.models import wan_14b
        >>> wan_config_to_diffusers(wan_14b())["num_attention_heads"]
        40
    """
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but diffusers' pipelines feed times of 0 to 1000")
    return {
        "patch_size": list(config.patch),
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.latent_channels + config.given_channels,
        "out_channels": config.latent_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.frequencies,
        "ffn_dim": config.mlp_dim,
        "num_layers": config.depth,
        "cross_attn_norm": config.cross_norm,
        "qk_norm": _DEFAULTS["qk_norm"],
        "eps": config.eps,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "rope_max_seq_len": _DEFAULTS["rope_max_seq_len"],
        "pos_embed_seq_len": config.image_tokens,
    }


def wan_keys(config: WanConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import wan_1_3b
        >>> groups, unknown = wan_keys(wan_1_3b()).groups(["blocks.3.modulation.table"], "ours")
        >>> groups[0].theirs, unknown
        (('blocks.3.scale_shift_table',), [])
    """
    embedder = "condition_embedder"
    image = f"{embedder}.image_embedder"
    return KeyMap(
        (
            Entry(("embed.weight",), ("patch_embedding.weight",), *patches(config)),
            *renamed("embed", "patch_embedding", ["bias"]),
            *renamed("time.up", f"{embedder}.time_embedder.linear_1"),
            *renamed("time.down", f"{embedder}.time_embedder.linear_2"),
            *renamed("modulation", f"{embedder}.time_proj"),
            *renamed("text.up", f"{embedder}.text_embedder.linear_1"),
            *renamed("text.down", f"{embedder}.text_embedder.linear_2"),
            *renamed("image.before", f"{image}.norm1"),
            *renamed("image.mlp.up", f"{image}.ff.net.0.proj"),
            *renamed("image.mlp.down", f"{image}.ff.net.2"),
            *renamed("image.after", f"{image}.norm2"),
            table("image.positions", f"{image}.pos_embed"),
            table("blocks.*.modulation.table", "blocks.*.scale_shift_table"),
            *_attention("blocks.*.branches.0.inner", "blocks.*.attn1"),
            *_attention("blocks.*.branches.1.inner", "blocks.*.attn2"),
            *renamed("blocks.*.branches.1.inner.image_k_proj", "blocks.*.attn2.add_k_proj"),
            *renamed("blocks.*.branches.1.inner.image_v_proj", "blocks.*.attn2.add_v_proj"),
            *renamed("blocks.*.branches.1.inner.image_k_norm", "blocks.*.attn2.norm_added_k", ["weight"]),
            *renamed("blocks.*.branches.1.norm", "blocks.*.norm2"),
            *renamed("blocks.*.branches.2.inner.up", "blocks.*.ffn.net.0.proj"),
            *renamed("blocks.*.branches.2.inner.down", "blocks.*.ffn.net.2"),
            table("final_modulation.table", "scale_shift_table"),
            *renamed("project", "proj_out"),
        ),
        ignored=("blocks.*.attn2.norm_added_q.weight",),
    )


def _attention(ours: str, theirs: str) -> Sequence[Entry]:
    """Four projections and two norms."""
    return (
        *(entry for name in "qkv" for entry in renamed(f"{ours}.{name}_proj", f"{theirs}.to_{name}")),
        *renamed(f"{ours}.out_proj", f"{theirs}.to_out.0"),
        *renamed(f"{ours}.q_norm", f"{theirs}.norm_q", ["weight"]),
        *renamed(f"{ours}.k_norm", f"{theirs}.norm_k", ["weight"]),
    )


def table(ours: str, theirs: str) -> Entry:
    """A table with a leading axis of one on their side."""
    return Entry((ours,), (theirs,), lambda t: [t.squeeze(0)], lambda t: [t.unsqueeze(0)])


def patches(config: WanConfig) -> tuple[Callable[[Tensor], list[Tensor]], Callable[[Tensor], list[Tensor]]]:
    """A convolution of stride its own size as a linear layer on patches ``(pt ph pw c)``, given channels behind."""
    t, h, w = config.patch
    channels = [config.latent_channels, config.given_channels]
    widths = [math.prod(config.patch) * c for c in channels]

    def to_ours(weight: Tensor) -> list[Tensor]:
        parts = torch.split(weight, channels, 1)
        return [torch.cat([rearrange(part, "d c t h w -> d (t h w c)") for part in parts], dim=1)]

    def to_theirs(weight: Tensor) -> list[Tensor]:
        parts = torch.split(weight, widths, 1)
        return [torch.cat([rearrange(part, "d (t h w c) -> d c t h w", t=t, h=h, w=w) for part in parts], dim=1)]

    return to_ours, to_theirs


WAN = Family(
    WanTransformer,
    "WanTransformer3DModel",
    wan_keys,
    wan_config_from_diffusers,
    wan_config_to_diffusers,
    wide=(
        *(f"time.{name}.{leaf}" for name in ("up", "down") for leaf in ("weight", "bias")),
        *(f"image.{name}.{leaf}" for name in ("before", "after") for leaf in ("weight", "bias")),
        *(f"blocks.*.branches.1.norm.{leaf}" for leaf in ("weight", "bias")),
        "blocks.*.modulation.table",
        "final_modulation.table",
    ),
)
"""The adapter between :class:`tubelet.models.WanTransformer` and diffusers' class. Example: ``WAN.keys(config)``."""
