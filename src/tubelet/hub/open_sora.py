"""Open-Sora 2's checkpoint as its authors publish it, their ``MMDiTModel``, both ways.

What differs beyond names: their patches have the order ``c ph pw``, ours ``ph pw c``; a block of one stream has values
and MLP in one matrix, ours in two. Of their two ways to store queries, keys and values this is that of the published
model, one matrix each (``fused_qkv=False``). Their file has no config, so that one is read from the tensors' shapes;
which features of a head turn together (``use_liger_rope``) no shape tells.

Source: https://github.com/hpcaitech/Open-Sora, ``opensora/models/mmdit``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.models.open_sora import OpenSoraConfig, OpenSoraTransformer

__all__ = [
    "OPEN_SORA",
    "open_sora_config_from_original",
    "open_sora_config_to_original",
    "open_sora_original_config",
    "open_sora_original_keys",
]

Change = Callable[[Tensor], list[Tensor]]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 64,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": (16, 56, 56),
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "cond_embed": True,
    "fused_qkv": False,
    "use_liger_rope": True,
    "patch_size": 2,
}
"""The published model's; their class has no defaults for most."""


def open_sora_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`open_sora_config_from_original` reads.

    Raises:
        ValueError: tensors that every Open-Sora 2 has are missing.

    Example:
        >>> open_sora_original_config({}, {"img.weight": (64, 16)})
        Traceback (most recent call last):
        ValueError: the tensors are not MMDiTModel's: there is no img_in.weight of rank 2
    """
    file = FileShapes("MMDiTModel", shapes)
    dim, channels = file.of("img_in.weight")
    heads = dim // file.of("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    return {
        "in_channels": channels,
        "vec_in_dim": file.of("vector_in.in_layer.weight")[1],
        "context_in_dim": file.of("txt_in.weight")[1],
        "hidden_size": dim,
        "mlp_ratio": file.of("double_blocks.0.img_mlp.0.weight")[0] / dim,
        "num_heads": heads,
        "depth": file.count("double_blocks"),
        "depth_single_blocks": file.count("single_blocks"),
        "qkv_bias": file.has("double_blocks.0.img_attn.q_proj.bias"),
        "guidance_embed": file.has("guidance_in.in_layer.weight"),
        "cond_embed": file.has("cond_in.weight"),
        **config,
    }


def open_sora_config_from_original(config: Mapping[str, Any]) -> OpenSoraConfig:
    """Our config from theirs; keys that are missing are those of the published model.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`OpenSoraTransformer`.

    Example:
        >>> open_sora_config_from_original({"use_liger_rope": False}).rope_layout
        'interleaved'
    """
    c = checked_config(config, _DEFAULTS, {}, "MMDiTModel")
    cells = c["patch_size"] ** 2
    if c["fused_qkv"]:
        raise ValueError("fused_qkv=True, but the published model has queries, keys and values apart")
    if c["in_channels"] % cells:
        raise ValueError(f"in_channels={c['in_channels']} are not those of patch_size={c['patch_size']}")
    if len(c["axes_dim"]) != 3:
        raise ValueError(f"axes_dim={c['axes_dim']} are not those of three axes")
    t, h, w = c["axes_dim"]
    return OpenSoraConfig(
        dim=c["hidden_size"],
        heads=c["num_heads"],
        depth=c["depth"],
        single_depth=c["depth_single_blocks"],
        mlp_ratio=c["mlp_ratio"],
        latent_channels=c["in_channels"] // cells,
        given_channels=c["in_channels"] // cells + 1 if c["cond_embed"] else 0,
        text_dim=c["context_in_dim"],
        pooled_dim=c["vec_in_dim"],
        patch=(1, c["patch_size"], c["patch_size"]),
        rope_axes=(t, h, w),
        rope_theta=float(c["theta"]),
        rope_layout="half" if c["use_liger_rope"] else "interleaved",
        qkv_bias=c["qkv_bias"],
        guidance=c["guidance_embed"],
    )


def open_sora_config_to_original(config: OpenSoraConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: patches of several frames or that are not square, given channels other than a mask and latents,
            features paired in a third way, a fractional ``rope_theta`` or ``time_scale`` other than 1000.

    Example:
        >>> from tubelet.models import open_sora_2
        >>> open_sora_config_to_original(open_sora_2())["depth_single_blocks"]
        38
    """
    t, h, w = config.patch
    if t != 1 or h != w:
        raise ValueError(f"patch={config.patch}, but MMDiTModel has square patches of one frame")
    if config.given_channels not in (0, config.latent_channels + 1):
        given, own = config.given_channels, config.latent_channels
        raise ValueError(f"given_channels={given}, but MMDiTModel has none or latent_channels={own} and a mask")
    if config.rope_layout == "half_per_axis":
        raise ValueError("rope_layout='half_per_axis', but MMDiTModel has 'half' or 'interleaved'")
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but MMDiTModel has 1000")
    return {
        "in_channels": h * w * config.latent_channels,
        "vec_in_dim": config.pooled_dim,
        "context_in_dim": config.text_dim,
        "hidden_size": config.dim,
        "mlp_ratio": config.mlp_ratio,
        "num_heads": config.heads,
        "depth": config.depth,
        "depth_single_blocks": config.single_depth,
        "axes_dim": list(config.rope_axes),
        "theta": config.rope_theta,
        "qkv_bias": config.qkv_bias,
        "guidance_embed": config.guidance,
        "cond_embed": config.given_channels > 0,
        "fused_qkv": False,
        "use_liger_rope": config.rope_layout == "half",
        "patch_size": h,
    }


