"""Mochi's checkpoints as their authors publish them, ``AsymmDiTJoint``'s ``dit.safetensors``, both ways.

What differs from diffusers' beyond names: queries, keys and values are one matrix, the gate of an MLP stands before its
value, and the last modulation has its shift before its scale. A file has no config and needs none: the shapes say all
that the class lets choose.

Source: https://github.com/genmoai/mochi, ``src/genmo/mochi_preview/dit/joint_model/asymm_models_joint.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, fused, renamed
from tubelet.hub.mochi import MOCHI, POOL_HEADS, POSITION_AREA
from tubelet.hub.pixart import embed_keys, square_patch
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.mochi import MochiConfig, MochiTransformer

__all__ = [
    "MOCHI_ORIGINAL",
    "mochi_config_from_original",
    "mochi_config_to_original",
    "mochi_original_config",
    "mochi_original_keys",
]

_FIXED: dict[str, Any] = {
    "mlp_ratio_x": 4.0,
    "mlp_ratio_y": 4.0,
    "out_bias": True,
    "patch_embed_bias": True,
    "qk_norm": True,
    "qkv_bias": False,
    "timestep_mlp_bias": True,
    "timestep_scale": 1000.0,
    "use_extended_posenc": False,
}
_DEFAULTS: dict[str, Any] = {
    **_FIXED,
    "attention_mode": "sdpa",
    "depth": 48,
    "hidden_size_x": 3072,
    "hidden_size_y": 1536,
    "in_channels": 12,
    "num_heads": 24,
    "patch_size": 2,
    "rope_theta": 10000.0,
    "t5_feat_dim": 4096,
    "t5_token_length": 256,
}
"""What their programs make the class with; it reads neither ``rope_theta`` nor ``use_extended_posenc``."""

_FREQUENCIES, _MULTIPLE = 256, 256
"""Of the noise level's sinusoid, and what the width of an MLP is a multiple of."""


def mochi_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`mochi_config_from_original` reads.

    Raises:
        ValueError: tensors that every Mochi has are missing.

    Example:
        >>> mochi_original_config({}, {"patch_embed.proj.weight": (3072, 12, 2, 2)})
        Traceback (most recent call last):
        ValueError: the tensors are not AsymmDiTJoint's: there is no x_embedder.proj.weight of rank 4
    """
    file = FileShapes("AsymmDiTJoint", shapes)
    dim, channels, side, _ = file.of("x_embedder.proj.weight", 4)
    width, text_dim = file.of("t5_yproj.weight")
    return {
        "depth": file.count("blocks"),
        "hidden_size_x": dim,
        "hidden_size_y": width,
        "in_channels": channels,
        "num_heads": file.of("pos_frequencies", 3)[1],
        "patch_size": side,
        "t5_feat_dim": text_dim,
        **config,
    }


def mochi_config_from_original(config: Mapping[str, Any]) -> MochiConfig:
    """Our config from theirs; keys that are missing are those of the published model.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`MochiTransformer`.

    Example:
        >>> mochi_config_from_original({"depth": 2}).text_width
        1536
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "AsymmDiTJoint")
    return MochiConfig(
        dim=c["hidden_size_x"],
        depth=c["depth"],
        heads=c["num_heads"],
        text_width=c["hidden_size_y"],
        latent_channels=c["in_channels"],
        text_dim=c["t5_feat_dim"],
        pool_heads=POOL_HEADS,
        patch=(1, c["patch_size"], c["patch_size"]),
        frequencies=_FREQUENCIES,
        area=POSITION_AREA,
    )


