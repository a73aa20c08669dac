"""HunyuanVideo's checkpoints as their authors publish them, ``HYVideoDiffusionTransformer``, both ways.

What differs from ours beyond names: queries, keys and values are one matrix, in a block of one stream with the MLP
besides; patches are read by a convolution and written in the order ``c pt ph pw``. Their files have no config, so that
one is read from the tensors' shapes; heads are as wide as their norms. That a first frame is given
(``i2v_condition_type="token_replace"``) no shape tells.

Source: https://github.com/Tencent/HunyuanVideo and https://github.com/Tencent/HunyuanVideo-I2V,
``hyvideo/modules/models.py``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tubelet.hub.hunyuan import patches_in, patches_out
from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.models.hunyuan import HunyuanVideoConfig, HunyuanVideoTransformer

__all__ = [
    "HUNYUAN_VIDEO_ORIGINAL",
    "hunyuan_video_config_from_original",
    "hunyuan_video_config_to_original",
    "hunyuan_video_original_config",
    "hunyuan_video_original_keys",
]

_DEFAULTS: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 3072,
    "heads_num": 24,
    "mlp_width_ratio": 4.0,
    "mm_double_blocks_depth": 20,
    "mm_single_blocks_depth": 40,
    "refiner_depth": 2,
    "rope_dim_list": (16, 56, 56),
    "rope_theta": 256,
    "text_states_dim": 4096,
    "text_states_dim_2": 768,
    "guidance_embed": False,
    "i2v_condition_type": None,
}
"""Arguments of their class and, of those of their programs, what it reads; ``refiner_depth`` is fixed there."""


def hunyuan_video_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`hunyuan_video_config_from_original` reads.

    Raises:
        ValueError: tensors that every HunyuanVideo has are missing.

    Example:
        >>> hunyuan_video_original_config({}, {"img_in.proj.weight": (64, 16, 1, 2, 2)})
        Traceback (most recent call last):
        ValueError: the tensors are not HYVideoDiffusionTransformer's: there is no final_layer.linear.weight of rank 2
    """
    file = FileShapes("HYVideoDiffusionTransformer", shapes)
    dim, channels, *patch = file.of("img_in.proj.weight", 5)
    out = file.of("final_layer.linear.weight")[0] // math.prod(patch)
    return {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "out_channels": out,
        "hidden_size": dim,
        "heads_num": dim // file.of("double_blocks.0.img_attn_q_norm.weight", 1)[0],
        "mlp_width_ratio": file.of("double_blocks.0.img_mlp.fc1.weight")[0] / dim,
        "mm_double_blocks_depth": file.count("double_blocks"),
        "mm_single_blocks_depth": file.count("single_blocks"),
        "refiner_depth": file.count("txt_in.individual_token_refiner.blocks"),
        "text_states_dim": file.of("txt_in.input_embedder.weight")[1],
        "text_states_dim_2": file.of("vector_in.in_layer.weight")[1],
        "guidance_embed": file.has("guidance_in.mlp.0.weight"),
        "i2v_condition_type": None if channels == out else "latent_concat",
        **config,
    }


def hunyuan_video_config_from_original(config: Mapping[str, Any]) -> HunyuanVideoConfig:
    """Our config from theirs; keys that are missing have their defaults.

    Raises:
        ValueError: keys that their class does not have, or values that make another model than
            :class:`HunyuanVideoTransformer`.

    Example:
        >>> hunyuan_video_config_from_original({"guidance_embed": True}).single_depth
        40
    """
    c = checked_config(config, _DEFAULTS, {}, "HYVideoDiffusionTransformer")
    out = c["out_channels"] or c["in_channels"]
    if c["in_channels"] < out:
        raise ValueError(f"in_channels={c['in_channels']} are fewer than out_channels={out}")
    return HunyuanVideoConfig(
        dim=c["hidden_size"],
        heads=c["heads_num"],
        depth=c["mm_double_blocks_depth"],
        single_depth=c["mm_single_blocks_depth"],
        refiner_depth=c["refiner_depth"],
        mlp_ratio=float(c["mlp_width_ratio"]),
        latent_channels=out,
        given_channels=c["in_channels"] - out,
        text_dim=c["text_states_dim"],
        pooled_dim=c["text_states_dim_2"],
        patch=tuple(c["patch_size"]),
        rope_axes=tuple(c["rope_dim_list"]),
        rope_theta=float(c["rope_theta"]),
        guidance=c["guidance_embed"],
        image_condition=c["i2v_condition_type"],
    )


