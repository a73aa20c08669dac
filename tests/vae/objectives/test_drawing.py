"""Frames that are drawn: each as likely as any other, in order, as many as there are."""

import pytest
import torch

from tubelet.vae.objectives import draw_frames, draw_window, take_frames


def test_windows_start_anywhere_alike() -> None:
    index = draw_window(3, 4000, 6, torch.Generator().manual_seed(0))
    assert torch.equal(index - index[:, :1], torch.arange(3).expand(4000, 3))
    shares = torch.bincount(index[:, 0]) / 4000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_frames_are_alike_different_and_in_order() -> None:
    index = draw_frames(2, 4000, 5, torch.Generator().manual_seed(0))
    assert bool((index[:, 0] < index[:, 1]).all())
    torch.testing.assert_close(torch.bincount(index.flatten()) / 4000, torch.full((5,), 0.4), rtol=0, atol=0.03)


@pytest.mark.parametrize("draw", [draw_frames, draw_window])
def test_a_short_clip_is_seen_whole_and_no_frame_is_no_choice(draw) -> None:
    assert draw(9, 2, 4).tolist() == [[0, 1, 2, 3]] * 2
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        draw(0, 2, 4)


def test_taking_is_indexing() -> None:
    video, index = torch.randn(3, 2, 5, 4, 3), torch.tensor([[0, 4], [2, 3], [1, 2]])
    expected = torch.stack([clip[:, row] for clip, row in zip(video, index, strict=True)])
    assert torch.equal(take_frames(video, index), expected)
