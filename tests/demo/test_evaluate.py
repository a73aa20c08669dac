"""The demo's numbers: the loss by its definition, rivals that a constructed model beats or not, and the bars."""

import math

import pytest
import torch
from torch import nn

from tubelet.demo import digits, evaluate
from tubelet.demo.build import build
from tubelet.demo.evaluate import (
    BARS,
    autoencoder_metrics,
    copying,
    held_out_loss,
    judged_clips,
    sample_like,
    sample_metrics,
    verdicts,
)
from tubelet.demo.judge import Judge
from tubelet.demo.metrics import linear_predictor_loss
from tubelet.pipeline import encode_videos, generate


class Zero(nn.Module):
    """Predicts the velocity 0, which no affine predictor is worse than."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.config = like.config

    def forward(self, x, t, *rest):
        return torch.zeros_like(x)


class Cheat(Zero):
    """Knows the data of one batch after another: the exact velocity, as no honest model could."""

    def forward(self, x, t, *rest):
        (time,) = t.values.tolist()
        data = self.batches.pop(0)
        return (x - (1 - time) * data) / time - data


def test_predicting_nothing_loses_against_the_linear_predictor() -> None:
    """E|eps - x0|^2 = 1 + E x0^2, and the linear predictor's loss is the closed form over the same latents."""
    model = build(0)
    model.denoiser = Zero(model.denoiser)
    found = held_out_loss(model, seed=0, clips=64)
    shown = [clip.video for size, _ in digits.SIZES for clip in digits.batch("held_out", 0, 0, 4, size)]
    latents = encode_videos(model.vae, shown)
    square = sum(float(z.double().square().sum()) for z in latents) / sum(z.numel() for z in latents)
    assert found["loss"] == pytest.approx(1 + square, rel=0.02)
    assert found["linear_predictor_loss"] == linear_predictor_loss(latents, torch.tensor(evaluate._TIMES))
    assert found["loss_over_linear_predictor"] == found["loss"] / found["linear_predictor_loss"] > 1


def test_a_model_that_knows_the_answer_wins(monkeypatch) -> None:
    model = build(0)
    model.denoiser = Cheat(model.denoiser)
    model.denoiser.batches = []
    original = evaluate._loss_at

    def watched(model, batch, *rest):
        model.denoiser.batches.append(batch.patches)
        return original(model, batch, *rest)

    monkeypatch.setattr(evaluate, "_loss_at", watched)
    found = held_out_loss(model, seed=1, clips=32)
    assert found["loss"] < 1e-8
    assert found["loss_over_linear_predictor"] < 1e-6


def test_the_autoencoder_is_measured_against_its_rival() -> None:
    found = autoencoder_metrics(build(0), seed=0, clips=16)
    assert found["psnr_above_block_pca_db"] == found["psnr_db"] - found["block_pca_psnr_db"] < 0  # untrained
    clips = [clip.video.shape[1:] for clip in digits.batch("held_out", 0, 0, 16)]
    pixels = sum(math.prod(size) for size in clips)
    numbers = sum(16 * (1 + (t - 1) // 4) * (h // 8) * (w // 8) for t, h, w in clips)
    assert found["compression"] == pytest.approx(pixels / numbers)


def test_samples_follow_the_clips_in_size_caption_and_first_frame() -> None:
    model, ticks = build(0), []
    clips = digits.batch("held_out", 0, 0, 3, (5, 16, 24))
    found = sample_like(model, clips, 7, first_frames=True, steps=1, tick=ticks.append)
    assert ticks == [3]
    assert all(torch.equal(video[:, 0], clip.video[:, 0]) for video, clip in zip(found, clips, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        (second,) = generate(
            model, [clips[1].caption], [(5, 16, 24)], [8], prefixes=[clips[1].video[:, :1]], steps=1, guidance=2.0
        )
    torch.testing.assert_close(found[1], second.float(), rtol=0.05, atol=0.05)  # bfloat16 in another batch


@pytest.mark.parametrize(("seed", "moving"), [(0, 1), (1, 7), (2, 60)])
def test_judged_clips_are_the_stream_up_to_the_last_that_drifts(seed: int, moving: int) -> None:
    clips = judged_clips(seed, moving)
    stream = digits.batch("held_out", seed, 0, 3 * moving + 20)
    drifting = [i for i, clip in enumerate(stream) if clip.direction is not None]
    assert len(clips) == drifting[moving - 1] + 1
    assert all(torch.equal(clip.video, other.video) for clip, other in zip(clips, stream, strict=False))


def test_copying_names_both_shares_beside_those_of_held_out_clips() -> None:
    first, second = copying({"beyond_median": 0.25, "beyond_fifth_percentile": 0.75}).split("\n")
    assert "25 % of samples, 50 % of held-out clips" in first
    assert "75 % of samples, 5 % of held-out clips" in second


def test_real_clips_pass_for_samples_and_reversed_ones_do_not() -> None:
    clips = digits.batch("held_out", 0, 0, 60)
    videos, judge = [clip.video for clip in clips], Judge().eval()
    real = sample_metrics(judge, videos, clips, seed=0)
    assert set(real) == {"digit_accuracy", "direction_accuracy", "judge_on_real", "diversity", "memorised"}
    assert real["judge_on_real"]["direction_accuracy"] == real["direction_accuracy"]
    backwards = sample_metrics(judge, [video.flip(1) for video in videos], clips, seed=0)
    assert backwards["direction_accuracy"]["value"] == 0.0
    assert backwards["judge_on_real"] == real["judge_on_real"]


@pytest.mark.parametrize("name", sorted(BARS))
def test_each_bar_divides_what_passes_from_what_misses(name: str) -> None:
    def nested(value: float) -> dict:
        for key in reversed(name.split(".")):
            value = {key: value}
        return value

    side, bar = BARS[name]
    good, bad = (bar + 0.01, bar - 0.01) if side == "at least" else (bar - 0.01, bar + 0.01)
    assert [verdicts(nested(value))[name]["passes"] for value in (good, bar, bad, math.nan)] == [
        True,
        True,
        False,
        False,
    ]
    assert verdicts(nested(good))[name] == {"value": good, "bar": f"{side} {bar:g}", "passes": True}
    assert len(verdicts(nested(good))) == 1


def test_numbers_that_are_missing_have_no_verdict() -> None:
    assert verdicts({}) == {}
    assert verdicts({"samples": 3, "live": {}}) == {}
