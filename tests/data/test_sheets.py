"""Contact sheets: every frame where it belongs, labels legible and inside their cells."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tubelet.data import contact_sheet, write_contact_sheet
from tubelet.data.sheets import _wrap

M = 8  # margin


def flat(level: int, channels: int, frames: int, height: int, width: int) -> torch.Tensor:
    """Frame k has level ``level + k``."""
    levels = level + torch.arange(frames).reshape(1, frames, 1, 1).expand(channels, frames, height, width)
    return levels / 127.5 - 1


def test_strips_of_several_sizes_stand_in_columns() -> None:
    videos = [flat(0, 1, 3, 4, 6), flat(50, 3, 1, 8, 2), flat(100, 1, 2, 5, 5)]
    sheet = contact_sheet(videos, columns=2)
    assert sheet.shape == (M + 8 + M + 5 + M, M + 20 + M + 2 + M, 3)
    canvas = np.full(sheet.shape, 255, np.uint8)
    for k in range(3):
        canvas[M : M + 4, M + 7 * k : M + 7 * k + 6] = k
    canvas[M : M + 8, M + 20 + M : M + 20 + M + 2] = 50
    for k in range(2):
        canvas[2 * M + 8 : 2 * M + 13, M + 6 * k : M + 6 * k + 5] = 100 + k
    assert np.array_equal(sheet, canvas)


def test_colours_stay_in_order() -> None:
    video = torch.tensor([1.0, 0.0, -1.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert contact_sheet([video])[M, M].tolist() == [255, 128, 0]


@pytest.mark.parametrize(("frames", "shown"), [(1, [0]), (2, [0, 16]), (3, [0, 8, 16]), (5, [0, 4, 8, 12, 16])])
def test_frames_are_spread_from_first_to_last(frames: int, shown: list[int]) -> None:
    sheet = contact_sheet([flat(0, 1, 17, 2, 2)], frames=frames)
    assert sheet[M, M : -M - 1 : 3, 0].tolist() == shown


def test_scale_is_nearest_neighbour() -> None:
    video = torch.tensor([[0.0, 1.0], [-1.0, 0.5]]).reshape(1, 1, 2, 2)
    sheet = contact_sheet([video], scale=3)[M:-M, M:-M, 0]
    assert np.array_equal(sheet, np.kron(np.array([[128, 255], [0, 191]]), np.ones((3, 3))))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_default_columns_make_a_sheet_neither_tall_nor_wide(count: int) -> None:
    height, width, _ = contact_sheet([flat(0, 1, 4, 16, 16)] * count).shape
    assert 0.2 < height / width < 5


def test_labels_are_drawn_below_their_strip_and_only_there() -> None:
    videos = [flat(0, 1, 1, 16, 16), flat(0, 1, 1, 16, 16)]
    plain, labelled = contact_sheet(videos, columns=2), contact_sheet(videos, columns=2, labels=["a seven", ""])
    assert labelled.shape[0] > plain.shape[0] + 12
    ink = (labelled < 128).any(axis=2)
    below = ink[M + 16 :]
    assert below[:, : M + 88].any()
    assert not below[:, M + 88 + M :].any()
    assert ink[M : M + 16, M : M + 16].all()
    different = contact_sheet(videos, columns=2, labels=["a nine", ""])
    assert not np.array_equal(labelled, different)


def test_long_labels_wrap_to_the_strip_without_losing_words() -> None:
    font = ImageFont.load_default(12)
    label = "a seven drifting left while a very slow train passes behind it"
    lines = _wrap(label, font, 90)
    assert " ".join(lines) == label
    assert len(lines) > 2
    assert all(font.getlength(line) <= 90 for line in lines)
    assert _wrap("incomprehensibilities", font, 10) == ["incomprehensibilities"]
    video = flat(0, 1, 1, 4, 4)
    assert contact_sheet([video], labels=["incomprehensibilities" * 2]).shape[1] > 200


def test_written_sheet_is_the_sheet(tmp_path: Path) -> None:
    videos = [flat(9, 3, 4, 8, 8), flat(40, 1, 1, 8, 12)]
    write_contact_sheet(tmp_path / "new" / "sheet.png", videos, labels=["a", "b"], scale=2)
    expected = contact_sheet(videos, labels=["a", "b"], scale=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), expected)
    with pytest.raises(ValueError, match="unknown file extension"):
        write_contact_sheet(tmp_path / "sheet.xyz", videos)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_errors() -> None:
    video = flat(0, 1, 1, 4, 4)
    with pytest.raises(ValueError, match="videos is empty"):
        contact_sheet([])
    with pytest.raises(ValueError, match="got 1 for 2 videos"):
        contact_sheet([video, video], labels=["a"])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        contact_sheet([video], columns=0)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        contact_sheet([video], frames=0)
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        contact_sheet([video], scale=0)
