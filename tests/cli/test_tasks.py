"""``tubelet sample --task``: what the library makes, from files and from the model's own videos, and no option lost."""

from pathlib import Path

import pytest
import torch
from systems import tiny_system

from tubelet import diffusion, hub
from tubelet.cli import main
from tubelet.cli import sample as cli
from tubelet.cli.tasks import NAMES
from tubelet.completion import TASKS, complete, edit, edit_inverted, lengthen, task
from tubelet.data import read_video, write_video
from tubelet.diffusion.tasks import connect
from tubelet.pipeline import TextToVideo, generate


@pytest.fixture(scope="module")
def model() -> TextToVideo:
    return tiny_system()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, model) -> Path:
    return hub.save_bundle(tmp_path_factory.mktemp("tiny") / "model.safetensors", model.parts())


def sample(bundle: Path, out: Path, *more: object) -> int:
    argv = ["sample", "a two", "--model", bundle, "--out", out, "--steps", "2", "--scale", "1", *more]
    return main([str(part) for part in argv])


def levels(video: torch.Tensor) -> torch.Tensor:
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def written(path: Path) -> torch.Tensor:
    return levels(read_video(path, gray=True))


def gif(path: Path, frames: int, seed: int = 0) -> torch.Tensor:
    """A file of random levels, and the video that is in it."""
    video = torch.randint(0, 256, (1, frames, 16, 24), generator=torch.Generator().manual_seed(seed)) / 127.5 - 1
    write_video(path, video)
    return video


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_the_librarys_on_a_video_of_the_prompt(bundle, model, tmp_path, name: str) -> None:
    options = ["--task", name, "--size", "9,16,24", "--seed", "3"]
    options += ["--given", "4"] * (name in ("connect", "long")) + ["--window", "5"] * (name == "long")
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    how = {"steps": 2, "guidance": 2.0}
    with torch.autocast("cpu", torch.bfloat16):
        (source,) = generate(model, ["a two"], [({"long": 5, "loop": 1}.get(name, 9), 16, 24)], [3], **how)
        if name in TASKS:
            known = task(name, source, 9, given={"connect": 4, "loop": 1}.get(name, 5))
            (expected,) = complete(model, ["a two"], [known], [3], **how)
        elif name == "edit":
            (expected,) = edit(model, ["a two"], [source], [3], strength=0.75, **how)
        elif name == "invert":
            (expected,) = edit_inverted(model, ["a two"], [source], ["a two"], **how)
        else:
            (expected,) = lengthen(model, ["a two"], [source[:, :4]], 9, [3], window=5, overlap=4, **how)
    assert torch.equal(written(tmp_path / "a.gif"), levels(expected))


@pytest.mark.parametrize("name", [None, "extend", "long"])
def test_the_solver_is_the_librarys(bundle, model, tmp_path, name: str | None) -> None:
    assert tuple(diffusion.SOLVERS) == cli.SOLVERS
    options = ["--size", "9,16,24", "--seed", "3", "--solver", "unipc"]
    assert sample(bundle, tmp_path / "a.gif", *options, *(["--task", name] if name else [])) == 0
    how = {"steps": 2, "guidance": 2.0, "step": diffusion.UniPC()}
    with torch.autocast("cpu", torch.bfloat16):
        (expected,) = generate(model, ["a two"], [(9, 16, 24)], [3], **how)
        if name == "extend":
            (expected,) = complete(model, ["a two"], [task(name, expected, 9)], [3], **how)
        elif name == "long":
            (expected,) = lengthen(model, ["a two"], [expected[:, :5]], 9, [3], window=9, overlap=5, **how)
    assert torch.equal(written(tmp_path / "a.gif"), levels(expected))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("extend", slice(0, 3)), ("prepend", slice(-3, None)), ("loop", slice(0, 3)), ("long", slice(0, 3))],
)
def test_a_file_is_kept_bit_for_bit_and_may_be_short(bundle, tmp_path, name: str, kept: slice) -> None:
    source = gif(tmp_path / "source.gif", 3)
    options = ("--task", name, "--video", tmp_path / "source.gif", "--given", "3", "--size", "9,16,24")
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    made = written(tmp_path / "a.gif")
    assert made.shape == (1, 9, 16, 24)
    assert torch.equal(made[:, kept], levels(source))
    if name == "loop":
        assert torch.equal(made[:, -1], made[:, 0])


def test_two_files_are_connected_end_to_start(bundle, tmp_path) -> None:
    first, last = gif(tmp_path / "a.gif", 4), gif(tmp_path / "b.gif", 5, seed=1)
    options = ("--task", "connect", "--video", tmp_path / "a.gif", "--video", tmp_path / "b.gif", "--given", "2")
    assert sample(bundle, tmp_path / "c.gif", *options, "--size", "9,16,24") == 0
    expected = connect(first[:, -2:], last[:, :2], 9)
    made = written(tmp_path / "c.gif")
    assert torch.equal(made[:, expected.tokens], levels(expected.video)[:, expected.tokens])


