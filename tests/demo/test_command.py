"""The demo from start to end, made short: every promised file and number is there."""

import hashlib
import json

import pytest
import torch

from tubelet import hub
from tubelet.demo import command
from tubelet.demo.build import Plan, build, prepare
from tubelet.demo.evaluate import BARS, judged_clips, verdicts
from tubelet.demo.gallery import image_to_video
from tubelet.recipe import Recipe
from tubelet.text import WordEncoder, WordEncoderConfig


@pytest.fixture
def short(monkeypatch) -> None:
    """Few samples, fewer continued ones, and a judge of a few steps."""
    monkeypatch.setattr(command, "_MOVING", 50)
    monkeypatch.setattr(command, "image_to_video", lambda model, seed: image_to_video(model, seed, count=8))
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
    metrics = command.full(tmp_path, seed=3, resume=False, plan=plan)
    record = json.loads((tmp_path / "full" / "drifting-digits.json").read_text())
    assert record["command"] == "tubelet demo --full --seed 3"
    assert record["plan"]["recipe"]["seed"] == 3
    assert [len(losses) for losses in record["first_losses"].values()] == [2, 2]
    assert set(record["metrics"]["bars"]) == {name for name in BARS if not name.startswith("live")}
    models = hub.load_bundle(tmp_path / "full" / "drifting-digits.safetensors")
    again = prepare(tmp_path / "full", False, lambda: plan, done="drifting-digits.json")
    assert again == plan, "a finished run may be replaced"
    assert {p.dtype for p in models["denoiser"].parameters()} == {torch.bfloat16}
    file = tmp_path / "full" / "drifting-digits.safetensors"
    assert record["measured"]["command"] == "tubelet demo --judge drifting-digits.safetensors --seed 3"
    assert record["measured"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    again = command.judged(tmp_path, 3, file)
    for part in ("autoencoder", "samples", "image_to_video"):
        assert again[part] == metrics[part], f"the record's {part} are not those of the file"
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text())["samples"] == again["samples"]


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


def test_at_least_500_samples_for_every_bar() -> None:
    clips = judged_clips(0, command._MOVING)
    assert len(clips) >= sum(clip.direction is not None for clip in clips) >= 500


def test_what_is_full_is_measured_on_the_file_it_left(tmp_path, monkeypatch) -> None:
    """The judged weights are those of the file, rounded to bfloat16, not those in memory."""
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(command, "_judged", lambda model, folder, seed: seen.append(model) or {})
    plan = Plan(recipe=Recipe(vae_steps=1, steps=1, budget=512), clips=16)
    command.full(tmp_path, seed=0, resume=False, plan=plan)
    stored = hub.load_bundle(tmp_path / "full" / "drifting-digits.safetensors", dtype=torch.float32)["denoiser"]
    found = seen[0].denoiser.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in stored.state_dict().items())
    assert all(torch.equal(value, value.bfloat16().float()) for value in found.values())


def test_judging_says_how_near_samples_come_and_leaves_the_live_run_alone(tmp_path, monkeypatch, capsys) -> None:
    copied = {"beyond_median": 0.59, "beyond_fifth_percentile": 0.127}
    monkeypatch.setattr(command, "_judged", lambda model, folder, seed: {"samples": {"memorised": copied}})
    (tmp_path / "metrics.json").write_text("live")
    assert command.judged(tmp_path, 4)["seed"] == 4
    out = capsys.readouterr().out
    assert "59 % of samples, 50 % of held-out clips" in out
    assert "13 % of samples, 5 % of held-out clips" in out
    assert (tmp_path / "metrics.json").read_text() == "live"
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text())["samples"]["memorised"] == copied


def test_a_model_of_another_world_is_not_judged(tmp_path) -> None:
    model = build(0)
    model.text = WordEncoder(WordEncoderConfig(words=("a", "bike"), dim=64))
    hub.save_bundle(tmp_path / "bike.safetensors", model.parts())
    with pytest.raises(ValueError, match=r"the model of .*bike\.safetensors does not know down, drifting"):
        command.judged(tmp_path, 0, tmp_path / "bike.safetensors")
    assert not (tmp_path / "judged").exists()


def test_nothing_is_said_before_a_run_that_cannot_be(tmp_path, capsys) -> None:
    for call in (lambda: command.live_and_shipped(tmp_path, 1.0, 0, True), lambda: command.full(tmp_path, 0, True)):
        with pytest.raises(ValueError, match="there is no run in"):
            call()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["_live", "_judged"])
def test_control_c_in_either_part_is_resumable(tmp_path, monkeypatch, part: str) -> None:
    def stop(*rest: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "live_plan", lambda minutes, seed: Plan(recipe=Recipe(vae_steps=1, steps=1), clips=8))
    monkeypatch.setattr(command, "_live", lambda folder, plan: {})
    monkeypatch.setattr(command, part, stop)
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        command.live_and_shipped(tmp_path, minutes=1.0, seed=0, resume=False)
    monkeypatch.setattr(command, part, lambda *rest: {})
    monkeypatch.setattr(command, "_judged", lambda *rest: {})
    command.live_and_shipped(tmp_path, minutes=1.0, seed=0, resume=True)
    assert (tmp_path / "metrics.json").exists()
