"""Reconstruction numbers against scikit-learn's PCA and NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from sklearn.decomposition import PCA

from tubelet.demo import digits
from tubelet.demo.reconstruction import BlockPCA, compression, foreground, psnr_db


def clips(split: digits.Split, count: int) -> list[torch.Tensor]:
    return [clip.video for clip in digits.batch(split, 4, 0, count)]


def blocks(video: np.ndarray, frames: int) -> np.ndarray:
    """Every block of a ``(s, h, w)`` array, flattened, in raster order."""
    s, h, w = video.shape
    return np.array(
        [
            video[t : t + frames, y : y + 8, x : x + 8].ravel()
            for t in range(0, s, frames)
            for y in range(0, h, 8)
            for x in range(0, w, 8)
        ]
    )


def test_foreground_is_scipys_dilation() -> None:
    for video in clips("judge", 8):
        expected = [binary_dilation(frame > -0.8, np.ones((3, 3))) for frame in video[0].numpy()]
        np.testing.assert_array_equal(foreground(video)[0].numpy(), expected)


def test_psnr_pools_the_foreground_of_all_clips() -> None:
    originals = clips("judge", 6)
    generator = torch.Generator().manual_seed(0)
    others = [video + 0.1 * torch.randn(video.shape, generator=generator) for video in originals]
    kept = np.concatenate([(a - b)[foreground(a)].numpy() for a, b in zip(originals, others, strict=True)])
    assert psnr_db(originals, others) == pytest.approx(10 * math.log10(4 / np.mean(kept.astype(np.float64) ** 2)))
    spoilt = [torch.where(foreground(video), video, torch.tensor(0.3)) for video in originals]
    assert psnr_db(originals, spoilt) == math.inf


def test_psnr_refuses_other_shapes_and_blank_paper() -> None:
    with pytest.raises(ValueError, match="shapes of the originals"):
        psnr_db([torch.ones(1, 1, 8, 8)], [torch.ones(1, 1, 8, 16)])
    with pytest.raises(ValueError, match="ink above -0.8"):
        psnr_db([-torch.ones(1, 1, 8, 8)], [torch.ones(1, 1, 8, 8)])


def test_block_pca_is_scikit_learns() -> None:
    train, held = clips("train", 60), clips("held_out", 6)
    ours = BlockPCA.fit(train, coefficients=16)
    first = PCA(16, svd_solver="full").fit(np.concatenate([blocks(v[0, :1].double().numpy(), 1) for v in train]))
    later = PCA(16, svd_solver="full").fit(
        np.concatenate([blocks(v[0, 1:].double().numpy(), 4) for v in train if v.shape[1] > 1])
    )
    for video in held:
        got = ours.reconstruct(video)
        back = first.inverse_transform(first.transform(blocks(video[0, :1].double().numpy(), 1)))
        np.testing.assert_allclose(blocks(got[0, :1].numpy(), 1), back, atol=2e-5)
        if video.shape[1] > 1:
            back = later.inverse_transform(later.transform(blocks(video[0, 1:].double().numpy(), 4)))
            np.testing.assert_allclose(blocks(got[0, 1:].numpy(), 4), back, atol=2e-5)


def test_block_pca_gains_with_coefficients() -> None:
    train, held = clips("train", 100), clips("held_out", 20)
    levels = []
    for count in (4, 16, 64):
        pca = BlockPCA.fit(train, count)
        levels.append(psnr_db(held, [pca.reconstruct(video) for video in held]))
    assert levels == sorted(levels) and levels[0] > 8


def test_block_pca_names_bad_input() -> None:
    with pytest.raises(ValueError, match=r"1\.\.64, got 65"):
        BlockPCA.fit([torch.zeros(1, 5, 8, 8)], 65)
    with pytest.raises(ValueError, match=r"\(4, 8, 8\)"):
        BlockPCA.fit([torch.zeros(1, 4, 8, 8)], 2)
    with pytest.raises(ValueError, match="more than one frame"):
        BlockPCA.fit([torch.zeros(1, 1, 8, 8)], 2)


def test_compression_counts_numbers() -> None:
    videos = [torch.zeros(1, 9, 24, 24), torch.zeros(1, 1, 16, 16)]
    latents = [torch.zeros(16, 3, 3, 3), torch.zeros(16, 1, 2, 2)]
    assert compression(videos, latents) == (9 * 576 + 256) / (16 * 27 + 64)
    with pytest.raises(ValueError, match="got 0 latents"):
        compression(videos, [])
