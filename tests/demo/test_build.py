"""The demo's plans, models and data: functions of the seed, stored exactly, and never overwritten by accident."""

import io
import signal
from pathlib import Path

import pytest
import torch

from tubelet.demo import build as module
from tubelet.demo import digits
from tubelet.demo.build import FULL, Plan, build, latents_of, live_plan, prepare, run, vae_batch
from tubelet.pipeline import encode_videos
from tubelet.recipe import Recipe
from tubelet.training import Progress

TINY = Plan(recipe=Recipe(vae_steps=2, steps=2, budget=256, bf16=False), clips=24)


def quiet(title: str):
    return lambda steps, start: Progress(steps, start=start, stream=io.StringIO())


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_plan_comes_back_from_its_file(tmp_path) -> None:
    plan = Plan(recipe=Recipe(vae_steps=7, steps=9, vae_lr=1 / 3, seed=5), clips=11)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.with_seed(8).seed == 8
    assert plan.with_seed(8).with_seed(5) == plan
    (tmp_path / "plan.json").write_text('{"clips": 3}')
    with pytest.raises(ValueError, match=r"plan\.json is no plan"):
        Plan.load(tmp_path / "plan.json")


def test_models_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    before = torch.get_rng_state()
    one = state(build(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    again, other = state(build(3)), state(build(4))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_every_prompt_is_known_to_the_text_encoder() -> None:
    assert all(length >= 2 for length in build(0).text(sorted(digits.PROMPTS)).lengths)


def test_the_autoencoder_sees_fresh_training_clips_of_one_size() -> None:
    batches = [vae_batch(0, step) for step in range(12)]
    assert torch.equal(batches[5], vae_batch(0, 5))
    assert not any(torch.equal(batches[5], vae_batch(seed, 5)) for seed in (1, 2))
    sizes = {size for size, _ in digits.SIZES}
    assert all(tuple(batch.shape[2:]) in sizes for batch in batches)
    assert len({tuple(batch.shape[2:]) for batch in batches}) > 3
    assert all(batch.numel() <= 110_000 or len(batch) == 4 for batch in batches)


def test_latents_in_chunks_are_those_of_each_clip(monkeypatch) -> None:
    model, ticks = build(0), []
    monkeypatch.setattr(module, "_CHUNK", 3)
    found = latents_of(model, "held_out", 2, 7, ticks.append)
    assert ticks == [3, 6, 7]
    clips = digits.batch("held_out", 2, 0, 7)
    assert found.captions == tuple(clip.caption for clip in clips)
    for latent, clip in zip(found.latents, clips, strict=True):
        torch.testing.assert_close(latent, encode_videos(model.vae, [clip.video])[0], rtol=1e-4, atol=1e-5)


def test_the_live_plan_grows_with_the_minutes(monkeypatch) -> None:
    def measured(recipe, minutes, *rest):
        return Recipe(seed=recipe.seed, vae_steps=round(100 * minutes), steps=round(200 * minutes))

    monkeypatch.setattr(module, "calibrated", measured)
    plans = [live_plan(minutes, 6) for minutes in (0.1, 2.0)]
    assert [(plan.recipe.vae_steps, plan.recipe.steps, plan.clips) for plan in plans] == [
        (10, 20, 256),
        (200, 400, 3000),
    ]
    assert plans[0].seed == 6


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path) -> None:
    """Stopped after the autoencoder's first step and after the denoiser's: equal to the bit to the unbroken run."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = build(0)
    histories = run(whole, TINY, tmp_path / "whole", quiet)

    class Stop(Progress):
        def update(self, done, record) -> None:
            if "loss" in record:
                signal.raise_signal(signal.SIGINT)

    def stopping(stage: str):
        def show(title: str):
            kind = Stop if title == stage else Progress
            return lambda steps, start: kind(steps, start=start, stream=io.StringIO())

        return show

    for stage in ("autoencoder", "denoiser"):
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
            run(build(0), TINY, tmp_path / "parts", stopping(stage))
    torch.manual_seed(5)
    resumed = build(0)
    again = run(resumed, TINY, tmp_path / "parts", quiet)
    assert {name: h["loss"] for name, h in again.items()} == {name: h["loss"] for name, h in histories.items()}
    found = state(resumed)
    assert all(torch.equal(value, found[name]) for name, value in state(whole).items())


def test_prepare_keeps_what_is_unfinished(tmp_path) -> None:
    def never() -> Plan:
        raise AssertionError("the plan of a run that exists is not made again")

    folder: Path = tmp_path / "run"
    with pytest.raises(ValueError, match=f"there is no run in {folder}"):
        prepare(folder, True, never)
    assert prepare(folder, False, lambda: TINY) == TINY
    assert prepare(folder, True, never) == TINY
    with pytest.raises(ValueError, match=f"{folder} holds an interrupted run"):
        prepare(folder, False, never)
    (folder / "metrics.json").write_text("{}")
    (folder / "denoiser.run.safetensors").write_text("old")
    assert prepare(folder, False, lambda: FULL) == FULL
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json"]
