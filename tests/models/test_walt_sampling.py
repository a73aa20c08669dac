"""W.A.L.T's process by its formulas; sampling by a plain loop; rollouts and stages that keep what they are given."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from mixtures import F64
from parity import error, randomise
from torch import Tensor
from walts import EVERYTHING, TINY

from tubelet.diffusion import ddim_step, further_seeds, noise_like, sample
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import (
    Walt,
    upsampled,
    walt_cascade,
    walt_l,
    walt_loss,
    walt_process,
    walt_rollout,
    walt_sample,
    walt_upsample,
)
from tubelet.patchify import fold_packed, unfold_packed

GRIDS = (Grid(3, 2, 2), Grid(1, 4, 3))
LAYOUT = TokenLayout.packed(GRIDS)
NULL = torch.tensor([3, 3])


def tiny(**changed: Any) -> Walt:
    return randomise(Walt(dataclasses.replace(TINY, **changed), **F64))


def table() -> list[float]:
    """The levels of the signal by the paper's recipe, in plain numbers: true-linear betas, rescaled to end at 0."""
    kept, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        kept.append(math.sqrt(product))
    return [(a - kept[-1]) * kept[0] / (kept[0] - kept[-1]) for a in kept]


def test_the_process_is_true_linear_without_signal_at_its_end() -> None:
    process, alphas = walt_process(), table()
    t = torch.tensor([1.0, 500.0, 999.0, 1000.0], **F64) / 1000
    expected = torch.tensor([alphas[0], alphas[499], alphas[998], 0.0], **F64)
    torch.testing.assert_close(process.path.alpha(t), expected, rtol=1e-9, atol=1e-12)
    assert float(process.path.alpha(t)[1]) ** 2 == pytest.approx(0.076029, rel=1e-5)
    assert process.path.sigma(t)[3] == 1
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        walt_process(1)


def test_the_prediction_is_v_with_its_right_sign() -> None:
    """``alpha·eps - sigma·x0``, not the swapped one in print; at the end of the path it is minus the data."""
    process = walt_process()
    x0, noise = torch.randn(2, 4, 3, **F64)
    t = Rows(torch.tensor([0.3], **F64))
    a, s = process.path.alpha(t.values), process.path.sigma(t.values)
    torch.testing.assert_close(process.target(x0, noise, t), a * noise - s * x0)
    last = Rows(torch.ones(1, **F64))
    assert torch.equal(process.target(x0, noise, last), -x0)
    assert torch.equal(process.split(-x0, noise, last)[0], x0)


def test_training_draws_the_levels_of_the_table() -> None:
    drawn = walt_process().draw_times(2000, torch.Generator().manual_seed(0), dtype=torch.float64) * 1000
    assert torch.equal(drawn.round(), drawn.round().clamp(1, 1000))
    torch.testing.assert_close(drawn, drawn.round(), rtol=0, atol=1e-9)
    assert abs(float(drawn.mean()) - 500.5) < 20


def test_fifty_steps_of_ddim_recover_a_gaussian() -> None:
    """With the exact denoiser of data N(2, 0.5²) samples have its mean at once and its deviation in many steps."""
    process = walt_process()

    def exact(x: Tensor, t: Rows) -> Tensor:
        a, s = process.path.alpha(t.values), process.path.sigma(t.values)
        gain = 0.25 * a / (0.25 * a**2 + s**2)
        x0 = 2 + gain * (x - 2 * a)
        eps = torch.where(a == 1, 0, (x - a * x0) / s)
        return a * eps - s * x0

    noise = torch.randn(10000, 1, **F64)
    noise = (noise - noise.mean()) / noise.std()
    for steps, error_of_deviation in ((50, 0.06), (400, 0.01)):
        times = process.times(steps, dtype=torch.float64)
        out = sample(exact, noise, times, process=process, step=ddim_step)
        assert float(out.mean()) == pytest.approx(2, abs=1e-6)
        assert float(out.std()) == pytest.approx(0.5, rel=error_of_deviation)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_is_a_plain_loop_that_hands_its_estimate_on(guidance: float) -> None:
    model, process = tiny(classes=3), walt_process()
    labels, t0 = torch.tensor([0, 2]), process.times(3, dtype=torch.float64)
    got = walt_sample(model, LAYOUT, [7, 8], steps=3, labels=labels, guidance=guidance)
    x, estimate = noise_like(LAYOUT, 4, [7, 8], **F64), torch.zeros(24, 4, **F64)
    with torch.no_grad():
        for t, s in itertools.pairwise(t0):
            v = model(x, Rows(t[None]), LAYOUT, labels, estimate=estimate)
            empty = model(x, Rows(t[None]), LAYOUT, NULL, estimate=estimate)
            v = v if guidance == 1 else empty + guidance * (v - empty)
            (a, b), (next_a, next_b) = ((process.path.alpha(u), process.path.sigma(u)) for u in (t, s))
            estimate = a * x - b * v
            x = next_a * estimate + next_b * (b * x + a * v)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_a_model_without_self_conditioning_samples_too() -> None:
    model = tiny(self_conditioning=False)
    got = walt_sample(model, LAYOUT, [7, 8], steps=2)
    process = walt_process()
    with torch.no_grad():
        want = sample(
            lambda x, t: model(x, t, LAYOUT),
            noise_like(LAYOUT, 4, [7, 8], **F64),
            process.times(2, dtype=torch.float64),
            process=process,
            step=ddim_step,
        )
    assert torch.equal(got, want)


