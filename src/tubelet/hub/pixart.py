"""What the adapters of DiT and of PixArt-alpha's descendants share: checks of configs, and the names of common parts.

Their patch embedding is a convolution over single frames, ours a linear layer on patches; their attention, embeddings
and tables differ from ours by name alone.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Entry, renamed

__all__ = ["attention_keys", "embed_keys", "ends_keys", "project_keys", "square_patch"]


def square_patch(patch: tuple[int, int, int]) -> int:
    """The one side that their patches have.

    Raises:
        ValueError: the patch is not one frame deep, or not square.

    Example:
        >>> square_patch((1, 2, 2))
        2
    """
    t, h, w = patch
    if t != 1 or h != w:
        raise ValueError(f"patch={patch}, but theirs are square and of one frame")
    return h


def attention_keys(ours: str, theirs: str) -> Sequence[Entry]:
    """The four projections of one attention.

    Example:
        >>> [entry.theirs[0] for entry in attention_keys("a", "attn1")][::2]
        ['attn1.to_q.weight', 'attn1.to_k.weight', 'attn1.to_v.weight', 'attn1.to_out.0.weight']
    """
    return (
        *(entry for name in "qkv" for entry in renamed(f"{ours}.{name}_proj", f"{theirs}.to_{name}")),
        *renamed(f"{ours}.out_proj", f"{theirs}.to_out.0"),
    )


def embed_keys(theirs: str, patch: int) -> Sequence[Entry]:
    """Their convolution of stride its own size over single frames is our linear layer on patches.

    Example:
        >>> embed_keys("pos_embed.proj", 2)[0].theirs
        ('pos_embed.proj.weight',)
    """

    def to_ours(weight: Tensor) -> list[Tensor]:
        return [rearrange(weight, "d c h w -> d (h w c)")]

    def to_theirs(weight: Tensor) -> list[Tensor]:
        return [rearrange(weight, "d (h w c) -> d c h w", h=patch, w=patch)]

    return Entry(("embed.weight",), (f"{theirs}.weight",), to_ours, to_theirs), *renamed("embed", theirs, ["bias"])


def project_keys(theirs: str, patch: int, channels: Sequence[int]) -> Sequence[Entry]:
    """The projection to patches.

    Args:
        theirs: its name.
        patch: the side of a patch.
        channels: those of the latents, and those that are predicted beside them: theirs stand beside them in each
            cell, ours behind them in the patch.

    Example:
        >>> entry = project_keys("proj_out", 2, [1, 1])[1]
        >>> entry.to_ours(torch.arange(8))[0].tolist()
        [0, 2, 4, 6, 1, 3, 5, 7]
    """
    cells = patch * patch

    def to_ours(rows: Tensor) -> list[Tensor]:
        parts = torch.split(rearrange(rows, "(n c) ... -> n c ...", n=cells), list(channels), 1)
        return [torch.cat([part.flatten(0, 1) for part in parts])]

    def to_theirs(rows: Tensor) -> list[Tensor]:
        parts = torch.split(rows, [cells * c for c in channels])
        return [torch.cat([part.reshape(cells, -1, *part.shape[1:]) for part in parts if len(part)], 1).flatten(0, 1)]

    leaves = ("weight", "bias")
    return tuple(Entry((f"project.{leaf}",), (f"{theirs}.{leaf}",), to_ours, to_theirs) for leaf in leaves)


def ends_keys(patch: int, channels: Sequence[int]) -> Sequence[Entry]:
    """What stands before and behind the blocks: patches, time, text, the last table and projection.

    Args:
        patch, channels: as in :func:`project_keys`.

    Example:
        >>> ends_keys(2, [4, 0])[-1].theirs
        ('proj_out.bias',)
    """
    embedder = "adaln_single.emb.timestep_embedder"
    return (
        *embed_keys("pos_embed.proj", patch),
        *renamed("time.up", f"{embedder}.linear_1"),
        *renamed("time.down", f"{embedder}.linear_2"),
        *renamed("modulation", "adaln_single.linear"),
        *renamed("text.up", "caption_projection.linear_1"),
        *renamed("text.down", "caption_projection.linear_2"),
        Entry(("final_modulation.table",), ("scale_shift_table",)),
        *project_keys("proj_out", patch, channels),
    )
