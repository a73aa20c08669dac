"""``tubelet sample``: the right number of pixels and frames in every format, and a given image kept to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet import hub
from tubelet.cli import main
from tubelet.cli.sample import _worded
from tubelet.data import read_video, write_video
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.pipeline import TextToVideo, generate
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.training import save_checkpoint
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A tiny model of random weights."""
    torch.manual_seed(0)
    vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1)))
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=1, heads=2, text_dim=8))
    parts = TextToVideo(vae, WordEncoder(WordEncoderConfig(words=("a", "two"), dim=8)), dit).parts()
    return hub.save_bundle(tmp_path_factory.mktemp("tiny") / "model.safetensors", parts)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def sample(bundle: Path, out: Path, *more: object) -> int:
    argv = ["sample", "a two", "--model", bundle, "--out", out, "--steps", "2", *more]
    return main([str(part) for part in argv])


def test_the_file_holds_what_generate_gives(bundle, tmp_path) -> None:
    """A PNG of one frame is lossless: its levels are those of the library's own sample."""
    assert sample(bundle, tmp_path / "a.png", "--size", "1,16,24", "--scale", "3", "--seed", "4") == 0
    model = TextToVideo.of(hub.load_bundle(bundle)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        (video,) = generate(model, ["a two"], [(1, 16, 24)], [4], steps=2)
    levels = ((video[0, 0] + 1) * 127.5).round().byte().repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert np.array_equal(picture(tmp_path / "a.png"), levels.numpy())


def test_a_sheet_shows_every_frame(bundle, tmp_path) -> None:
    assert sample(bundle, tmp_path / "a.png", "--size", "5,16,24", "--scale", "1") == 0
    assert picture(tmp_path / "a.png").shape == (16, 5 * 24 + 4)  # one pixel between two frames


def test_a_lossless_file_begins_with_the_given_image(bundle, tmp_path) -> None:
    levels = torch.randint(0, 256, (1, 1, 16, 24))
    write_video(tmp_path / "first.png", levels / 127.5 - 1)
    options = ("--size", "5,16,24", "--scale", "1", "--image", tmp_path / "first.png")
    assert sample(bundle, tmp_path / "a.webp", *options) == 0
    with Image.open(tmp_path / "a.webp") as written:
        assert written.n_frames == 5
        assert np.array_equal(np.asarray(written.convert("L")), levels[0, 0].byte().numpy())
    assert sample(bundle, tmp_path / "a.gif", *options) == 0
    assert torch.equal(((read_video(tmp_path / "a.gif", gray=True)[:, 0] + 1) * 127.5).round().long(), levels[:, 0])


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 1, 20, 60), "cut to the middle 20x30 of 20x60, scaled to 16x24, turned grey"),
        ((1, 1, 32, 48), "scaled to 16x24"),
        ((1, 1, 30, 24), "cut to the middle 16x24 of 30x24"),
        ((1, 1, 16, 24), None),
    ],
)
def test_what_was_done_to_an_image_is_said(bundle, tmp_path, capsys, shape, says) -> None:
    write_video(tmp_path / "an image.png", torch.rand(*shape) * 2 - 1)
    assert sample(bundle, tmp_path / "a.gif", "--size", "5,16,24", "--image", tmp_path / "an image.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == ([] if says is None else [f"{tmp_path / 'an image.png'}: {says}"])


def test_an_is_read_as_a_where_the_model_knows_only_that(bundle, tmp_path, capsys) -> None:
    assert (
        main(["sample", "an two", "--model", str(bundle), "--size", "1,16,16", "--out", str(tmp_path / "an.png")]) == 0
    )
    assert main(["sample", "a two", "--model", str(bundle), "--size", "1,16,16", "--out", str(tmp_path / "a.png")]) == 0
    assert np.array_equal(picture(tmp_path / "an.png"), picture(tmp_path / "a.png"))
    assert "'an two'" in capsys.readouterr().out
    assert _worded("an owl and a cat", ("a", "an")) == "an owl and a cat"
    assert _worded("an owl", ("owl",)) == "an owl"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--size", "5,16,16", "--image", "."), "not a file"),
        (("--size", "5,16,16", "--image", "junk"), "junk"),
        (("--size", "5,16,16", "--image", "none.png"), "--image: there is no none.png"),
        (("--size", "1,16,16", "--image", "junk"), "--image is the first frame, which leaves nothing to make"),
        (("--size", "1,16,16", "--model", "run.safetensors"), "run.safetensors is the state of a training"),
        (("--size", "1,16,16", "--model", "."), "is a folder: name the checkpoint in it"),
        (("--size", "1,16,16", "--seed", str(2**63)), "--seed: expected a whole number of at least 0 and at most 2^62"),
        (("--size", "1,16,16", "--scale", "999999"), "more memory than this machine has"),
        (("--size", "1,16,16", "--fps", "1e9"), "--fps: "),
        (("--size", "1,16,16", "--out", "a"), "--out: a file must end in .mp4, .gif, .webp, .png, got 'a'"),
        (("--size", "1,16,16", "--model", "junk"), "no safetensors file"),
        (("--size", "1,16,16", "--out", "junk/a.png"), "junk"),
        (("--size", "1,16,16", "--seed", "-1"), "'-1'"),
        (("--size", "1,16,16", "--guidance", "0"), "'0'"),
        (("--size", "1,16,16", "--out", "a.gif", "--fps", "60"), "at most 50"),
    ],
)
def test_mistakes_are_one_line(bundle, tmp_path, monkeypatch, capsys, more, says) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk").write_bytes(b"not what it should be")
    save_checkpoint(tmp_path / "run.safetensors", {"step": 1})
    try:
        status = sample(bundle, tmp_path / "a.png", *more)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert says in error
    assert not (tmp_path / "a.png").exists()


def test_an_existing_file_is_replaced(bundle, tmp_path) -> None:
    (tmp_path / "a.png").write_text("old")
    assert sample(bundle, tmp_path / "a.png", "--size", "1,16,16") == 0
    assert picture(tmp_path / "a.png").shape == (96, 96)
