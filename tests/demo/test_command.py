"""The demo from start to end, made short: every promised file and number is there."""

import json

import pytest
import torch

from tubelet import hub
from tubelet.demo import command
from tubelet.demo.build import Plan, prepare
from tubelet.demo.evaluate import BARS, verdicts
from tubelet.recipe import Recipe


@pytest.fixture
def short(monkeypatch) -> None:
    """Few samples, and a judge of a few steps."""
    monkeypatch.setattr(command, "_SAMPLES", 64)
    monkeypatch.setattr(command, "train_judge", lambda seed: _judge(seed))


def _judge(seed: int):
    from tubelet.demo.judge import train_judge

    return train_judge(seed, steps=5)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_demo_leaves_pictures_checkpoints_and_metrics(tmp_path) -> None:
    metrics = command.live_and_shipped(tmp_path, minutes=0.1, seed=0, resume=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["bars"] == metrics["bars"]
    assert set(metrics["bars"]) == set(BARS)
    assert metrics["bars"]["image_to_video.given_frame_exact"]["passes"]
    assert metrics["bars"]["autoencoder.psnr_db"]["passes"]
    assert len(metrics["sizes"]) >= 4
    assert any(size[0] == 1 for size in metrics["sizes"])
    for part in (
        "live/loss.png",
        "live/checkpoint.safetensors",
        "live/reconstructions.png",
        "full/reconstructions.png",
    ):
        assert (tmp_path / part).stat().st_size > 0
    for folder in ("live/samples", "full/samples", "full/image-to-video"):
        suffixes = {path.suffix for path in (tmp_path / folder).iterdir()}
        assert {".mp4", ".gif", ".png"} == suffixes or {".mp4", ".gif"} <= suffixes
        assert (tmp_path / folder / "contact-sheet.png").exists()
    assert set(hub.load_bundle(tmp_path / "live" / "checkpoint.safetensors")) == {"vae", "text", "denoiser"}


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_full_leaves_the_checkpoint_and_its_record(tmp_path) -> None:
    plan = Plan(recipe=Recipe(vae_steps=2, steps=2, budget=512), clips=64)
    command.full(tmp_path, seed=3, resume=False, plan=plan)
    record = json.loads((tmp_path / "full" / "drifting-digits.json").read_text())
    assert record["command"] == "tubelet demo --full --seed 3"
    assert record["plan"]["recipe"]["seed"] == 3
    assert [len(losses) for losses in record["first_losses"].values()] == [2, 2]
    assert set(record["metrics"]["bars"]) == {name for name in BARS if not name.startswith("live")}
    models = hub.load_bundle(tmp_path / "full" / "drifting-digits.safetensors")
    again = prepare(tmp_path / "full", False, lambda: plan, done="drifting-digits.json")
    assert again == plan, "a finished run may be replaced"
    assert {p.dtype for p in models["denoiser"].parameters()} == {torch.bfloat16}


def test_a_resumed_demo_keeps_the_seed_it_began_with(tmp_path, monkeypatch) -> None:
    """Without ``--seed`` a resumed run is judged and recorded under its own seed, not the default."""
    Plan(recipe=Recipe(vae_steps=1, steps=1, seed=5), clips=8).save(tmp_path / "live" / "plan.json")
    seen: list[int] = []
    monkeypatch.setattr(command, "_live", lambda folder, plan: seen.append(plan.seed) or {})
    monkeypatch.setattr(command, "_judged", lambda model, folder, seed: seen.append(seed) or {})
    command.live_and_shipped(tmp_path, minutes=1.0, seed=0, resume=True)
    assert seen == [5, 5]
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == 5


def test_a_finished_full_run_is_not_taken_for_an_interrupted_one(tmp_path, monkeypatch) -> None:
    plan = Plan(recipe=Recipe(vae_steps=1, steps=1, budget=512), clips=16)
    monkeypatch.setattr(command, "_judged", lambda model, folder, seed: {})
    for _ in range(2):
        command.full(tmp_path, seed=0, resume=False, plan=plan)


def test_verdicts_know_both_sides() -> None:
    found = verdicts({"live": {"padding_fraction": 0.03}, "samples": {"diversity": 0.7}})
    assert not found["live.padding_fraction"]["passes"]
    assert found["samples.diversity"]["passes"]
    assert len(found) == 2