def hunyuan_video_config_to_original(config: HunyuanVideoConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: ``time_scale`` is not 1000, or ``refiner_depth`` not 2.

    Example:
        >>> from tubelet.models import hunyuan_video
        >>> hunyuan_video_config_to_original(hunyuan_video())["guidance_embed"]
        True
    """
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but HYVideoDiffusionTransformer is fed times of 0 to 1000")
    if config.refiner_depth != _DEFAULTS["refiner_depth"]:
        raise ValueError(f"refiner_depth={config.refiner_depth}, but HYVideoDiffusionTransformer has 2")
    return {
        "patch_size": list(config.patch),
        "in_channels": config.latent_channels + config.given_channels,
        "out_channels": config.latent_channels,
        "hidden_size": config.dim,
        "heads_num": config.heads,
        "mlp_width_ratio": config.mlp_ratio,
        "mm_double_blocks_depth": config.depth,
        "mm_single_blocks_depth": config.single_depth,
        "rope_dim_list": list(config.rope_axes),
        "rope_theta": config.rope_theta,
        "text_states_dim": config.text_dim,
        "text_states_dim_2": config.pooled_dim,
        "guidance_embed": config.guidance,
        "i2v_condition_type": config.image_condition,
    }


def hunyuan_video_original_keys(config: HunyuanVideoConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import hunyuan_video
        >>> keys = hunyuan_video_original_keys(hunyuan_video())
        >>> groups, unknown = keys.groups(["single_blocks.3.linear2.bias"], "theirs")
        >>> groups[0].ours, unknown
        (('blocks.single.3.branches.0.inner.down.bias',), [])
    """
    return KeyMap(
        (
            Entry(("embed.weight",), ("img_in.proj.weight",), *patches_in(config)),
            *renamed("embed", "img_in.proj", ["bias"]),
            *_pair("condition.time", "time_in.mlp", ("0", "2")),
            *_pair("condition.pooled", "vector_in", ("in_layer", "out_layer")),
            *_pair("condition.guidance", "guidance_in.mlp", ("0", "2")),
            *_refiner("refiner", "txt_in", config),
            *_stream("blocks.dual.*", 0, "double_blocks.*.txt", config),
            *_stream("blocks.dual.*", 1, "double_blocks.*.img", config),
            *_single("blocks.single.*.branches.0", "single_blocks.*", config),
            *renamed("final_modulation.proj", "final_layer.adaLN_modulation.1"),
            *(
                Entry((f"project.{leaf}",), (f"final_layer.linear.{leaf}",), *patches_out(config))
                for leaf in ("weight", "bias")
            ),
        )
    )


def _pair(ours: str, theirs: str, names: tuple[str, str]) -> Sequence[Entry]:
    """The two layers of an embedding or an MLP."""
    return (*renamed(f"{ours}.up", f"{theirs}.{names[0]}"), *renamed(f"{ours}.down", f"{theirs}.{names[1]}"))


def _joined(ours: Sequence[str], theirs: str, widths: Sequence[int]) -> Sequence[Entry]:
    """Layers of ours that read the same tokens and are one of theirs."""
    return tuple(
        Entry(
            tuple(f"{name}.{leaf}" for name in ours),
            (f"{theirs}.{leaf}",),
            lambda whole: torch.split(whole, list(widths)),
            lambda *parts: [torch.cat(parts)],
        )
        for leaf in ("weight", "bias")
    )


def _qkv(attention: str) -> list[str]:
    return [f"{attention}.{name}_proj" for name in "qkv"]


def _refiner(ours: str, theirs: str, config: HunyuanVideoConfig) -> Sequence[Entry]:
    block, their_block = f"{ours}.blocks.*", f"{theirs}.individual_token_refiner.blocks.*"
    attention = f"{block}.branches.0.inner"
    return (
        *renamed(f"{ours}.embed", f"{theirs}.input_embedder"),
        *_pair(f"{ours}.time", f"{theirs}.t_embedder.mlp", ("0", "2")),
        *_pair(f"{ours}.mean", f"{theirs}.c_embedder", ("linear_1", "linear_2")),
        *renamed(f"{block}.modulation.proj", f"{their_block}.adaLN_modulation.1"),
        *renamed(f"{block}.branches.0.norm", f"{their_block}.norm1"),
        *_joined(_qkv(attention), f"{their_block}.self_attn_qkv", [config.dim] * 3),
        *renamed(f"{attention}.out_proj", f"{their_block}.self_attn_proj"),
        *renamed(f"{block}.branches.1.norm", f"{their_block}.norm2"),
        *_pair(f"{block}.branches.1.inner", f"{their_block}.mlp", ("fc1", "fc2")),
    )


def _stream(ours: str, stream: int, theirs: str, config: HunyuanVideoConfig) -> Sequence[Entry]:
    """One stream of a dual block."""
    attention, mlp = f"{ours}.branches.0.inner.streams.{stream}", f"{ours}.branches.1.branches.{stream}.inner"
    return (
        *renamed(f"{ours}.modulations.{stream}.proj", f"{theirs}_mod.linear"),
        *_joined(_qkv(attention), f"{theirs}_attn_qkv", [config.dim] * 3),
        *renamed(f"{attention}.q_norm", f"{theirs}_attn_q_norm", ["weight"]),
        *renamed(f"{attention}.k_norm", f"{theirs}_attn_k_norm", ["weight"]),
        *renamed(f"{attention}.out_proj", f"{theirs}_attn_proj"),
        *_pair(mlp, f"{theirs}_mlp", ("fc1", "fc2")),
    )


def _single(ours: str, theirs: str, config: HunyuanVideoConfig) -> Sequence[Entry]:
    attention = f"{ours}.inner.attention"
    widths = [config.dim, config.dim, config.dim, config.mlp_dim]
    return (
        *renamed(f"{ours}.modulation.proj", f"{theirs}.modulation.linear"),
        *_joined([*_qkv(attention), f"{ours}.inner.up"], f"{theirs}.linear1", widths),
        *renamed(f"{attention}.q_norm", f"{theirs}.q_norm", ["weight"]),
        *renamed(f"{attention}.k_norm", f"{theirs}.k_norm", ["weight"]),
        *renamed(f"{ours}.inner.down", f"{theirs}.linear2"),
    )


HUNYUAN_VIDEO_ORIGINAL = Family(
    HunyuanVideoTransformer,
    "HYVideoDiffusionTransformer",
    hunyuan_video_original_keys,
    hunyuan_video_config_from_original,
    hunyuan_video_config_to_original,
    form="original",
    complete=hunyuan_video_original_config,
    prefixes=("model.diffusion_model.", "model.model."),
)
"""The adapter between :class:`tubelet.models.HunyuanVideoTransformer` and its authors' class.

Example: ``HUNYUAN_VIDEO_ORIGINAL.peer``.
"""