def mochi_config_to_original(config: MochiConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.models import mochi_10b
        >>> mochi_config_to_original(mochi_10b())["hidden_size_y"]
        1536
    """
    only = {"time_scale": 1000, "pool_heads": POOL_HEADS, "area": POSITION_AREA, "frequencies": _FREQUENCIES}
    check_own(config, only, "AsymmDiTJoint")
    for name in ("dim", "text_width"):
        if (hidden := 8 * getattr(config, name) // 3) % _MULTIPLE:
            found = f"{name}={getattr(config, name)} makes MLPs of {hidden}"
            raise ValueError(f"{found}, but AsymmDiTJoint's are multiples of {_MULTIPLE} wide")
    return {
        **_DEFAULTS,
        "depth": config.depth,
        "hidden_size_x": config.dim,
        "hidden_size_y": config.text_width,
        "in_channels": config.latent_channels,
        "num_heads": config.heads,
        "patch_size": square_patch(config.patch),
        "t5_feat_dim": config.text_dim,
    }


def mochi_original_keys(config: MochiConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import mochi_10b
        >>> groups, unknown = mochi_original_keys(mochi_10b()).groups(["blocks.3.modulations.0.proj.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('blocks.3.mod_y.bias',), [])
    """
    joint, mlps = "blocks.*.branches.0.inner.streams", "blocks.*.branches.1.branches"
    return KeyMap(
        (
            *embed_keys("x_embedder.proj", square_patch(config.patch)),
            Entry(("rope.frequencies",), ("pos_frequencies",)),
            *renamed("time.up", "t_embedder.mlp.0"),
            *renamed("time.down", "t_embedder.mlp.2"),
            *renamed("pool.q_proj", "t5_y_embedder.to_q"),
            *fused(("pool.k_proj", "pool.v_proj"), "t5_y_embedder.to_kv"),
            *renamed("pool.out_proj", "t5_y_embedder.to_out"),
            *renamed("text", "t5_yproj"),
            *(
                entry
                for stream, letter in enumerate("yx")
                for entry in (
                    *renamed(f"blocks.*.modulations.{stream}.proj", f"blocks.*.mod_{letter}"),
                    *_attention(f"{joint}.{stream}", letter),
                    *_mlp(f"{mlps}.{stream}.inner", f"blocks.*.mlp_{letter}"),
                )
            ),
            *(
                Entry((f"final_modulation.proj.{leaf}",), (f"final_layer.mod.{leaf}",), _swapped, _swapped)
                for leaf in ("weight", "bias")
            ),
            *renamed("project", "final_layer.linear"),
        )
    )


def _attention(ours: str, letter: str) -> Sequence[Entry]:
    """One projection to queries, keys and values without a bias, two norms, and the way back."""
    qkv = [f"{ours}.{name}_proj" for name in "qkv"]
    norms = (renamed(f"{ours}.{x}_norm", f"blocks.*.attn.{x}_norm_{letter}", ["weight"]) for x in "qk")
    return (
        *fused(qkv, f"blocks.*.attn.qkv_{letter}", ["weight"]),
        *(entry for norm in norms for entry in norm),
        *renamed(f"{ours}.out_proj", f"blocks.*.attn.proj_{letter}"),
    )


def _mlp(ours: str, theirs: str) -> Sequence[Entry]:
    """The gate and its value in one projection, and the projection back."""
    both = fused((f"{ours}.gate", f"{ours}.up"), f"{theirs}.w1", ["weight"])
    return (*both, *renamed(f"{ours}.down", f"{theirs}.w2", ["weight"]))


def _swapped(halves: Tensor) -> list[Tensor]:
    """Scale and shift for shift and scale."""
    first, second = halves.chunk(2)
    return [torch.cat([second, first])]


MOCHI_ORIGINAL = Family(
    MochiTransformer,
    "AsymmDiTJoint",
    mochi_original_keys,
    mochi_config_from_original,
    mochi_config_to_original,
    wide=MOCHI.wide,
    form="original",
    complete=mochi_original_config,
    prefixes=("model.diffusion_model.",),
)
"""The adapter between :class:`tubelet.models.MochiTransformer` and its authors'. Example: ``MOCHI_ORIGINAL.peer``."""
