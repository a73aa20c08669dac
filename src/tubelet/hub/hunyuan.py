"""HunyuanVideo's checkpoints in the form of diffusers' ``HunyuanVideoTransformer3DModel``, both ways.

What differs beyond names: their patch embedding is a convolution over all channels, ours a linear layer on patches with
the given channels apart; they write patches in the order ``c pt ph pw``, we in ``pt ph pw c``; the last norm has its
scale before its shift, ours behind.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.models.hunyuan import HunyuanVideoConfig, HunyuanVideoTransformer

__all__ = [
    "HUNYUAN_VIDEO",
    "hunyuan_video_config_from_diffusers",
    "hunyuan_video_config_to_diffusers",
    "hunyuan_video_keys",
]

Change = Callable[[Tensor], list[Tensor]]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_theta": 256.0,
    "rope_axes_dim": (16, 56, 56),
    "image_condition_type": None,
}


def hunyuan_video_config_from_diffusers(config: Mapping[str, Any]) -> HunyuanVideoConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`HunyuanVideoTransformer`.

    Example:
        >>> hunyuan_video_config_from_diffusers({"num_layers": 2, "guidance_embeds": False}).depth
        2
    """
    c = checked_config(config, _DEFAULTS, {}, "HunyuanVideoTransformer3DModel")
    out = c["out_channels"] or c["in_channels"]
    if c["qk_norm"] != _DEFAULTS["qk_norm"]:
        raise ValueError(f"qk_norm={c['qk_norm']!r}, but HunyuanVideo's is {_DEFAULTS['qk_norm']!r}")
    if c["in_channels"] < out:
        raise ValueError(f"in_channels={c['in_channels']} are fewer than out_channels={out}")
    if len(c["rope_axes_dim"]) != 3:
        raise ValueError(f"rope_axes_dim={c['rope_axes_dim']} are not those of three axes")
    t, h, w = c["rope_axes_dim"]
    return HunyuanVideoConfig(
        dim=c["num_attention_heads"] * c["attention_head_dim"],
        heads=c["num_attention_heads"],
        depth=c["num_layers"],
        single_depth=c["num_single_layers"],
        refiner_depth=c["num_refiner_layers"],
        mlp_ratio=c["mlp_ratio"],
        latent_channels=out,
        given_channels=c["in_channels"] - out,
        text_dim=c["text_embed_dim"],
        pooled_dim=c["pooled_projection_dim"],
        patch=(c["patch_size_t"], c["patch_size"], c["patch_size"]),
        rope_axes=(t, h, w),
        rope_theta=c["rope_theta"],
        guidance=c["guidance_embeds"],
        image_condition=c["image_condition_type"],
    )