def test_guidance_leaves_out_class_text_and_given_frames_alone() -> None:
    model, seen = tiny(**EVERYTHING), []
    forward = model.forward
    model.forward = lambda x, t, layout, **given: seen.append(given) or forward(x, t, layout, **given)
    inputs = {
        "labels": torch.tensor([0, 2]),
        "text": torch.randn(5, 6, **F64),
        "text_layout": TokenLayout.packed([None, None], [3, 2]),
        "known": torch.randn(24, 5, **F64),
        "low": torch.randn(24, 4, **F64),
        "noise": torch.tensor([0.1, 0.2], **F64),
    }
    walt_sample(model, LAYOUT, [0, 1], steps=1, guidance=2.0, **inputs)
    first, second = seen
    assert all(first[name] is inputs[name] for name in inputs)
    assert second["labels"].tolist() == [3, 3] and second["text_layout"].text_lengths == (0, 0)
    assert "known" not in second and second["low"] is inputs["low"] and second["noise"] is inputs["noise"]
    dense = TokenLayout.dense(2, Grid(1, 2, 2))
    inputs = {"labels": torch.tensor([0, 2]), "text": torch.randn(2, 3, 6, **F64), "noise": inputs["noise"]}
    inputs |= {"text_layout": TokenLayout.padded([3, 2], 3), "low": torch.randn(2, 4, 4, **F64)}
    assert walt_sample(model, dense, [0, 1], steps=1, guidance=2.0, **inputs).isfinite().all()


@pytest.mark.parametrize("overlap", [1, 2])
def test_a_rollout_keeps_its_conditioning_latents_to_the_bit(overlap: int) -> None:
    """Those of each window are the last ones of the window before, and the network is shown them unchanged."""
    model, shown = tiny(frame_prediction=True), []
    forward = model.forward
    model.forward = lambda x, t, layout, **given: shown.append(given["known"]) or forward(x, t, layout, **given)
    starts = [torch.randn(2, overlap, 2, 4, **F64), torch.randn(2, overlap, 3, 6, **F64)]
    options = {"window": 4, "overlap": overlap, "steps": 2}
    videos = walt_rollout(model, starts, 9, [3, 4], **options)
    assert [tuple(video.shape) for video in videos] == [(2, 9, 2, 4), (2, 9, 3, 6)]
    for video, start in zip(videos, starts, strict=True):
        assert torch.equal(video[:, :overlap], start)
    grids, hop = [Grid(4, 2, 2), Grid(4, 3, 3)], 4 - overlap
    for number, known in enumerate(shown[::2]):
        first = number * hop
        for i, patches in enumerate(unfold_packed(known[:, :4].contiguous(), grids, (1, 1, 2))):
            assert torch.equal(patches[:, :overlap], videos[i][:, first : first + overlap])
            assert not patches[:, overlap:].any()
        masks = known[:, 4].split([grid.tokens for grid in grids])
        assert [int(mask.sum()) for mask in masks] == [overlap * 4, overlap * 9]
    again = walt_rollout(model, starts[1:], 9, [4], **options)
    torch.testing.assert_close(again[0], videos[1], rtol=1e-9, atol=1e-9)


