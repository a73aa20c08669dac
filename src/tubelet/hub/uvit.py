"""U-ViT's checkpoints as its authors publish them, such as ``imagenet256_uvit_huge.pth``, both ways.

What differs beyond names: their patch embedding is a convolution, their queries, keys and values are one projection,
and their positions one table, with those of class, noise level and text before those of the patches. A file has no
config: the shapes say all but the number of heads, which every published width has its own of, and what the published
files have in common: 1001 labels are 1000 and a null one, prompts have 77 tokens, and times end at 999 where the three
channels are those of pixels, else at 1000.

Source: https://github.com/baofff/U-ViT, ``libs/uvit.py`` and ``libs/uvit_t2i.py``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.hub.dit_original import published_heads
from tubelet.hub.keys import Entry, Family, KeyMap, fused, renamed
from tubelet.hub.pixart import embed_keys, square_patch
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.models.uvit import UViT, UViTConfig

__all__ = [
    "UVIT_ORIGINAL",
    "uvit_config_from_original",
    "uvit_config_to_original",
    "uvit_original_config",
    "uvit_original_keys",
]

_FIXED: dict[str, Any] = {"qk_scale": None, "skip": True}
_DEFAULTS: dict[str, Any] = {
    **_FIXED,
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": False,
    "mlp_time_embed": False,
    "num_classes": -1,
    "use_checkpoint": False,
    "conv": True,
    "clip_dim": None,
    "num_clip_token": 77,
    "null_class": None,
    "time_scale": None,
}
"""Their two classes' defaults; ``clip_dim`` is None without text. The last two are ours: None is what is published."""


def uvit_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone. For a width that no published model has, ``num_heads``; for
            prompts of another length than 77, ``num_clip_token``.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`uvit_config_from_original` reads.

    Raises:
        ValueError: tensors that every U-ViT has are missing, or nothing says how many heads there are.

    Example:
        >>> uvit_original_config({}, {"patch_embed.weight": (512, 16)})
        Traceback (most recent call last):
        ValueError: the tensors are not UViT's: there is no patch_embed.proj.weight of rank 4
    """
    file = FileShapes("UViT", shapes)
    dim, channels, side, _ = file.of("patch_embed.proj.weight", 4)
    classes = file.of("label_emb.weight")[0] if file.has("label_emb.weight") else _DEFAULTS["num_classes"]
    text = file.of("context_embed.weight")[1] if file.has("context_embed.weight") else None
    tokens = config.get("num_clip_token", _DEFAULTS["num_clip_token"])
    patches = file.of("pos_embed", 3)[1] - 1 - (classes > 0) - (0 if text is None else tokens)
    return {
        "img_size": math.isqrt(max(patches, 0)) * side,
        "patch_size": side,
        "in_chans": channels,
        "embed_dim": dim,
        "depth": 2 * file.count("in_blocks"),
        "num_heads": published_heads(dim, {512: 8, 768: 12, 1024: 16, 1152: 16}, config),
        "mlp_ratio": file.of("mid_block.mlp.fc1.weight")[0] / dim,
        "qkv_bias": file.has("mid_block.attn.qkv.bias"),
        "mlp_time_embed": file.has("time_embed.0.weight"),
        "num_classes": classes,
        "conv": file.has("final_layer.weight"),
        "clip_dim": text,
        **config,
    }


def uvit_config_from_original(config: Mapping[str, Any]) -> UViTConfig:
    """Our config from theirs; keys that are missing have their classes' defaults.

    ``null_class`` and ``time_scale`` are keys of ours, for models other than the published.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`UViT`.

    Example:
        >>> uvit_config_from_original({"img_size": 64, "patch_size": 4, "num_classes": 1001}).null_class
        True
    """
    c = checked_config(config, _DEFAULTS, _FIXED, "UViT")
    if c["img_size"] % c["patch_size"]:
        raise ValueError(f"img_size={c['img_size']} is not a multiple of patch_size={c['patch_size']}")
    side, labels = c["img_size"] // c["patch_size"], c["num_classes"]
    null = labels in (-1, 1001) if c["null_class"] is None else c["null_class"]
    scale = c["time_scale"] or (999.0 if c["in_chans"] == 3 else 1000.0)
    return UViTConfig(
        dim=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_dim=int(c["embed_dim"] * c["mlp_ratio"]),
        grid=(1, side, side),
        latent_channels=c["in_chans"],
        patch=(1, c["patch_size"], c["patch_size"]),
        classes=labels - null if labels > 0 else None,
        null_class=null,
        text_dim=c["clip_dim"],
        text_tokens=c["num_clip_token"],
        conv=c["conv"],
        time_mlp=c["mlp_time_embed"],
        qkv_bias=c["qkv_bias"],
        time_scale=float(scale),
    )


def uvit_config_to_original(config: UViTConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values, with keys of ours where the published models have other values.

    Raises:
        ValueError: frames, a grid that is not square, or another epsilon than 1e-5.

    Example:
        >>> from tubelet.models import uvit_h_imagenet256
        >>> uvit_config_to_original(uvit_h_imagenet256())["num_classes"]
        1001
    """
    frames, height, width = config.grid
    if frames != 1 or height != width:
        raise ValueError(f"grid={config.grid}, but their UViT has the side of one square")
    if config.eps != 1e-5:
        raise ValueError(f"eps={config.eps}, but their UViT has 1e-05")
    side = square_patch(config.patch)
    written = {
        **_FIXED,
        "img_size": height * side,
        "patch_size": side,
        "in_chans": config.latent_channels,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_dim / config.dim,
        "qkv_bias": config.qkv_bias,
        "mlp_time_embed": config.time_mlp,
        "num_classes": -1 if config.classes is None else config.classes + config.null_class,
        "use_checkpoint": False,
        "conv": config.conv,
        **({} if config.text_dim is None else {"clip_dim": config.text_dim, "num_clip_token": config.text_tokens}),
    }
    read = uvit_config_from_original(written)
    ours = {name: getattr(config, name) for name in ("null_class", "time_scale")}
    return written | {name: value for name, value in ours.items() if getattr(read, name) != value}


