"""The clip dataset on numbered videos (which frames?), on real clips, and on folders with everything wrong in them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tubelet.data import ClipFolder, read_video, write_video

Numbered = Callable[..., Tensor]
Numbers = Callable[[Tensor], list[int]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, numbered: Numbered) -> Path:
    """Two videos (24 frames at 8 fps, 6 at 4 fps), an image and things that are none of its business."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "long.mp4", numbered(24, 16, 32), fps=8)
    write_video(folder / "sub" / "short.GIF", numbered(6), fps=4)
    write_video(folder / "image.png", numbered(1))
    for name in ("notes.txt", ".hidden.mp4", ".cache/a.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not a video")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_files_in_order_with_their_shapes(root: Path) -> None:
    folder = ClipFolder(root, frames=5)
    assert [(clip.file, tuple(clip.video.shape)) for clip in folder] == [
        ("image.png", (3, 1, 16, 16)),
        ("long.mp4", (3, 5, 16, 32)),
        ("sub/short.GIF", (3, 5, 16, 16)),
    ]
    assert folder.skipped == {}
    assert [clip.caption for clip in folder] == ["", "", ""]


def test_windows_are_runs_of_frames_that_cover_the_file(root: Path, numbers: Numbers) -> None:
    folder = ClipFolder(root, frames=5, windows=40)
    assert len(folder) == 120
    starts = set()
    for index in range(1, 120, 3):
        clip = folder[index]
        found = numbers(clip.video)
        assert found == list(range(found[0], found[0] + 5))
        assert found[0] == min(19, int(clip.start * 8 + 0.1 + 0.5 / 1000))
        starts.add(found[0])
    assert len(starts) > 13
    assert min(starts) <= 1
    assert max(starts) >= 18


def test_a_clip_depends_on_seed_and_index_only(root: Path) -> None:
    first, again, other = (ClipFolder(root, frames=3, size=(8, 8), crop="random", seed=s, windows=8) for s in (0, 0, 1))
    order = [7, 22, 1, 4]
    assert all(torch.equal(first[i].video, again[i].video) for i in order)
    assert [again[i].start for i in reversed(order)] == [first[i].start for i in reversed(order)]
    assert [other[i].start for i in order] != [first[i].start for i in order]
    assert torch.equal(first[-1].video, first[23].video)
    with pytest.raises(IndexError, match="index 24 is outside a folder of 24 clips"):
        first[24]


def test_frame_rate(root: Path, numbers: Numbers) -> None:
    folder = ClipFolder(root, frames=(3, 5), fps=2, windows=10)
    for index in range(1, 30, 3):
        found = numbers(folder[index].video)
        assert found == list(range(found[0], found[0] + 17, 4))
        assert folder[index].file == "long.mp4"
        assert numbers(folder[index + 1].video) == [0, 2, 4]


def test_the_longest_choice_that_fits(root: Path) -> None:
    folder = ClipFolder(root, frames=(1, 5, 9, 17))
    assert [clip.video.shape[1] for clip in folder] == [1, 17, 5]


def test_the_nearest_aspect_and_grey(root: Path) -> None:
    folder = ClipFolder(root, frames=1, size=[(8, 8), (8, 16), (16, 8)], gray=True)
    assert [tuple(clip.video.shape) for clip in folder] == [(1, 1, 8, 8), (1, 1, 8, 16), (1, 1, 8, 8)]


def test_random_crops_move_inside_the_picture(tmp_path: Path) -> None:
    ramp = torch.linspace(-1, 1, 64).expand(3, 1, 16, 64)
    write_video(tmp_path / "a.png", ramp)
    folder = ClipFolder(tmp_path, frames=1, size=(16, 16), crop="random", windows=30)
    lefts = {round(float((folder[i].video[0, 0, 0, 0] + 1) * 31.5)) for i in range(30)}
    assert len(lefts) > 12
    assert min(lefts) >= 0
    assert max(lefts) <= 48


def test_captions_and_segments(root: Path, tmp_path: Path, numbers: Numbers) -> None:
    rows = [
        {"file": "sub/short.GIF", "caption": "short"},
        {"file": "long.mp4", "caption": "late", "start": 2.0, "end": 2.75},
        {"file": "long.mp4", "caption": "early", "end": 0.5},
        {"file": "image.png", "caption": "an image"},
    ]
    folder = ClipFolder(root, write_rows(tmp_path / "c.jsonl", rows), frames=4, windows=9)
    assert [clip.caption for clip in folder][:4] == ["an image", "late", "early", "short"]
    for index in range(0, 36, 4):
        found = numbers(folder[index + 1].video)
        assert 16 <= found[0] <= 18
        assert found[-1] <= 21
        assert numbers(folder[index + 2].video) == [0, 1, 2, 3]


