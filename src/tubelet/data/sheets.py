"""Contact sheets: many videos of any size and duration on one picture, with labels.

A video ``(c, t, h, w)`` becomes a film strip: some of its frames, evenly spaced from first to last, side by side; the
strips stand in ``columns``, each with its label under it. A sheet is ``(height, width, 3)`` of 8-bit RGB.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from tubelet.data.writing import tile, to_levels
from tubelet.files import replacing, require

__all__ = ["contact_sheet", "write_contact_sheet"]

_MARGIN = 8
_FONT_SIZE = 12
_LINE = 15
_LABEL_WIDTH = 88
_INK = 32

Sheet = UInt8[np.ndarray, "_ _ 3"]


def contact_sheet(
    videos: Sequence[Float[Tensor, "_ _ _ _"]],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    scale: int = 1,
    frames: int = 5,
) -> Sheet:
    """Lay videos out as labelled film strips.

    Args:
        videos: each ``(c, t, h, w)`` in [-1, 1], c = 3 or 1; sizes and durations may differ.
        columns: strips per row. Default: about as many as rows, given the strips' shape.
        labels: a text for each video; long ones wrap.
        scale: enlarge each pixel to ``scale`` by ``scale`` (nearest neighbour).
        frames: the most frames shown of each video.

    Returns:
        ``(height, width, 3)``, black on white.

    Raises:
        ValueError: no videos, another number of labels than of videos, ``columns``, ``scale`` or ``frames`` below 1,
            or a video that :func:`write_video` would refuse.
        ImportError: labels are given and Pillow is missing (extra ``tubelet[video]``).

    Example:
        >>> import torch
        >>> clips = [torch.zeros(1, 9, 16, 16), torch.zeros(3, 1, 24, 32)]
        >>> contact_sheet(clips, columns=2, scale=2, frames=3).shape
        (64, 188, 3)
    """
    _check(len(videos), columns, labels, frames)
    strips = [_strip(video, scale, frames) for video in videos]
    if labels is not None:
        strips = [_stack(strip, _caption(label, strip.shape[1])) for strip, label in zip(strips, labels, strict=True)]
    if columns is None:
        widest, highest = (max(strip.shape[axis] for strip in strips) for axis in (1, 0))
        columns = min(len(strips), max(1, round(math.sqrt(len(strips) * highest / widest))))
    return _place(strips, columns)


def write_contact_sheet(
    path: str | os.PathLike[str],
    videos: Sequence[Float[Tensor, "_ _ _ _"]],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    scale: int = 1,
    frames: int = 5,
) -> None:
    """Write :func:`contact_sheet` as an image; it appears under its name only when complete.

    Args:
        path: where to; the suffix (``.png``, ``.jpg``, ...) says which format.
        videos: as for :func:`contact_sheet`, like all that follow.
        columns: strips per row.
        labels: a text for each video.
        scale: nearest-neighbour enlargement.
        frames: the most frames shown of each video.

    Raises:
        ValueError: as :func:`contact_sheet`, or a suffix that is no image format.
        ImportError: Pillow is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_contact_sheet(f"{folder}/sheet.png", [torch.zeros(3, 4, 16, 16)], labels=["a seven"])
        ...     os.listdir(folder)
        ['sheet.png']
    """
    sheet = contact_sheet(videos, columns, labels, scale=scale, frames=frames)
    with replacing(path) as temporary:
        require("PIL.Image").fromarray(sheet).save(temporary)


def _check(count: int, columns: int | None, labels: Sequence[str] | None, frames: int) -> None:
    if count == 0:
        raise ValueError("videos is empty: a sheet needs at least one video")
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be one per video, got {len(labels)} for {count} videos")
    for name, value in (("columns", columns), ("frames", frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _strip(video: Float[Tensor, "c t h w"], scale: int, frames: int) -> Sheet:
    levels = to_levels(video, scale)
    shown = np.linspace(0, len(levels) - 1, min(frames, len(levels))).round().astype(int)
    sheet = tile(levels[shown], columns=len(shown), gap=scale)
    return np.broadcast_to(sheet, (*sheet.shape[:2], 3))


def _caption(label: str, width: int) -> Sheet:
    """The label as a picture, wrapped to the strip it stands under, but never narrower than a few words."""
    drawing, text, fonts = require("PIL.ImageDraw"), require("PIL.Image"), require("PIL.ImageFont")
    font: Any = fonts.load_default(_FONT_SIZE)
    width = max(width, _LABEL_WIDTH)
    lines = _wrap(label, font, width)
    canvas = text.new("RGB", (max(width, math.ceil(max(map(font.getlength, lines)))), _LINE * len(lines) + 3), "white")
    for row, line in enumerate(lines):
        drawing.Draw(canvas).text((0, 1 + row * _LINE), line, fill=(_INK, _INK, _INK), font=font)
    return np.asarray(canvas)


def _wrap(label: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _stack(above: Sheet, below: Sheet) -> Sheet:
    sheet = np.full((len(above) + len(below), max(above.shape[1], below.shape[1]), 3), 255, np.uint8)
    sheet[: len(above), : above.shape[1]] = above
    sheet[len(above) :, : below.shape[1]] = below
    return sheet


def _place(cells: list[Sheet], columns: int) -> Sheet:
    """Cells in reading order; a column is as wide as its widest cell, a row as high as its highest."""
    widths = [max(cell.shape[1] for cell in cells[column::columns]) for column in range(min(columns, len(cells)))]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(len(cell) for cell in row) for row in rows]
    size = [sum(sides) + _MARGIN * (len(sides) + 1) for sides in (heights, widths)]
    sheet = np.full((*size, 3), 255, np.uint8)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for cell, width in zip(row, widths, strict=False):
            sheet[top : top + len(cell), left : left + cell.shape[1]] = cell
            left += width + _MARGIN
        top += height + _MARGIN
    return sheet