def hunyuan_video_config_to_diffusers(config: HunyuanVideoConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a patch that is not square, or ``time_scale`` is not 1000; their class is fed the scaled time.

    Example:
        >>> from tubelet.models import hunyuan_video
        >>> hunyuan_video_config_to_diffusers(hunyuan_video())["num_single_layers"]
        40
    """
    t, h, w = config.patch
    if h != w:
        raise ValueError(f"patch={config.patch}, but diffusers' patches are square")
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but diffusers' pipelines feed times of 0 to 1000")
    return {
        "in_channels": config.latent_channels + config.given_channels,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "num_layers": config.depth,
        "num_single_layers": config.single_depth,
        "num_refiner_layers": config.refiner_depth,
        "mlp_ratio": config.mlp_ratio,
        "patch_size": h,
        "patch_size_t": t,
        "qk_norm": _DEFAULTS["qk_norm"],
        "guidance_embeds": config.guidance,
        "text_embed_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "rope_theta": config.rope_theta,
        "rope_axes_dim": list(config.rope_axes),
        "image_condition_type": config.image_condition,
    }


def hunyuan_video_keys(config: HunyuanVideoConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import hunyuan_video
        >>> keys = hunyuan_video_keys(hunyuan_video())
        >>> groups, unknown = keys.groups(["blocks.single.3.branches.0.inner.down.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('single_transformer_blocks.3.proj_out.bias',), [])
    """
    return KeyMap(
        (
            Entry(("embed.weight",), ("x_embedder.proj.weight",), *patches_in(config)),
            *renamed("embed", "x_embedder.proj", ["bias"]),
            *_embeddings("condition.time", "time_text_embed.timestep_embedder"),
            *_embeddings("condition.pooled", "time_text_embed.text_embedder"),
            *_embeddings("condition.guidance", "time_text_embed.guidance_embedder"),
            *_refiner("refiner", "context_embedder"),
            *_dual("blocks.dual.*", "transformer_blocks.*"),
            *_single("blocks.single.*.branches.0", "single_transformer_blocks.*"),
            *(
                Entry((f"final_modulation.proj.{leaf}",), (f"norm_out.linear.{leaf}",), _swapped, _swapped)
                for leaf in ("weight", "bias")
            ),
            *(
                Entry((f"project.{leaf}",), (f"proj_out.{leaf}",), *patches_out(config))
                for leaf in ("weight", "bias")
            ),
        )
    )  # fmt: skip


def _embeddings(ours: str, theirs: str) -> Sequence[Entry]:
    return (*renamed(f"{ours}.up", f"{theirs}.linear_1"), *renamed(f"{ours}.down", f"{theirs}.linear_2"))


def _mlp(ours: str, theirs: str) -> Sequence[Entry]:
    return (*renamed(f"{ours}.up", f"{theirs}.net.0.proj"), *renamed(f"{ours}.down", f"{theirs}.net.2"))


def _attention(ours: str, theirs: str, names: Sequence[str]) -> Sequence[Entry]:
    """Projections under the given names of theirs."""
    pairs = zip(("q_proj", "k_proj", "v_proj", "out_proj"), names, strict=False)
    return tuple(entry for own, name in pairs for entry in renamed(f"{ours}.{own}", f"{theirs}.{name}"))


def _norms(ours: str, theirs: str, names: Sequence[str]) -> Sequence[Entry]:
    pairs = zip(("q_norm", "k_norm"), names, strict=True)
    return tuple(entry for own, name in pairs for entry in renamed(f"{ours}.{own}", f"{theirs}.{name}", ["weight"]))


_VIDEO, _TEXT = ("to_q", "to_k", "to_v", "to_out.0"), ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def _refiner(ours: str, theirs: str) -> Sequence[Entry]:
    block, their_block = f"{ours}.blocks.*", f"{theirs}.token_refiner.refiner_blocks.*"
    return (
        *renamed(f"{ours}.embed", f"{theirs}.proj_in"),
        *_embeddings(f"{ours}.time", f"{theirs}.time_text_embed.timestep_embedder"),
        *_embeddings(f"{ours}.mean", f"{theirs}.time_text_embed.text_embedder"),
        *renamed(f"{block}.modulation.proj", f"{their_block}.norm_out.linear"),
        *renamed(f"{block}.branches.0.norm", f"{their_block}.norm1"),
        *_attention(f"{block}.branches.0.inner", f"{their_block}.attn", _VIDEO),
        *renamed(f"{block}.branches.1.norm", f"{their_block}.norm2"),
        *_mlp(f"{block}.branches.1.inner", f"{their_block}.ff"),
    )


def _dual(ours: str, theirs: str) -> Sequence[Entry]:
    """Stream 0 is the text, stream 1 the video."""
    joint, mlps = f"{ours}.branches.0.inner.streams", f"{ours}.branches.1.branches"
    return (
        *renamed(f"{ours}.modulations.0.proj", f"{theirs}.norm1_context.linear"),
        *renamed(f"{ours}.modulations.1.proj", f"{theirs}.norm1.linear"),
        *_attention(f"{joint}.0", f"{theirs}.attn", _TEXT),
        *_attention(f"{joint}.1", f"{theirs}.attn", _VIDEO),
        *_norms(f"{joint}.0", f"{theirs}.attn", ("norm_added_q", "norm_added_k")),
        *_norms(f"{joint}.1", f"{theirs}.attn", ("norm_q", "norm_k")),
        *_mlp(f"{mlps}.0.inner", f"{theirs}.ff_context"),
        *_mlp(f"{mlps}.1.inner", f"{theirs}.ff"),
    )


def _single(ours: str, theirs: str) -> Sequence[Entry]:
    return (
        *renamed(f"{ours}.modulation.proj", f"{theirs}.norm.linear"),
        *_attention(f"{ours}.inner.attention", f"{theirs}.attn", _VIDEO[:3]),
        *_norms(f"{ours}.inner.attention", f"{theirs}.attn", ("norm_q", "norm_k")),
        *renamed(f"{ours}.inner.up", f"{theirs}.proj_mlp"),
        *renamed(f"{ours}.inner.down", f"{theirs}.proj_out"),
    )


def _swapped(tensor: Tensor) -> list[Tensor]:
    """The two halves in the other order."""
    return [torch.cat(tensor.chunk(2)[::-1])]


def patches_in(config: HunyuanVideoConfig) -> tuple[Change, Change]:
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


def patches_out(config: HunyuanVideoConfig) -> tuple[Change, Change]:
    """The rows of the last layer from the order ``(c pt ph pw)`` to ``(pt ph pw c)``."""
    t, h, w = config.patch
    return (
        lambda rows: [rearrange(rows, "(c t h w) ... -> (t h w c) ...", t=t, h=h, w=w)],
        lambda rows: [rearrange(rows, "(t h w c) ... -> (c t h w) ...", t=t, h=h, w=w)],
    )


HUNYUAN_VIDEO = Family(
    HunyuanVideoTransformer,
    "HunyuanVideoTransformer3DModel",
    hunyuan_video_keys,
    hunyuan_video_config_from_diffusers,
    hunyuan_video_config_to_diffusers,
)
"""The adapter between :class:`tubelet.models.HunyuanVideoTransformer` and diffusers' class.

Example: ``HUNYUAN_VIDEO.keys(config)``.
"""