def uvit_original_keys(config: UViTConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Raises:
        ValueError: the config has frames, in patches or positions, or patches that are not square.

    Example:
        >>> from tubelet.models import UViT, UViTConfig
        >>> model = UViT(UViTConfig(dim=16, depth=2, heads=2, mlp_dim=32, grid=(1, 2, 2), classes=10))
        >>> file = uvit_original_keys(model.config).to_theirs(model.state_dict())
        >>> file["pos_embed"].shape, file["out_blocks.0.skip_linear.weight"].shape
        (torch.Size([1, 6, 16]), torch.Size([16, 32]))
        >>> _ = model.load_state_dict(uvit_original_keys(model.config).to_ours(file))
    """
    if config.grid[0] != 1:
        raise ValueError(f"grid={config.grid}, but the published models have no frames")
    return KeyMap(
        (
            *embed_keys("patch_embed.proj", square_patch(config.patch)),
            _positions(config),
            *renamed("time.up", "time_embed.0"),
            *renamed("time.down", "time_embed.2"),
            *renamed("label.table", "label_emb", ["weight"]),
            *renamed("text", "context_embed"),
            *_block("in_blocks.*", "in_blocks.*"),
            *_block("mid_block", "mid_block"),
            *renamed("out_blocks.*.join", "out_blocks.*.skip_linear"),
            *_block("out_blocks.*.block", "out_blocks.*"),
            *renamed("final_norm", "norm"),
            *renamed("project", "decoder_pred"),
            *renamed("conv.conv", "final_layer"),
        )
    )


def _block(ours: str, theirs: str) -> Sequence[Entry]:
    """One transformer block."""
    attention, mlp = f"{ours}.branches.0", f"{ours}.branches.1"
    return (
        *renamed(f"{attention}.norm", f"{theirs}.norm1"),
        *fused([f"{attention}.inner.{name}_proj" for name in "qkv"], f"{theirs}.attn.qkv"),
        *renamed(f"{attention}.inner.out_proj", f"{theirs}.attn.proj"),
        *renamed(f"{mlp}.norm", f"{theirs}.norm2"),
        *renamed(f"{mlp}.inner.up", f"{theirs}.mlp.fc1"),
        *renamed(f"{mlp}.inner.down", f"{theirs}.mlp.fc2"),
    )


def _positions(config: UViTConfig) -> Entry:
    """One table of everything that has a position."""

    def to_ours(table: Tensor) -> list[Tensor]:
        prefix, grid = table[0, : config.prefix], table[0, config.prefix :]
        return [prefix, grid.reshape(*config.grid, config.dim)]

    def to_theirs(prefix: Tensor, grid: Tensor) -> list[Tensor]:
        return [torch.cat([prefix, grid.flatten(0, 2)])[None]]

    return Entry(("prefix", "positions.table"), ("pos_embed",), to_ours, to_theirs)


UVIT_ORIGINAL = Family(
    UViT,
    "UViT",
    uvit_original_keys,
    uvit_config_from_original,
    uvit_config_to_original,
    form="original",
    complete=uvit_original_config,
)
"""The adapter between :class:`tubelet.models.UViT` and its authors' classes. Example: ``UVIT_ORIGINAL.peer``."""
