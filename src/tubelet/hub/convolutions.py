"""Convolutions of ours over time and space that are of fewer axes in a peer's file."""

from collections.abc import Sequence

from tubelet.hub.keys import Entry, renamed

__all__ = ["framewise", "pointwise"]


def framewise(ours: str, theirs: str) -> tuple[Entry, ...]:
    """Entries for a convolution of each frame: of ours with a kernel of one over time, of theirs over space alone.

    Example:
        >>> import torch
        >>> from tubelet.hub.keys import KeyMap
        >>> KeyMap(framewise("conv", "c")).to_ours({"c.weight": torch.ones(4, 2, 3, 3)})["conv.weight"].shape
        torch.Size([4, 2, 1, 3, 3])
    """
    weight = Entry(
        (f"{ours}.weight",),
        (f"{theirs}.weight",),
        lambda flat: [flat.unsqueeze(2)],
        lambda deep: [deep.squeeze(2)],
    )
    return (weight, *renamed(ours, theirs, ["bias"]))


def pointwise(ours: str, theirs: str, leaves: Sequence[str] = ("weight", "bias")) -> tuple[Entry, ...]:
    """Entries for a 1×1×1 convolution of ours that is a linear layer of theirs.

    Example:
        >>> import torch
        >>> from tubelet.hub.keys import KeyMap
        >>> KeyMap(pointwise("conv", "lin")).to_theirs({"conv.weight": torch.ones(4, 2, 1, 1, 1)})["lin.weight"].shape
        torch.Size([4, 2])
    """
    weight = Entry(
        (f"{ours}.weight",),
        (f"{theirs}.weight",),
        lambda linear: [linear[:, :, None, None, None]],
        lambda conv: [conv[:, :, 0, 0, 0]],
    )
    return (weight, *renamed(ours, theirs, [leaf for leaf in leaves if leaf != "weight"]))