def test_the_windows_of_a_rollout_draw_anew() -> None:
    model = tiny(frame_prediction=True)
    torch.nn.init.zeros_(model.project.weight)  # so that a window is what its noise makes it
    torch.nn.init.zeros_(model.project.bias)
    video = walt_rollout(model, [torch.zeros(2, 1, 2, 4, **F64)], 5, [0], window=3, overlap=1, steps=2)[0]
    assert error(video[:, 1:3], video[:, 3:5]) > 0.1


def test_a_stage_is_told_of_the_noise_in_its_lower_resolution() -> None:
    """Of the upsampled latents and of the level; the noise is that of the seeds, and another than the sampler's."""
    model, seen = tiny(super_resolution=True), []
    forward = model.forward
    model.forward = lambda x, t, layout, **given: seen.append((x, given)) or forward(x, t, layout, **given)
    lows, process = [torch.randn(2, 3, 1, 2, **F64), torch.randn(2, 1, 2, 2, **F64)], walt_process()
    made = walt_upsample(model, lows, [5, 6], level=0.3, steps=2)
    assert [tuple(video.shape) for video in made] == [(2, 3, 2, 4), (2, 1, 4, 4)]
    x, given = seen[0]
    patches, grids = fold_packed([low.repeat_interleave(2, 2).repeat_interleave(2, 3) for low in lows], (1, 1, 2))
    a, s = (f(torch.tensor(0.3, **F64)) for f in (process.path.alpha, process.path.sigma))
    noise = (given["low"] - a * patches) / s
    assert given["noise"].tolist() == [0.3, 0.3]
    assert torch.equal(x, noise_like(TokenLayout.packed(grids), 4, [5, 6], **F64))
    assert abs(float(noise.mean())) < 0.3 and 0.7 < float(noise.std()) < 1.3
    assert float((noise * x).mean().abs()) < 0.3 and not torch.equal(noise, x)
    alone = walt_upsample(model, lows[1:], [6], level=0.3, steps=2)
    torch.testing.assert_close(alone[0], made[1], rtol=1e-9, atol=1e-9)
    seen.clear()
    walt_upsample(model, lows, [5, 6], level=0.0, steps=1)
    assert torch.equal(seen[0][1]["low"], patches)


def test_a_cascade_is_its_stages_one_after_another() -> None:
    stages = [tiny(super_resolution=True), randomise(tiny(super_resolution=True, extent=(5, 8, 8)), 1)]
    low = [torch.randn(2, 2, 1, 1, **F64)]
    made = walt_cascade(stages, low, [5], steps=2, level=0.2)
    once = walt_upsample(stages[0], low, [5], steps=2, level=0.2)
    twice = walt_upsample(stages[1], once, further_seeds([5], 1), steps=2, level=0.2)
    assert made[0].shape == (2, 2, 4, 4) and torch.equal(made[0], twice[0])


def test_a_stage_of_the_preset_doubles_the_base_grid() -> None:
    """From 16×16 to 32×32 cells; windows divide these, so that what is below one quadrant reaches no other."""
    preset = walt_l(super_resolution=True, extent=(5, 32, 32))
    small = {"dim": 8, "depth": 2, "heads": 1, "mlp_dim": 8, "latent_channels": 2, "frequencies": 8}
    stage = randomise(Walt(dataclasses.replace(preset, **small)))
    low = torch.randn(2, 1, 16, 16)
    other = low.clone()
    other[..., 8:, :8] += 1
    (before,), (after,) = (walt_upsample(stage, [each], [3], steps=1) for each in (low, other))
    assert before.shape == (2, 1, 32, 32) and before.isfinite().all()
    changed = ~torch.isclose(before, after, rtol=1e-4, atol=1e-5)
    assert changed[..., 16:, :16].any()
    changed[..., 16:, :16] = False
    assert not changed.any()
    base = randomise(Walt(dataclasses.replace(walt_l(super_resolution=True), **small)))
    with pytest.raises(ValueError, match=r"outside extent=\(5, 16, 16\)"):
        walt_upsample(base, [low], [3], steps=1)


def test_upsampling_repeats_positions() -> None:
    low = torch.randn(2, 2, 2, 3)
    high = upsampled(low, 3)
    assert high.shape == (2, 2, 6, 9)
    assert all(torch.equal(high[:, :, i::3, j::3], low) for i in range(3) for j in range(3))


