"""The command that converts checkpoints: every option arrives, and a mistake is one line that leaves nothing behind."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet import hub, models
from tubelet.cli import main
from tubelet.cli.convert import _FORMS
from tubelet.hub.conversion import FORMS
from tubelet.models import WanConfig, WanTransformer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: Any) -> Path:
    model = WanTransformer(WanConfig(dim=128, depth=1, heads=1, mlp_dim=32))
    return hub.save(model, tmp_path_factory.mktemp("convert") / "ours")


def run(*argv: Any) -> int:
    try:
        return main(["convert", *map(str, argv)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_there_and_back_with_every_option(ours: Path, tmp_path: Path, capsys: Any) -> None:
    theirs, file = tmp_path / "wan" / "theirs", "diffusion_pytorch_model.safetensors"
    assert run("--from", "tubelet", "--to", "original", ours, theirs) == 0
    assert capsys.readouterr() == (f"{theirs}: config.json and 1 file of weights, 3.4 MB\n", "")
    assert run("--from", "original", "--family", "wan", "--to", "diffusers", theirs / file, tmp_path / "a") == 0
    options = ("--dtype", "bfloat16", "--max-shard-size", "200KB", "--subfolder", "a")
    assert run("--from", "diffusers", "--to", "tubelet", *options, tmp_path, tmp_path / "b") == 0
    assert "config.json and 6 files of weights" in capsys.readouterr().out
    first, last = hub.load(ours, dtype=torch.bfloat16), hub.load(tmp_path / "b")
    assert last.embed.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    pairs = zip(first.parameters(), last.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_terminal_is_told_how_far_it_is(ours: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tubelet.training.progress._bar", lambda *rest: None)  # lines, not a drawing
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("--from", "tubelet", "--to", "tubelet", ours, tmp_path / "b") == 0
    total = len(hub.load(ours).state_dict())
    assert f"tensors {total}/{total}" in capsys.readouterr().err


def test_a_preset_says_what_a_file_does_not(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    tiny = models.CosmosConfig(dim=24, depth=1, heads=2, rank=4, text_dim=8)
    model = models.CosmosTransformer(tiny)
    torch.save(hub.to_original(model)[1], tmp_path / "model.pt")
    monkeypatch.setattr(models, "cosmos_1_7b", lambda: tiny)
    source = ("--from", "original", tmp_path / "model.pt")
    assert run(*source, "--preset", "cosmos_1_7b", "--to", "tubelet", tmp_path / "a") == 0
    assert hub.load(tmp_path / "a").config == tiny  # type: ignore[comparison-overlap]
    assert run(*source, "--preset", "cosmos_9b", "--to", "tubelet", tmp_path / "b") == 2
    assert "no preset is called cosmos_9b; there are " in capsys.readouterr().err
    assert run(*source, "--preset", "wan_14b", "--to", "tubelet", tmp_path / "b") == 2
    assert "its tensors do not fit WanModel" in capsys.readouterr().err


def test_the_forms_are_the_librarys() -> None:
    assert _FORMS == FORMS  # the command does not import the library before it runs


def test_help_has_an_example(capsys: Any) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "  tubelet convert --from" in out and "examples" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--to", "tubelet", "OURS", "new"), "--from"),
        (("--from", "timm", "--to", "tubelet", "OURS", "new"), "timm"),
        (("--from", "tubelet", "--to", "diffusers", "nowhere", "new"), "nowhere is neither a folder nor"),
        (
            ("--from", "tubelet", "--to", "diffusers", "OURS", "there"),
            "there exists already, and nothing is overwritten",
        ),
        (("--from", "tubelet", "--to", "diffusers", "OURS", "there/file/new"), "file is a file, not a folder"),
        (("--from", "diffusers", "--to", "tubelet", "OURS", "new"), "is a folder of tubelet's own form"),
        (("--from", "original", "--to", "tubelet", "empty", "new"), "WanModel (WanTransformer, family wan)"),
        (("--from", "tubelet", "--to", "tubelet", "--dtype", "int8", "OURS", "new"), "expected one of float32"),
        (("--from", "tubelet", "--to", "tubelet", "--max-shard-size", "2", "OURS", "new"), "such as 500MB"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: tuple[str, ...], says: str, ours: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert run(*(str(ours) if part == "OURS" else part for part in argv)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "there"]
