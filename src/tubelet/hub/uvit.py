"""U-ViT's checkpoints as its authors publish them, such as ``imagenet256_uvit_huge.pth``, both ways.

What differs beyond names: their patch embedding is a convolution, their queries, keys and values are one projection,
and their positions one table, with those of class, noise level and text before those of the patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.hub.keys import Entry, KeyMap, renamed
from tubelet.hub.pixart import embed_keys, square_patch
from tubelet.models.uvit import UViTConfig

__all__ = ["uvit_published_keys"]


def uvit_published_keys(config: UViTConfig) -> KeyMap:
    """Which of our tensors are which in the authors' files.

    Raises:
        ValueError: the config has frames, in patches or positions, or patches that are not square.

    Example:
        >>> from tubelet.models import UViT, UViTConfig
        >>> model = UViT(UViTConfig(dim=16, depth=2, heads=2, mlp_dim=32, grid=(1, 2, 2), classes=10))
        >>> file = uvit_published_keys(model.config).to_theirs(model.state_dict())
        >>> file["pos_embed"].shape, file["out_blocks.0.skip_linear.weight"].shape
        (torch.Size([1, 6, 16]), torch.Size([16, 32]))
        >>> _ = model.load_state_dict(uvit_published_keys(model.config).to_ours(file))
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

    def fused(leaf: str) -> Entry:
        names = tuple(f"{attention}.inner.{name}_proj.{leaf}" for name in "qkv")
        return Entry(names, (f"{theirs}.attn.qkv.{leaf}",), lambda qkv: qkv.chunk(3), lambda *qkv: [torch.cat(qkv)])

    return (
        *renamed(f"{attention}.norm", f"{theirs}.norm1"),
        *(fused(leaf) for leaf in ("weight", "bias")),
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