@pytest.mark.parametrize("config", [{}, {"self_conditioning": False}])
def test_the_loss_is_the_processes(config: dict[str, Any]) -> None:
    """By the same draws in plain steps; where the estimate is shown it was made without gradients."""
    model, x0 = tiny(frame_prediction=True, super_resolution=True, **config), torch.randn(24, 4, **F64)
    low = torch.randn(24, 4, **F64)
    shares = {"frame_prediction": 0.5, "self_conditioning": 0.5, "most_noise": 0.4}
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        loss = walt_loss(model, x0, LAYOUT, torch.Generator().manual_seed(seed), low=low, **shares)
        index, process = LAYOUT.on("cpu"), walt_process()
        chosen = torch.rand(2, generator=draw) < 0.5
        some, two = torch.rand(2, generator=draw) < 0.5, torch.rand(2, generator=draw) < 0.5
        given = int(some[0]) * (1 + int(two[0]))  # of the video's three frames; of the image none
        known = torch.zeros(24, 5, **F64)
        known[: given * 4] = 1
        known[:, :4] *= x0
        levels = 0.4 * torch.rand(2, generator=draw).double()
        low_t = index.rows(levels, "sample")
        noisy_low = process.noise(low, torch.randn(24, 4, generator=draw).double(), low_t)
        t = index.rows(process.draw_times((2,), draw, dtype=torch.float64), "sample")
        noise = torch.randn(24, 4, generator=draw).double()
        x = process.noise(x0, noise, t)
        inputs = {"known": known, "low": noisy_low, "noise": levels}
        estimate = torch.zeros_like(x)
        if model.config.self_conditioning:
            with torch.no_grad():
                v = model(x, t, index, **inputs)
            a, s = process.path.alpha(t.expand())[:, None], process.path.sigma(t.expand())[:, None]
            estimate = torch.where(chosen[index.sample][:, None], a * x - s * v, 0)
            inputs["estimate"] = estimate
        want = (model(x, t, index, **inputs) - process.target(x0, noise, t)).square().mean()
        torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-9)
        got_grad, want_grad = (torch.autograd.grad(each, model.embed.weight)[0] for each in (loss, want))
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("self_conditioning", [True, False])
def test_padding_reaches_neither_loss_nor_gradient(self_conditioning: bool) -> None:
    model = tiny(frame_prediction=True, self_conditioning=self_conditioning)
    layout = TokenLayout.packed(GRIDS, capacity=30)
    x0 = torch.full((30, 4), torch.nan, **F64)
    x0[:24] = torch.randn(24, 4, **F64)
    loss = walt_loss(model, x0, layout, torch.Generator().manual_seed(0), frame_prediction=1.0)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_shares_that_do_not_fit_are_named() -> None:
    x0, draw = torch.zeros(24, 4, **F64), torch.Generator()
    with pytest.raises(ValueError, match=r"self_conditioning must lie in \[0, 1\], got 1.5"):
        walt_loss(tiny(), x0, LAYOUT, draw, self_conditioning=1.5)
    with pytest.raises(ValueError, match="frame_prediction=0.5, but the model has frame_prediction=False"):
        walt_loss(tiny(), x0, LAYOUT, draw, frame_prediction=0.5)
    with pytest.raises(ValueError, match="frame_prediction=False: the model is told of no given frames"):
        walt_rollout(tiny(), [torch.zeros(2, 1, 2, 2, **F64)], 5, [0])
    with pytest.raises(ValueError, match="super_resolution=False: the model takes no lower resolution"):
        walt_upsample(tiny(), [torch.zeros(2, 1, 2, 2, **F64)], [0])
    with pytest.raises(ValueError, match=r"level must lie in \[0, 1\], got 2.0"):
        walt_upsample(tiny(super_resolution=True), [torch.zeros(2, 1, 2, 2, **F64)], [0], level=2.0)


@pytest.mark.graph
@pytest.mark.parametrize("scale", [1.5, 2.0, 0, -1, True, "2"])
def test_a_scale_is_a_positive_whole_number(scale: Any) -> None:
    with pytest.raises(ValueError, match=f"scale must be a positive whole number, got {scale!r}"):
        walt_upsample(tiny(super_resolution=True), [torch.zeros(2, 1, 2, 2, **F64)], [0], scale=scale, steps=1)


def test_guidance_away_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance=3.0, but no labels, text or known are given"):
        walt_sample(tiny(), LAYOUT, [0, 1, 2], steps=1, guidance=3.0)
