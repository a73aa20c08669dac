"""Image transformers (ViT) in the names of timm, as the image models that video models start from.

A file is a :class:`tubelet.models.ViViT` of single frames, as in :mod:`tubelet.hub.vit`; queries, keys and values are
one projection there. A file has no config: the shapes say all but the number of heads, which every published width has
its own of, and that images are square.

Source: https://github.com/huggingface/pytorch-image-models, ``timm/models/vision_transformer.py``.
"""

import math
from collections.abc import Mapping
from typing import Any

from tubelet.hub.dit_original import published_heads
from tubelet.hub.keys import Family, KeyMap, fused, renamed
from tubelet.hub.shapes import FileShapes
from tubelet.hub.vit import ends_keys, image_grid, image_kernel, image_sides, sides_of
from tubelet.models.vivit import ViViT, ViViTConfig

__all__ = ["VIT_TIMM", "timm_vit_config", "timm_vit_keys", "vit_config_from_timm", "vit_config_to_timm"]

_TIMM: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": 1000,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
}
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def timm_vit_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of timm's leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone. For a width that no published model has, ``num_heads``; for
            images that are not square, ``img_size``.
        shapes: of every tensor, by their names.

    Raises:
        ValueError: tensors that every such model has are missing, or nothing says how many heads there are.

    Example:
        >>> timm_vit_config({}, {"patch_embed.proj.weight": (768, 3)})
        Traceback (most recent call last):
        ValueError: the tensors are not VisionTransformer's: there is no patch_embed.proj.weight of rank 4
    """
    file = FileShapes("VisionTransformer", shapes)
    dim, channels, h, w = file.of("patch_embed.proj.weight", 4)
    side = math.isqrt(file.of("pos_embed", 3)[1] - 1)
    return {
        "img_size": (side * h, side * w),
        "patch_size": (h, w),
        "in_chans": channels,
        "num_classes": file.of("head.weight")[0] if file.has("head.weight") else 0,
        "embed_dim": dim,
        "depth": file.count("blocks"),
        "num_heads": published_heads(dim, _HEADS, config),
        "mlp_ratio": file.of("blocks.0.mlp.fc1.weight")[0] / dim,
        "qkv_bias": file.has("blocks.0.attn.qkv.bias"),
        **{key: value for key, value in config.items() if key in ("img_size", "num_heads")},
    }


def vit_config_from_timm(config: Mapping[str, Any]) -> ViViTConfig:
    """Our config from the keywords of timm's class; those that are missing have its defaults.

    Raises:
        ValueError: sides that are no whole number of patches.

    Example:
        >>> vit_config_from_timm({"img_size": 384}).grid
        (1, 24, 24)
    """
    c = {key: config.get(key, default) for key, default in _TIMM.items()}
    return ViViTConfig(
        dim=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_dim=int(c["embed_dim"] * c["mlp_ratio"]),
        grid=image_grid(sides_of("img_size", c["img_size"]), sides_of("patch_size", c["patch_size"])),
        classes=c["num_classes"] or None,
        latent_channels=c["in_chans"],
        patch=(1, *sides_of("patch_size", c["patch_size"])),
        qkv_bias=c["qkv_bias"],
        gelu="none",
    )


def vit_config_to_timm(config: ViViTConfig) -> dict[str, Any]:
    """The keywords of timm's class from our config.

    Raises:
        ValueError: a config that is not of an image model, or has another activation or epsilon than theirs.

    Example:
        >>> vit_config_to_timm(vit_config_from_timm({}))["num_classes"]
        1000
    """
    sides, patch = image_sides(config)
    if config.gelu != "none" or config.eps != 1e-6:
        raise ValueError(f"gelu={config.gelu!r}, eps={config.eps}, but VisionTransformer has 'none', 1e-06")
    return {
        "img_size": list(sides),
        "patch_size": list(patch),
        "in_chans": config.latent_channels,
        "num_classes": config.classes or 0,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_dim / config.dim,
        "qkv_bias": config.qkv_bias,
    }


def timm_vit_keys(config: ViViTConfig) -> KeyMap:
    """Which of our tensors are which of timm's.

    Example:
        >>> keys = timm_vit_keys(vit_config_from_timm({}))
        >>> keys.groups(["encoder.trunk.blocks.3.branches.1.inner.up.bias"], "ours")[0][0].theirs
        ('blocks.3.mlp.fc1.bias',)
    """
    block = "encoder.trunk.blocks.*.branches"
    return KeyMap(
        (
            image_kernel(config, "patch_embed.proj"),
            *ends_keys(
                config, token="cls_token", places="pos_embed", embed="patch_embed.proj", norm="norm", head="head"
            ),
            *renamed(f"{block}.0.norm", "blocks.*.norm1"),
            *fused([f"{block}.0.inner.{name}_proj" for name in "qkv"], "blocks.*.attn.qkv"),
            *renamed(f"{block}.0.inner.out_proj", "blocks.*.attn.proj"),
            *renamed(f"{block}.1.norm", "blocks.*.norm2"),
            *renamed(f"{block}.1.inner.up", "blocks.*.mlp.fc1"),
            *renamed(f"{block}.1.inner.down", "blocks.*.mlp.fc2"),
        )
    )


VIT_TIMM = Family(
    ViViT,
    "VisionTransformer",
    timm_vit_keys,
    vit_config_from_timm,
    vit_config_to_timm,
    form="original",
    complete=timm_vit_config,
    stem="model",
    known_as="vit_timm",
)
"""The adapter from timm's class. Example: ``hub.load_original("model.safetensors", family="vit_timm")``."""
