"""Writing: what other readers (Pillow, PyAV) find in the files, exactly where the format is lossless."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from tubelet.data import probe_video, read_video, write_video
from tubelet.data.writing import tile, to_levels

Numbered = Callable[..., Tensor]
Numbers = Callable[[Tensor], list[int]]


def noise(channels: int, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, frames, height, width), generator=generator) / 127.5 - 1


def smooth(frames: int, height: int, width: int) -> Tensor:
    """Slow waves, which a codec keeps."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return torch.stack([torch.sin(3 * (y + phase) + 2 * x + t) for phase in (0.0, 0.5, 1.0)])


def levels_of(video: Tensor) -> np.ndarray:
    return ((video.double() + 1) * 127.5).round().permute(1, 2, 3, 0).numpy().astype(np.uint8)


def pillow_frames(path: Path, mode: str) -> tuple[np.ndarray, list[int]]:
    frames, durations = [], []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert(mode)))
            durations.append(int(frame.info["duration"]))
    return np.stack(frames), durations


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (16, 17), (2, 2), (1, 1)])
def test_mp4_keeps_frames_rate_and_pictures(tmp_path: Path, height: int, width: int) -> None:
    video = smooth(9, height, width)
    write_video(tmp_path / "a.mp4", video, fps=12.5)
    restored = read_video(tmp_path / "a.mp4")
    assert restored.shape == (3, 9, height + height % 2, width + width % 2)
    if min(height, width) >= 32:
        error = (restored[..., :height, :width] - video).square().mean()
        assert 10 * torch.log10(4 / error) > 34
    assert (restored[..., -1:, :] - restored[..., height - 1 : height, :]).abs().max() <= 0.03
    info = probe_video(tmp_path / "a.mp4")
    assert (info.frames, info.fps) == (9, 12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_mp4_keeps_ntsc_rates_exactly(tmp_path: Path, numbered: Numbered) -> None:
    write_video(tmp_path / "a.mp4", numbered(3), fps=24000 / 1001)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert str(container.streams.video[0].average_rate) == "24000/1001"


def test_a_grey_mp4_has_no_colour(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", smooth(3, 32, 32)[:1], fps=4)
    restored = read_video(tmp_path / "a.mp4")
    assert (restored - restored.mean(dim=0)).abs().max() < 0.03


@pytest.mark.parametrize("fps", [4, 12, 24, 50])
def test_gif_is_exact_in_grey_and_keeps_its_duration(tmp_path: Path, fps: int) -> None:
    video = noise(1, 13, 10, 7)
    write_video(tmp_path / "a.gif", video, fps=fps)
    frames, durations = pillow_frames(tmp_path / "a.gif", "L")
    assert np.array_equal(frames, levels_of(video)[..., 0])
    assert abs(sum(durations) - 1000 * 13 / fps) <= 5
    assert set(durations) <= {10 * (100 // fps), 10 * -(-100 // fps)}
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0


def test_gif_in_colour_is_close(tmp_path: Path) -> None:
    video = smooth(5, 24, 24)
    write_video(tmp_path / "a.gif", video, fps=10)
    frames, _ = pillow_frames(tmp_path / "a.gif", "RGB")
    assert np.abs(frames.astype(int) - levels_of(video)).mean() < 6


@pytest.mark.parametrize("channels", [1, 3])
def test_webp_is_lossless(tmp_path: Path, channels: int) -> None:
    video = noise(channels, 5, 9, 12)
    write_video(tmp_path / "a.webp", video, fps=30)
    frames, durations = pillow_frames(tmp_path / "a.webp", "RGB")
    assert np.array_equal(frames, np.broadcast_to(levels_of(video), frames.shape))
    assert sum(durations) == 167


@pytest.mark.parametrize("channels", [1, 3])
def test_png_lays_frames_in_reading_order(tmp_path: Path, channels: int) -> None:
    video = noise(channels, 11, 4, 6)
    write_video(tmp_path / "a.png", video)
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert sheet.shape == (2 * 5 - 1, 8 * 7 - 1, 3)
    for frame, picture in enumerate(levels_of(video)):
        top, left = 5 * (frame // 8), 7 * (frame % 8)
        assert (sheet[top : top + 4, left : left + 6] == picture).all()
    assert (sheet[4] == 255).all()
    assert (sheet[:, 6] == 255).all()


def test_one_frame_as_png_is_the_image(tmp_path: Path) -> None:
    video = noise(3, 1, 5, 7)
    write_video(tmp_path / "a.png", video)
    assert torch.equal(read_video(tmp_path / "a.png"), video)


def test_scale_repeats_pixels(tmp_path: Path) -> None:
    video = noise(3, 1, 5, 7)
    write_video(tmp_path / "a.png", video, scale=3)
    expected = video.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert torch.equal(read_video(tmp_path / "a.png"), expected)


def test_levels_round_and_clamp() -> None:
    video = torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.0, 7.0]).reshape(1, 1, 1, 7)
    assert to_levels(video).ravel().tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_tile_with_fewer_pictures_than_columns() -> None:
    assert tile(np.zeros((2, 3, 4, 1), np.uint8), columns=8, gap=2).shape == (3, 10, 1)


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
@pytest.mark.parametrize(
    ("name", "video", "options", "message"),
    [
        (
            "a.mp4",
            torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
            {},
            r"floats in \[-1, 1\], got torch.uint8; .* x / 127.5 - 1",
        ),
        ("a.png", torch.zeros(3, 1, 4, 4, dtype=torch.long), {}, "floats .* got torch.int64"),
        ("a.png", torch.zeros(3, 4, 4), {}, r"\(c, t, h, w\), got shape \(3, 4, 4\)"),
        ("a.mpg", torch.zeros(3, 1, 4, 4), {}, r"path must end in .mp4, .gif, .webp, .png, got '.*a.mpg'"),
        ("a", torch.zeros(3, 1, 4, 4), {}, "path must end in"),
        ("a.mp4", torch.zeros(2, 1, 4, 4), {}, r"1 or 3 channels .* got shape \(2, 1, 4, 4\)"),
        ("a.mp4", torch.zeros(3, 0, 4, 4), {}, r"at least one pixel, got shape \(3, 0, 4, 4\)"),
        ("a.mp4", torch.full((3, 1, 4, 4), float("nan")), {}, "must be finite, got 48 other values"),
        ("a.mp4", torch.zeros(3, 1, 4, 4), {"fps": 0}, "fps must be positive, got 0"),
        ("a.mp4", torch.zeros(3, 1, 4, 4), {"fps": 1e-9}, "fps must be at least 0.00001, got 1e-09"),
        ("a.gif", torch.zeros(3, 1, 4, 4), {"fps": 60}, "at most 50 in a GIF, got 60"),
        ("a.mp4", torch.zeros(3, 1, 4, 4), {"scale": 0}, "scale must be at least 1, got 0"),
    ],
)
def test_errors_leave_no_file(tmp_path: Path, name: str, video: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, video, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