def test_a_text_has_no_source_to_make_first(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tubelet.pipeline.generate", lambda *_, **__: pytest.fail("a source was sampled"))
    assert sample(bundle, tmp_path / "a.gif", "--task", "text", "--size", "5,16,24") == 0


def test_strength_0_gives_the_file(bundle, tmp_path) -> None:
    source = gif(tmp_path / "source.gif", 5)
    options = ("--task", "edit", "--video", tmp_path / "source.gif", "--strength", "0", "--size", "5,16,24")
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    assert torch.equal(written(tmp_path / "a.gif"), levels(source))


def test_an_edit_keeps_the_frames_that_are_asked_for(bundle, tmp_path) -> None:
    source = gif(tmp_path / "source.gif", 9)
    options = ("--task", "edit", "--video", tmp_path / "source.gif", "--strength", "0", "--size", "5,16,24")
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    assert torch.equal(written(tmp_path / "a.gif"), levels(source[:, :5]))


def test_the_source_prompt_is_what_the_model_makes_first(bundle, model, tmp_path, capsys) -> None:
    options = ("--task", "image", "--size", "5,16,24", "--source", "an seven up")
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    assert capsys.readouterr().out.endswith("5 frames of 16x24, seed 0, task image\n")
    with torch.autocast("cpu", torch.bfloat16):
        (source,) = generate(model, ["a seven up"], [(5, 16, 24)], [0], steps=2)
    assert torch.equal(written(tmp_path / "a.gif")[:, 0], levels(source)[:, 0])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--task", "dream"), "invalid choice: 'dream'"),
        (("--solver", "plms"), "invalid choice: 'plms'"),
        (("--task", "invert", "--solver", "ddpm", "--size", "5,16,24"), "a --solver that draws nothing, got ddpm"),
        (("--given", "3"), "--given is of a task: extend, prepend, connect, loop, long; say which with --task"),
        (("--source", "a"), "--source is of a task"),
        (("--task", "extend", "--every", "2"), "--every is not of --task extend, but of interpolate, upsample"),
        (("--task", "text", "--video", "a.gif"), "--video is not of --task text"),
        (("--task", "extend", "--image", "a.gif"), "--image is --task image by itself"),
        (("--task", "extend", "--video", "a.gif", "--video", "a.gif"), "--task extend has one source, got 2 files"),
        (("--task", "edit", "--video", "a.gif", "--source", "a"), "got both for --task edit"),
        (("--task", "invert", "--video", "a.gif"), "--task invert needs a --source"),
        (("--task", "inpaint", "--video", "a.gif"), "first 9 of its source, which has 3"),
        (("--task", "edit", "--video", "a.gif", "--strength", "2"), "expected a number from 0 to 1, got '2'"),
        (("--task", "edit", "--video", "a.gif"), "the source has 3 frames, --size 9,16,24"),
        (("--task", "invert", "--video", "a.gif", "--source", "a"), "the source has 3 frames, --size 9,16,24"),
        (("--task", "connect", "--given", "5"), "clips of 5 and 5 frames do not fit into frames=9"),
        (
            ("--task", "connect", "--video", "a.gif", "--video", "b.gif", "--given", "4"),
            "a.gif has 3 frames, --given 4",
        ),
        (
            ("--task", "connect", "--video", "b.gif", "--video", "a.gif", "--given", "4"),
            "a.gif has 3 frames, --given 4",
        ),
        (("--task", "long", "--video", "a.gif", "--window", "5"), "a.gif has 3 frames, --given 5"),
        (("--task", "long", "--window", "5", "--given", "6"), "the source has 5 frames, --given 6"),
        (("--task", "long", "--given", "9"), "--task long leaves nothing to make in --size 9,16,24"),
        (("--task", "extend", "--given", "9"), "--task extend leaves nothing to make in --size 9,16,24"),
        (("--task", "interpolate", "--every", "1"), "--task interpolate leaves nothing to make in --size 9,16,24"),
        (("--task", "image", "--size", "1,16,24"), "--task image leaves nothing to make in --size 1,16,24"),
        (("--task", "image", "--size", "1,16,24", "--video", "a.gif"), "nothing to make in --size 1,16,24"),
    ],
)
def test_mistakes_are_one_line(bundle, tmp_path, monkeypatch, capsys, more, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    gif(tmp_path / "a.gif", 3)
    gif(tmp_path / "b.gif", 9)
    monkeypatch.setattr("tubelet.pipeline.sample", lambda *_, **__: pytest.fail("something was sampled"))
    try:
        status = sample(bundle, tmp_path / "out.gif", "--size", "9,16,24", *more)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert says in error
    assert not (tmp_path / "out.gif").exists()
