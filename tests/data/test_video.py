"""Reading: which frames, when, how large; against PyAV and Pillow used directly, and videos of numbered frames."""

import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tubelet.data import VideoInfo, probe_video, read_video, write_video

Numbered = Callable[..., Tensor]
Numbers = Callable[[Tensor], list[int]]


def decode_directly(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture
def ten(tmp_path: Path, numbered: Numbered) -> Path:
    """20 numbered frames at 10 fps; frame k is shown from k / 10 s on."""
    write_video(tmp_path / "ten.mp4", numbered(20), fps=10)
    return tmp_path / "ten.mp4"


def write_timed(path: Path, video: Tensor, milliseconds: list[int], fps: float = 25.0) -> None:
    """A file that declares ``fps`` but shows frame k from milliseconds[k] on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "1", "g": "4"}
        )
        stream.width, stream.height, stream.pix_fmt = video.shape[3], video.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, pts in zip(video.permute(1, 2, 3, 0), milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(((picture + 1) * 127.5).round().byte().numpy(), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_whole_file_equals_direct_decoding(real: dict[str, Path]) -> None:
    video = read_video(real["carphone"])
    expected = decode_directly(real["carphone"])
    assert video.dtype == torch.float32
    assert video.shape == (3, 120, 144, 176)
    assert np.array_equal(((video.double() + 1) * 127.5).round().permute(1, 2, 3, 0).numpy(), expected)


@pytest.mark.parametrize("second", [0.0, 1.0, 3.56, 9.8])
def test_a_time_is_the_frame_on_display_then(real: dict[str, Path], second: float) -> None:
    by_time = read_video(real["bikes"], start=second, frames=4, size=(32, 48))
    by_index = read_video(real["bikes"], start_frame=round(second * 25), frames=4, size=(32, 48))
    assert torch.equal(by_time, by_index)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bikes", VideoInfo(250, 25.0, 10.0, 272, 640)),
        ("carphone", VideoInfo(120, 29.97003, 4.004, 144, 176)),
        ("bunny", VideoInfo(132, 25.0, 5.28, 720, 1280)),
    ],
)
def test_probe(real: dict[str, Path], name: str, expected: VideoInfo) -> None:
    assert probe_video(real[name]) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, list(range(20))),
        ({"start_frame": 17}, [17, 18, 19]),
        ({"start_frame": 3, "frames": 2}, [3, 4]),
        ({"start": 0.5, "frames": 3}, [5, 6, 7]),
        ({"start": 0.58, "frames": 2}, [5, 6]),
        ({"start": 1.95}, [19]),
        ({"fps": 10}, list(range(20))),
        ({"fps": 5}, list(range(0, 20, 2))),
        ({"fps": 4, "frames": 5}, [0, 2, 5, 7, 10]),
        ({"fps": 20, "start": 0.3, "frames": 5}, [3, 3, 4, 4, 5]),
        ({"fps": 5, "start_frame": 3, "frames": 4}, [3, 5, 7, 9]),
        ({"fps": 2, "start": 1.2}, [12, 17]),
    ],
)
def test_which_frames(ten: Path, numbers: Numbers, request_: dict[str, Any], expected: list[int]) -> None:
    assert numbers(read_video(ten, **request_)) == expected


@pytest.mark.parametrize("fps", [24000 / 1001, 30.0, 60.0, 7.0])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_files_own_rate_changes_nothing(
    tmp_path: Path, numbered: Numbered, numbers: Numbers, fps: float, suffix: str
) -> None:
    write_video(tmp_path / "a.mp4", numbered(24), fps=fps)
    path = (tmp_path / "a").with_suffix(suffix)
    if suffix == ".mkv":  # whole milliseconds only
        write_timed(path, numbered(24), [round(1000 * k / fps) for k in range(24)], fps)
    assert numbers(read_video(path, fps=fps)) == list(range(24))
    assert numbers(read_video(path, start=10 / fps, fps=fps)) == list(range(10, 24))
    assert probe_video(path).fps == pytest.approx(fps, rel=1e-3 if suffix == ".mkv" else 1e-6)


def test_variable_frame_rate_follows_the_timestamps(tmp_path: Path, numbered: Numbered, numbers: Numbers) -> None:
    starts = [0, 100, 200, 1000, 1040, 1080, 2000, 2500]
    write_timed(tmp_path / "vfr.mkv", numbered(8), starts)
    wanted = [0, 250, 500, 750, 1000, 1250, 1500, 1750, 2000, 2250]
    on_display = [max(k for k, start in enumerate(starts) if start <= now) for now in wanted]
    assert numbers(read_video(tmp_path / "vfr.mkv", fps=4, frames=10)) == on_display
    assert numbers(read_video(tmp_path / "vfr.mkv", start=1.07, frames=3)) == [4, 5, 6]


def test_gif_frame_times_are_read(tmp_path: Path, numbers: Numbers, numbered: Numbered) -> None:
    pictures = [Image.fromarray(np.full((8, 8), 10 * k, np.uint8)) for k in range(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 100])
    assert numbers(read_video(tmp_path / "a.gif")) == [0, 1, 2, 3]
    assert numbers(read_video(tmp_path / "a.gif", fps=10)) == [0, 1, 1, 1, 2, 3]
    assert numbers(read_video(tmp_path / "a.gif", start=0.2, fps=10, frames=3)) == [1, 1, 2]
    assert probe_video(tmp_path / "a.gif").frames == 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_are_videos_of_one_frame(tmp_path: Path, suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    path = (tmp_path / "a").with_suffix(suffix)
    Image.fromarray(picture).save(path, **({"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}))
    levels = ((read_video(path) + 1) * 127.5).round()
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert levels.shape == (3, 1, 12, 20)
    assert np.abs(levels[:, 0].permute(1, 2, 0).numpy() - expected).mean() < (3 if suffix == ".jpg" else 1e-9)
    assert (probe_video(path).frames, probe_video(path).height, probe_video(path).width) == (1, 12, 20)


def cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    scale = max(size[0] / height, size[1] / width)
    return round(width * scale), round(height * scale)


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (100, 640)])
@pytest.mark.parametrize("crop", ["center", "stretch", (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.9, 0.2)])
def test_resize_and_crop_against_pillow(real: dict[str, Path], size: tuple[int, int], crop: Any) -> None:
    frame = read_video(real["bikes"], start_frame=7, frames=1)
    picture = Image.fromarray(((frame[:, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    inner = size[::-1] if crop == "stretch" else cover(272, 640, size)
    resized = np.asarray(picture.resize(inner, Image.Resampling.BILINEAR)).astype(int)
    down, right = (0.5, 0.5) if isinstance(crop, str) else crop
    top, left = round((inner[1] - size[0]) * down), round((inner[0] - size[1]) * right)
    expected = resized[top : top + size[0], left : left + size[1]]
    levels = (read_video(real["bikes"], start_frame=7, frames=1, size=size, crop=crop)[:, 0] + 1) * 127.5
    assert levels.shape == (3, *size)
    assert np.abs(levels.permute(1, 2, 0).numpy() - expected).max() <= 1.01


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (1, 9), (50, 2), (3, 40)])
@pytest.mark.parametrize("shape", [(16, 24), (33, 7), (2, 2)])
def test_the_smallest_sizes_against_pillow(tmp_path: Path, size: tuple[int, int], shape: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(levels).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    video = read_video(tmp_path / "a.png", size=size, crop="stretch")
    assert np.abs(((video[:, 0] + 1) * 127.5).permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_pad_shows_the_whole_picture_between_black_bars(ten: Path) -> None:
    video = read_video(ten, start_frame=19, frames=1, size=(16, 40), crop="pad")[:, 0]
    assert (video[..., 12:28] > 0.3).all()
    assert (video[..., :12] == -1).all()
    assert (video[..., 28:] == -1).all()


def test_gray_is_the_luma_of_the_colours(real: dict[str, Path]) -> None:
    colour = read_video(real["carphone"], frames=2)
    gray = read_video(real["carphone"], frames=2, gray=True)
    assert torch.allclose(gray[0], 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2], atol=1e-5)


def test_rotation_in_the_file_is_undone(tmp_path: Path) -> None:
    video = torch.full((3, 2, 16, 32), -1.0)
    video[:, :, :8, :8] = 1  # a white mark in the top left corner
    write_video(tmp_path / "a.mp4", video, fps=5)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    # ISO/IEC 14496-12: (x, y) is shown at (-y, x), a quarter turn clockwise, as phones held upright record.
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    turned = read_video(tmp_path / "b.mp4")
    assert turned.shape == (3, 2, 32, 16)
    assert (turned[:, :, :7, 9:] > 0.9).all()
    assert (turned[:, :, 10:] < -0.9).all()
    assert (turned[..., :7] < -0.9).all()
    assert (probe_video(tmp_path / "b.mp4").height, probe_video(tmp_path / "b.mp4").width) == (32, 16)


def test_bad_files_are_value_errors_that_name_the_file(tmp_path: Path, ten: Path) -> None:
    data = ten.read_bytes()
    files = {"empty.mp4": b"", "noise.mp4": bytes(range(256)) * 8, "cut.mp4": data[:200], "text.png": b"not a picture"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for function in (read_video, probe_video):
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                function(tmp_path / name)
    with pytest.raises(ValueError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        read_video(tmp_path / "empty.mp4")
    with pytest.raises(ValueError, match="is not a file"):
        read_video(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        read_video(tmp_path / "nothing.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"a\.mp4 holds no readable video stream"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"start": 1.0, "frames": 11}, r"ten\.mp4 has 10 frames from 1 s on, but 11 are needed"),
        ({"start_frame": 20}, r"ten\.mp4 has 0 frames from frame 20 on, but 1 are needed"),
        ({"start": 5.0}, r"ten\.mp4 has 0 frames from 5 s on"),
        ({"start": 5.0, "fps": 5}, r"ten\.mp4 has 0 frames from 5 s on"),
        ({"fps": 5, "frames": 11}, "has 10 frames from 0 s on, but 11 are needed"),
        ({"start": 1.0, "start_frame": 3}, "not both: got start=1.0, start_frame=3"),
        ({"start": -1.0}, "start must be a time of at least 0 seconds, got -1"),
        ({"start_frame": -1}, "start_frame must be at least 0, got -1"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"fps": 0.0}, "fps must be positive, got 0"),
        ({"size": (0, 4)}, r"size must be .* got \(0, 4\)"),
        ({"size": (4,)}, r"size must be .* got \(4,\)"),
        ({"size": (4.5, 4)}, r"size must be .* got \(4.5, 4\)"),
        ({"size": [4, 4]}, r"size must be .* got \[4, 4\]"),
        ({"crop": (0.5, 1.5)}, r"crop must be .* got \(0.5, 1.5\)"),
    ],
)
@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_requests(ten: Path, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_video(ten, **request_)


def test_without_pyav_the_extra_is_named(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"'av': pip install 'tubelet\[video\]'"):
        read_video(ten)


def test_a_file_cut_short_is_an_error_where_it_ends(real: dict[str, Path], tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", read_video(real["carphone"], frames=60), fps=30)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(0.6 * len(data))])
    for function in (read_video, probe_video):
        with pytest.raises(ValueError, match=r"cut\.mp4 is damaged or cut short at 1\.\d+ s"):
            function(tmp_path / "cut.mp4")
    assert torch.equal(read_video(tmp_path / "cut.mp4", frames=10), read_video(tmp_path / "whole.mp4", frames=10))


def test_a_raw_stream_has_no_timestamps_and_cannot_seek(ten: Path, numbers: Numbers) -> None:
    raw = ten.with_suffix(".h264")
    with av.open(str(ten)) as source, av.open(str(raw), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "1", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for frame in source.decode(video=0):
            frame.pts = None
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    assert numbers(read_video(raw, start=0.48, frames=4)) == [12, 13, 14, 15]
    assert numbers(read_video(raw, start=0.2, fps=12.5, frames=4)) == [5, 7, 9, 11]
