"""``tubelet train`` on small made clips: mistakes are one line; a stopped run that goes on ends where it would have."""

import argparse
import json
import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from tubelet import hub
from tubelet.cli import main, train
from tubelet.data import write_video
from tubelet.demo.build import Plan
from tubelet.recipe import Recipe
from tubelet.training import Interrupted, loop


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two clips of 5 and one of 1 frame, with captions."""
    rows = []
    for name, frames in (("a.gif", 5), ("b.gif", 6), ("c.png", 1)):
        write_video(tmp_path / "clips" / name, torch.rand(1, frames, 16, 24) * 2 - 1)
        rows.append(json.dumps({"file": name, "caption": f"a {name[0]}"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    return tmp_path


def run(folder: Path, *more: object, captions: str = "captions.jsonl", clips: str = "clips") -> int:
    fixed = ("--clips", folder / clips, "--captions", folder / captions, "--frames", "5", "--gray", "--windows", "2")
    try:
        return main(["train", *map(str, (*fixed, "--size", "16,24", "--out", folder / "run", *more))])
    except SystemExit as stop:
        return int(stop.code or 0)


def measured(recipe, *rest, **more):
    """Calibration without a clock: three steps of each stage."""
    return replace(recipe, vae_steps=3, steps=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "captions.jsonl:1"),
        ('{"file": "a.gif"}', "missing 'caption'"),
        (
            '{"file": "a.gif", "caption": "a"}',
            "have no caption: b.gif, c.png (give each a line in the file of --captions",
        ),
    ],
)
def test_bad_captions_are_one_line(folder, capsys, text, says) -> None:
    (folder / "captions.jsonl").write_text(text)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (folder / "run").exists()


def test_missing_things_are_named(folder, capsys) -> None:
    (folder / "none").mkdir()
    for more, other, says in (
        ((), {"captions": "no.jsonl"}, "no.jsonl"),
        ((), {"clips": "nowhere"}, "nowhere"),
        (("--resume",), {}, "there is no run in"),
    ):
        assert run(folder, *more, **other) == 2
        assert says in (error := capsys.readouterr().err), error
        assert "Traceback" not in error
    assert run(folder, clips="captions.jsonl") == 2
    assert "--clips must be a folder" in capsys.readouterr().err
    assert run(folder, clips="none") == 2
    *skipped, error = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in skipped] == [
        ["tubelet", f"skipped {name}"] for name in ("a.gif", "b.gif", "c.png")
    ]
    assert "does not exist" in skipped[0]
    assert "no usable clips" in error


def test_a_damaged_clip_is_one_clean_line(folder, capsys) -> None:
    (folder / "clips" / "d.mp4").write_bytes(b"no video")
    with mock.patch("tubelet.demo.build.prepare", side_effect=ValueError("far enough")):
        assert run(folder) == 2
    skipped, end = capsys.readouterr().err.splitlines()
    assert skipped.startswith("tubelet: skipped d.mp4: ")
    assert "Warning" not in skipped
    assert end == "tubelet: far enough"


@pytest.mark.parametrize("where", ["tubelet.recipe.encode_clips", "tubelet.demo.pictures.loss_curves"])
def test_control_c_outside_the_steps_is_resumable_too(folder, capsys, where: str) -> None:
    def stop(*rest: object) -> None:
        raise KeyboardInterrupt

    plan = Plan(recipe=Recipe(vae_steps=1, steps=1), clips=3)
    with mock.patch("tubelet.demo.build.prepare", return_value=plan), mock.patch(where, stop):
        assert run(folder) == 130
    assert capsys.readouterr().err == "\ntubelet: stopped; --resume goes on\n"


def test_a_stopped_run_goes_on_to_the_same_model(folder, capsys) -> None:
    """Ctrl-C in the denoiser's second step; the resumed run's weights equal the unbroken run's to the bit."""
    with mock.patch("tubelet.recipe.calibrated", measured):
        assert run(folder, "--seed", "3") == 0
        whole = hub.load_bundle(folder / "run" / "model.safetensors")
        (folder / "run").rename(folder / "whole")
        original = loop.History.add

        def stop(self, step, record) -> None:
            original(self, step, record)
            if step == 1 and "tokens" in record:
                signal.raise_signal(signal.SIGINT)

        with mock.patch.object(loop.History, "add", stop):
            assert run(folder, "--seed", "3") == 130
        assert str(Interrupted(2)) in capsys.readouterr().err
        assert run(folder, "--seed", "3") == 2
        assert "go on with --resume" in capsys.readouterr().err
        assert run(folder, "--seed", "4", "--resume") == 2
        assert "begun with --seed 3, got --seed 4" in capsys.readouterr().err
        assert run(folder, "--seed", "3", "--fps", "5", "--resume") == 2
        assert "begun with no --fps, got --fps 5.0" in capsys.readouterr().err
        assert run(folder, "--seed", "3", "--size", "16,16", "--resume") == 2
        assert "begun with --size 16,24, got --size 16,16" in capsys.readouterr().err
        assert run(folder, "--seed", "3", "--resume") == 0
    resumed = hub.load_bundle(folder / "run" / "model.safetensors")
    for name, part in whole.items():
        for key, value in part.state_dict().items():
            assert torch.equal(value, resumed[name].state_dict()[key]), f"{name}.{key}"


def test_captions_of_joined_words_fit_the_encoder() -> None:
    """Words are counted as the tokenizer cuts them, not by spaces."""
    caption = "one.two.three.four.five.six.seven.eight.nine.ten"
    model = train._build([caption], channels=1, seed=0)
    assert model.text([caption]).lengths == (10,)


def test_batches_are_of_one_shape_and_a_function_of_the_step() -> None:
    videos = [torch.full((1, t, 16, 16), float(i)) for i, t in enumerate((1, 5, 5, 1))]
    batch = train._batches(videos, seed=1)
    again = train._batches(videos, seed=1)
    shapes = set()
    for step in range(20):
        made = batch(step)
        assert torch.equal(made, again(step))
        assert all(any(torch.equal(clip, video) for video in videos) for clip in made)
        shapes.add(made.shape[2])
    assert shapes == {1, 5}
    assert len({batch(step).sum().item() for step in range(20)}) > 5


def test_add_needs_the_folder_and_the_captions(capsys) -> None:
    parser = argparse.ArgumentParser()
    train.add(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["train"])
    assert "--clips, --captions" in capsys.readouterr().err
