"""Random crops are what they say, squares of windows of the files, and a function of the seed and the step alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tubelet.data import RandomCrops, read_video, write_video


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three videos of noise that hardly repeats: 12, 9 and 7 frames, and an image."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for name, frames, size in (("a.mp4", 12, (24, 32)), ("b.mp4", 9, (20, 16)), ("deep/c.mp4", 7, (16, 16))):
        write_video(folder / name, torch.rand(3, frames, *size, generator=generator) * 2 - 1, fps=8)
    write_video(folder / "d.png", torch.rand(3, 1, 32, 32, generator=generator) * 2 - 1)
    return folder


def crops(root: Path, **options: object) -> RandomCrops:
    with pytest.warns(UserWarning, match=r"skipped d.png: .*d.png has 1 frames, but 5 are needed"):
        return RandomCrops(root, frames=5, size=16, **options)


def test_every_crop_is_a_window_of_a_file(root) -> None:
    """Found again by search over files, times, places, mirror and direction, where the scale happens to be 1."""
    made = crops(root, most=16)  # all files are held with a shorter side of 16, so no crop is scaled
    batch = made.batch(3, 12)
    found = set()
    for crop in batch:
        for file in made.files:
            video = read_video(root / file.name, size=file.size, crop="stretch")
            windows = video.unfold(1, 5, 1).unfold(2, 16, 1).unfold(3, 16, 1)  # 3 starts tops lefts t h w
            for mirror in ((), (6,)):
                for reverse in ((), (4,)):
                    same = (windows.flip((*mirror, *reverse)) - crop[:, None, None, None]).abs().amax((0, 4, 5, 6))
                    if (same < 1e-6).any():
                        found.add((file.name, bool(mirror), bool(reverse)))
                        break
    assert {name for name, _, _ in found} == {"a.mp4", "b.mp4", "deep/c.mp4"}
    assert {mirror for _, mirror, _ in found} == {reverse for _, _, reverse in found} == {True, False}


def test_a_crop_is_scaled_from_the_square_that_its_numbers_say(root) -> None:
    made = crops(root)
    video = torch.arange(3 * 12 * 48 * 64).reshape(12, 3, 48, 64).mul(2654435761).remainder(251).to(torch.uint8)
    crop = made._crop(video, (1.0, 0.5, 0.99, 0.0, 0.7, 0.7))
    square = video[4:9, :, :48, :48].contiguous(memory_format=torch.channels_last)
    expected = functional.interpolate(square, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(crop, expected.transpose(0, 1))
    smaller = made._crop(video, (0.5, 0.0, 0.99, 0.0, 0.2, 0.7))  # a side of 16 · 3^0.5 = 28, at the bottom
    square = video[:5, :, 20:48, :28].contiguous(memory_format=torch.channels_last)
    expected = functional.interpolate(square, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(smaller, expected.transpose(0, 1).flip(3))


def test_a_batch_depends_on_seed_and_step_alone(root) -> None:
    first, again = crops(root, seed=3), crops(root, seed=3)
    later = [first.batch(step, 3) for step in (5, 0, 9)]
    assert all(
        torch.equal(again.batch(step, 3), made) for step, made in zip((9, 5, 0), (later[2], *later[:2]), strict=True)
    )
    assert not torch.equal(later[0], later[1])
    assert not torch.equal(crops(root, seed=4).batch(5, 3), later[0])


def test_pools_hold_what_fits_and_every_file_takes_its_turn(root) -> None:
    told: list[tuple[int, int]] = []
    largest = 3 * 12 * 24 * 32
    made = crops(root, memory=largest, turn=2, on_file=lambda *done: told.append(done))
    pools = {made._pool(step) is not None and made._held[0] for step in range(0, 12, 2)}
    assert sorted(i for pool in pools for i in pool) == [0, 1, 2]
    assert max(sum(made.files[i].numbers for i in pool) for pool in pools) <= largest
    assert told[0] == (1, len(made._pools[0]))
    assert len(told) == 6 // len(pools) * 3
    fresh = crops(root, memory=largest, turn=2)
    assert torch.equal(fresh.batch(7, 2), made.batch(7, 2))
    with pytest.raises(ValueError, match=r"27647 bytes, but .*a.mp4 needs 27648 bytes for 12 frames of 24x32"):
        crops(root, memory=largest - 1)


def test_long_files_are_cut_and_large_ones_scaled(root) -> None:
    made = crops(root, longest=6, most=20)
    assert [(file.name, file.frames, file.size) for file in made.files] == [
        ("a.mp4", 6, (20, 27)),
        ("b.mp4", 6, (20, 16)),
        ("deep/c.mp4", 6, (16, 16)),
    ]
    held = sorted(tuple(video.shape) for video in made._pool(0))
    assert held == [(6, 3, 16, 16), (6, 3, 20, 16), (6, 3, 20, 27)]


def test_what_cannot_be_used_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="root must be a folder"):
        RandomCrops(tmp_path / "none", frames=5, size=16)
    with pytest.raises(ValueError, match=r"no usable clips in .* \(0 skipped\)"):
        RandomCrops(tmp_path, frames=5, size=16)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    write_video(tmp_path / "small.mp4", torch.zeros(3, 6, 8, 24))
    with pytest.warns(UserWarning) as told, pytest.raises(ValueError, match=r"2 skipped: bad.mp4: .*small.mp4"):
        RandomCrops(tmp_path, frames=5, size=16)
    assert "8x24 pixels, but crops have 16x16" in str(told[1].message)
    for options, says in (
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"most": 8}, "most must be at least that of a crop, 16, got 8"),
        ({"longest": 4}, "longest must be at least that of a crop, 5, got 4"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=says):
            RandomCrops(tmp_path, **{"frames": 5, "size": 16, **options})


def test_a_file_that_is_damaged_further_on_is_named(tmp_path) -> None:
    write_video(tmp_path / "a.mp4", torch.rand(3, 40, 32, 32) * 2 - 1, fps=8)
    whole = (tmp_path / "a.mp4").read_bytes()
    made = RandomCrops(tmp_path, frames=5, size=16)
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4"):
        made.batch(0, 1)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        made.batch(0, 0)


def test_long_files_are_drawn_by_the_root_of_their_length(root) -> None:
    """12, 9 and 7 frames: shares of the root; a count over many steps is within four deviations."""
    made = crops(root)
    drawn = np.zeros(3)

    def counted(video, numbers):
        drawn[{12: 0, 9: 1, 7: 2}[len(video)]] += 1
        return video[:5, :, :16, :16].transpose(0, 1)

    made._crop = counted
    for step in range(30):
        made.batch(step, 40)
    shares = np.sqrt([12, 9, 7]) / np.sqrt([12, 9, 7]).sum()
    assert np.abs(drawn - 1200 * shares).max() < 4 * np.sqrt(1200 * shares * (1 - shares)).max()
