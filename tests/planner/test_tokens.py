"""Grids of videos by counting frames, chunk by chunk, and keys by counting pairs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.attention import FrameCausal, Joint, Spatial
from tubelet.layout import Grid
from tubelet.planner import keys_per_token, token_grid
from tubelet.vae import Factors


@given(k=st.integers(0, 9), temporal=st.integers(1, 8), spatial=st.sampled_from([4, 8, 16]), side=st.integers(1, 4))
def test_the_grid_is_that_of_the_autoencoder(k: int, temporal: int, spatial: int, side: int) -> None:
    video = 1 + temporal * k, spatial * side, spatial * 2 * side
    grid = token_grid(*video, temporal=temporal, spatial=spatial, patch=(1, 1, 1))
    assert grid == Factors(temporal, spatial).latent_grid(*video)


@given(chunks=st.integers(0, 4), rest=st.integers(0, 3))
def test_chunks_are_coded_one_by_one(chunks: int, rest: int) -> None:
    frames = 17 * chunks + (1 + 4 * rest if rest else 0)
    if frames:
        expected = chunks * 5 + (1 + rest if rest else 0)
        assert token_grid(frames, 16, 16, chunk=17).t == expected


def test_patches_divide_time_too() -> None:
    assert token_grid(16, 32, 48, temporal=2, causal=False, patch=(4, 1, 2)) == Grid(2, 4, 3)


def test_keys_with_text() -> None:
    grid = Grid(2, 3, 4)
    assert keys_per_token(Joint(), grid, text=5) == 29
    assert keys_per_token(Spatial(), grid, text=6) == (6 * 30 + 24 * (6 + 12)) / 30
    assert keys_per_token(FrameCausal(), grid, heads=3) == (12 + 24) / 2


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_has_frames(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk must be at least 1, got {chunk}"):
        token_grid(17, 16, 16, chunk=chunk)