def open_sora_original_keys(config: OpenSoraConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import open_sora_2
        >>> keys = open_sora_original_keys(open_sora_2())
        >>> groups, unknown = keys.groups(["single_blocks.3.linear2.bias"], "theirs")
        >>> groups[0].ours, unknown
        (('blocks.single.3.branches.0.inner.down.bias',), [])
    """
    return KeyMap(
        (
            Entry(("embed.weight",), ("img_in.weight",), *_patches_in(config)),
            *renamed("embed", "img_in", ["bias"]),
            Entry(("given.weight",), ("cond_in.weight",), *_patches_in(config)),
            *renamed("given", "cond_in", ["bias"]),
            *renamed("text", "txt_in"),
            *_embeddings("condition.time", "time_in"),
            *_embeddings("condition.pooled", "vector_in"),
            *_embeddings("condition.guidance", "guidance_in"),
            *_stream("blocks.dual.*", 0, "double_blocks.*.txt"),
            *_stream("blocks.dual.*", 1, "double_blocks.*.img"),
            *_single("blocks.single.*.branches.0", "single_blocks.*", config),
            *renamed("final_modulation.proj", "final_layer.adaLN_modulation.1"),
            *(
                Entry((f"project.{leaf}",), (f"final_layer.linear.{leaf}",), *_patches_out(config))
                for leaf in ("weight", "bias")
            ),
        )
    )


def _embeddings(ours: str, theirs: str) -> Sequence[Entry]:
    return (*renamed(f"{ours}.up", f"{theirs}.in_layer"), *renamed(f"{ours}.down", f"{theirs}.out_layer"))


def _norms(ours: str, theirs: str) -> Sequence[Entry]:
    return tuple(
        Entry((f"{ours}.{own}_norm.weight",), (f"{theirs}.{name}_norm.scale",))
        for own, name in (("q", "query"), ("k", "key"))
    )


def _stream(ours: str, stream: int, theirs: str) -> Sequence[Entry]:
    """One stream of a dual block."""
    attention, mlp = f"{ours}.branches.0.inner.streams.{stream}", f"{ours}.branches.1.branches.{stream}.inner"
    return (
        *renamed(f"{ours}.modulations.{stream}.proj", f"{theirs}_mod.lin"),
        *(entry for x in "qkv" for entry in renamed(f"{attention}.{x}_proj", f"{theirs}_attn.{x}_proj")),
        *renamed(f"{attention}.out_proj", f"{theirs}_attn.proj"),
        *_norms(attention, f"{theirs}_attn.norm"),
        *renamed(f"{mlp}.up", f"{theirs}_mlp.0"),
        *renamed(f"{mlp}.down", f"{theirs}_mlp.2"),
    )


def _single(ours: str, theirs: str, config: OpenSoraConfig) -> Sequence[Entry]:
    """Their values and MLP are one matrix."""
    attention, sizes = f"{ours}.inner.attention", [config.dim, config.mlp_dim]
    return (
        *renamed(f"{ours}.modulation.proj", f"{theirs}.modulation.lin"),
        *renamed(f"{attention}.q_proj", f"{theirs}.q_proj"),
        *renamed(f"{attention}.k_proj", f"{theirs}.k_proj"),
        *(
            Entry(
                (f"{attention}.v_proj.{leaf}", f"{ours}.inner.up.{leaf}"),
                (f"{theirs}.v_mlp.{leaf}",),
                lambda both: torch.split(both, sizes),
                lambda *parts: [torch.cat(parts)],
            )
            for leaf in ("weight", "bias")
        ),
        *_norms(attention, f"{theirs}.norm"),
        *renamed(f"{ours}.inner.down", f"{theirs}.linear2"),
    )


def _patches_in(config: OpenSoraConfig) -> tuple[Change, Change]:
    """The columns of a layer on patches from the order ``(c ph pw)`` to ``(ph pw c)``."""
    _, h, w = config.patch
    return (
        lambda weight: [rearrange(weight, "d (c h w) -> d (h w c)", h=h, w=w)],
        lambda weight: [rearrange(weight, "d (h w c) -> d (c h w)", h=h, w=w)],
    )


def _patches_out(config: OpenSoraConfig) -> tuple[Change, Change]:
    """The rows of the last layer likewise."""
    _, h, w = config.patch
    return (
        lambda rows: [rearrange(rows, "(c h w) ... -> (h w c) ...", h=h, w=w)],
        lambda rows: [rearrange(rows, "(h w c) ... -> (c h w) ...", h=h, w=w)],
    )


OPEN_SORA = Family(
    OpenSoraTransformer,
    "MMDiTModel",
    open_sora_original_keys,
    open_sora_config_from_original,
    open_sora_config_to_original,
    form="original",
    complete=open_sora_original_config,
)
"""The adapter between :class:`tubelet.models.OpenSoraTransformer` and its authors' class.

Example: ``OPEN_SORA.peer``.
"""
