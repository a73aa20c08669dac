"""Both stages learn, resume to the bit, and pack every clip once an epoch."""

import io
from pathlib import Path

import pytest
import torch

from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.pipeline import TextToVideo
from tubelet.recipe import (
    LatentSet,
    Recipe,
    _PackOrder,
    calibrated,
    encode_clips,
    train_autoencoder,
    train_denoiser,
    with_latent_stats,
)
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.training import Progress
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

RECIPE = Recipe(vae_steps=6, steps=6, budget=48, bf16=False, save_every=100)


def _model() -> TextToVideo:
    torch.manual_seed(0)
    vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1)))
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=2, text_dim=8))
    return TextToVideo(vae, WordEncoder(WordEncoderConfig(words=("a", "two"), dim=8)), dit)


def _videos(step: int) -> torch.Tensor:
    return torch.rand(2, 1, 5, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def _data() -> LatentSet:
    generator = torch.Generator().manual_seed(3)
    sizes = [(1, 2, 2), (2, 2, 3), (3, 2, 2), (1, 3, 3), (2, 2, 2)] * 4
    return LatentSet(tuple(torch.randn(4, *size, generator=generator) for size in sizes), ("a two", "a") * 10)


class Stop(Progress):
    """Raises Ctrl-C's exception after some steps, between two steps, as a killed process would stop."""

    def __init__(self, steps: int, start: int, after: int) -> None:
        super().__init__(steps, start=start, stream=io.StringIO())
        self.after = after

    def update(self, done, record) -> None:
        if done == self.after + 1:
            raise KeyboardInterrupt


def _quiet(steps: int, start: int) -> Progress:
    return Progress(steps, start=start, stream=io.StringIO())


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(stage, tmp_path: Path) -> None:
    recipe = Recipe(vae_steps=6, steps=6, budget=48, bf16=False, save_every=3)

    def train(model: TextToVideo, file: Path | None, show) -> object:
        if stage == "autoencoder":
            return train_autoencoder(model.vae, _videos, recipe, checkpoint=file, on_progress=show)
        return train_denoiser(model, _data(), recipe, checkpoint=file, on_progress=show)

    whole = _model()
    unbroken = train(whole, None, _quiet)
    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(_model(), file, lambda steps, start: Stop(steps, start, after=4))
    torch.manual_seed(99)  # a new process has other global randomness
    resumed = _model()
    history = train(resumed, file, _quiet)
    assert history["loss"] == unbroken["loss"]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_autoencoder_learns() -> None:
    model, square = _model(), torch.full((2, 1, 5, 16, 16), -1.0)
    square[..., 4:12, 4:12] = 1.0
    recipe = Recipe(vae_steps=250, steps=1, bf16=False)
    history = train_autoencoder(model.vae, lambda step: square, recipe, on_progress=_quiet)
    assert sum(history["error"][-5:]) < 0.3 * sum(history["error"][:5])


def test_the_denoiser_learns_and_ends_on_the_average() -> None:
    model = _model()
    one = LatentSet((torch.ones(4, 1, 4, 4),) * 8, ("a two",) * 8)
    history = train_denoiser(model, one, Recipe(vae_steps=1, steps=60, budget=64, bf16=False), on_progress=_quiet)
    assert sum(history["loss"][-5:]) < 0.8 * sum(history["loss"][:5])
    assert set(history["tokens"]) == {64.0}


def test_packs_hold_each_clip_once_an_epoch_within_the_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 64, (3000,), generator=generator).tolist()
    packs = _PackOrder(lengths, 1024, seed=1)
    first = [packs[step] for step in range(packs.starts[-1] or len(packs.epoch(0)))]
    members = [i for pack in first for i in pack]
    assert len(members) == len(set(members)) > 2500
    assert all(sum(lengths[i] for i in pack) <= 1024 for pack in first)
    filled = sum(sum(lengths[i] for i in pack) for pack in first) / (1024 * len(first))
    assert filled >= 0.98
    later = len(first) + 2
    assert _PackOrder(lengths, 1024, seed=1)[later] == packs[later]
    assert _PackOrder(lengths, 1024, seed=2)[0] != packs[0]


def test_latents_need_a_caption_each_and_at_least_one() -> None:
    for latents, captions in (((), ()), ((torch.zeros(4, 1, 2, 2),) * 2, ("a",))):
        with pytest.raises(ValueError, match=f"got {len(captions)} for {len(latents)}"):
            LatentSet(latents, captions)


def test_a_step_far_away_is_found_without_the_ones_before() -> None:
    """One pack an epoch: the steps are the epochs, each with every clip, in orders that differ."""
    packs = _PackOrder([2, 3, 4], 16, seed=0)
    orders = [tuple(packs[step]) for step in range(40)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert _PackOrder([2, 3, 4], 16, seed=0)[39] == packs[39]


def test_padding_is_the_part_of_the_budget_that_is_empty() -> None:
    history = train_denoiser(_model(), _data(), RECIPE, on_progress=_quiet)
    assert history["padding"] == pytest.approx([1 - tokens / 48 for tokens in history["tokens"]])
    assert max(history["tokens"]) <= 48


def test_latent_statistics_make_unit_variance() -> None:
    model, videos = _model(), list(_videos(0)) + list(_videos(1))
    with_latent_stats(model.vae, videos)
    numbers = torch.cat([z.flatten(1) for z in encode_clips(model.vae, videos, ["a"] * 4).latents], dim=1)
    torch.testing.assert_close(numbers.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(numbers.std(1), torch.ones(4), rtol=1e-3, atol=0)


def test_calibration_divides_the_time_by_the_measured_step(monkeypatch) -> None:
    """A clock that ticks one second at each reading: five steps in one second, for both stages."""
    clock = iter(range(10**6))
    monkeypatch.setattr("tubelet.recipe.time.perf_counter", lambda: float(next(clock)))
    model = _model()
    one = calibrated(RECIPE, 1.0, model, _videos, _data())
    two = calibrated(RECIPE, 2.0, model, _videos, _data())
    assert (two.vae_steps, two.steps) == pytest.approx((2 * one.vae_steps, 2 * one.steps), abs=1)
    fresh = _model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_recipe_refuses_what_is_not_positive() -> None:
    with pytest.raises(ValueError, match="vae_steps must be positive and finite, got 0"):
        Recipe(vae_steps=0, steps=1)
    with pytest.raises(ValueError, match="9"):
        train_denoiser(_model(), _data(), Recipe(vae_steps=1, steps=1, budget=8), on_progress=_quiet)