def test_files_without_a_caption(root: Path, tmp_path: Path) -> None:
    captions = write_rows(tmp_path / "c.jsonl", [{"file": "long.mp4", "caption": "long"}])
    with pytest.raises(ValueError, match=r"2 of 3 files have no caption: image\.png, sub/short\.GIF \(uncaptioned="):
        ClipFolder(root, captions, frames=4)
    folder = ClipFolder(root, captions, frames=4, uncaptioned="empty")
    assert [clip.caption for clip in folder] == ["", "long", ""]


def test_unusable_files_are_skipped_with_one_warning_each(tmp_path: Path, numbered: Numbered) -> None:
    write_video(tmp_path / "good.mp4", numbered(8), fps=4)
    write_video(tmp_path / "short.mp4", numbered(3), fps=4)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.webm").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    files = ["good", "short", "empty", "cut", "gone"]
    rows = [{"file": f"{name}.mp4", "caption": name} for name in files] + [{"file": "noise.webm", "caption": "noise"}]
    rows += [{"file": "good.mp4", "caption": "the end", "start": 1.5}]
    captions = write_rows(tmp_path / "c.jsonl", rows)
    with pytest.warns(UserWarning, match="skipped") as caught:
        folder = ClipFolder(tmp_path, captions, frames=5)
    assert [clip.caption for clip in folder] == ["good"]
    reasons = {
        "short.mp4": "3 frames at 4 fps, but 5 are needed",
        "empty.mp4": "is empty",
        "noise.webm": "cannot be decoded",
        "cut.mp4": "holds no readable video stream",
        "gone.mp4": "does not exist",
        "good.mp4[1.5:]": "2 frames at 4 fps, but 5 are needed",
    }
    assert set(folder.skipped) == set(reasons)
    assert len(caught) == len(reasons)
    for name, part in reasons.items():
        assert part in folder.skipped[name]
    assert all(any(str(warning.message).startswith(f"skipped {name}: ") for warning in caught) for name in reasons)


def test_a_file_that_breaks_later_gives_way_to_the_next(tmp_path: Path, numbered: Numbered) -> None:
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", numbered(8), fps=4)
    folder = ClipFolder(tmp_path, frames=4)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"skipped a\.mp4: .*is empty"):
        assert folder[0].file == "b.mp4"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder[0].file == "b.mp4"
    assert list(folder.skipped) == ["a.mp4"]
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"b\.mp4"), pytest.raises(ValueError, match=r"no clip of .* can be read"):
        folder[1]


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no usable clips in .* \(0 skipped\)"):
        ClipFolder(tmp_path, frames=1)
    (tmp_path / "a.mp4").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is empty"),
        pytest.raises(ValueError, match=r"\(1 skipped: a\.mp4: .* is empty"),
    ):
        ClipFolder(tmp_path, frames=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, r"frames must be at least 1, got \(0,\)"),
        ({"frames": ()}, r"frames must be at least 1, got \(\)"),
        ({"frames": 1, "size": (0, 8)}, "size must be"),
        ({"frames": 1, "size": []}, "size must be"),
        ({"frames": 1, "size": [8, 8]}, "size must be .* or a list of such, got"),
        ({"frames": 1, "fps": -2}, "fps must be positive, got -2"),
        ({"frames": 1, "windows": 0}, "windows must be at least 1, got 0"),
        ({"frames": 1, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_arguments(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipFolder(root, **arguments)
    with pytest.raises(ValueError, match=r"root must be a folder, got '.*image.png'"):
        ClipFolder(root / "image.png", frames=1)


def test_real_clips_through_a_loader(real: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for name, path in real.items():
        (tmp_path / f"{name}.mp4").symlink_to(path)
        rows.append({"file": f"{name}.mp4", "caption": name})
    folder = ClipFolder(tmp_path, write_rows(tmp_path / "c.jsonl", rows), frames=9, fps=8, size=(48, 64))
    batch = next(iter(DataLoader(folder, batch_size=3)))
    assert batch.video.shape == (3, 3, 9, 48, 64)
    assert list(batch.caption) == ["bikes", "bunny", "carphone"]
    assert (batch.video.std(dim=(1, 2, 3, 4)) > 0.15).all()
    clip = folder[0]
    alone = read_video(real["bikes"], start=clip.start, frames=9, fps=8, size=(48, 64))
    assert torch.equal(clip.video, alone)
    assert torch.equal(clip.video, batch.video[0])
    assert 0 < clip.start < 10 - 9 / 8
