"""``tubelet demo`` passes its arguments on, and leaves the processor's mode as it was."""

import argparse
from pathlib import Path

import pytest
import torch

from tubelet.cli import demo, main
from tubelet.demo import command
from tubelet.training import Interrupted


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    made: list[tuple] = []
    monkeypatch.setattr(command, "full", lambda *values: made.append(("full", *values)))
    monkeypatch.setattr(command, "judged", lambda *values: made.append(("judged", *values)))
    monkeypatch.setattr(command, "tasks", lambda *values: made.append(("tasks", *values)))
    monkeypatch.setattr(command, "live_and_shipped", lambda *values: made.append(("live", *values)))
    return made


def test_defaults_and_options_reach_the_demo(calls, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b.safetensors").write_text("")
    assert main(["demo"]) == 0
    assert main(["demo", "--minutes", "0.5", "--seed", "3", "--out", "there", "--resume"]) == 0
    assert main(["demo", "--full", "--seed", "4", "--out", "there"]) == 0
    assert main(["demo", "--judge"]) == 0
    assert main(["demo", "--judge", "a b.safetensors", "--seed", "5", "--out", "there"]) == 0
    assert main(["demo", "--tasks"]) == 0
    assert main(["demo", "--tasks", "a b.safetensors", "--seed", "6", "--out", "there"]) == 0
    assert calls == [
        ("live", Path("runs/demo"), 2.0, 0, False),
        ("live", Path("there"), 0.5, 3, True),
        ("full", Path("there"), 4, False),
        ("judged", Path("runs/demo"), 0, None),
        ("judged", Path("there"), 5, Path("a b.safetensors")),
        ("tasks", Path("runs/demo"), 0, None),
        ("tasks", Path("there"), 6, Path("a b.safetensors")),
    ]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--full", "--minutes", "3"), "--minutes is of the live run, which --full leaves out"),
        (("--judge", "--minutes", "3"), "--minutes is of the live run, which --judge leaves out"),
        (("--judge", "--resume"), "--judge trains nothing"),
        (("--tasks", "--minutes", "3"), "--minutes is of the live run, which --tasks leaves out"),
        (("--tasks", "--resume"), "--tasks trains nothing"),
        (("--tasks", "--judge"), "not allowed with"),
        (("--judge", "--full"), "not allowed with"),
        (("--judge", "none.safetensors"), "--judge: there is no none.safetensors"),
        (("--seed", str(2**63)), "--seed: expected a whole number"),
        (("--out", "/dev/null/x"), "--out: /dev/null is a file"),
    ],
)
def test_options_that_cannot_be_are_one_line(calls, capsys, argv, says) -> None:
    try:
        status = main(["demo", *argv])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert (status, captured.err.count("\n"), captured.out, calls) == (2, 1, "", [])
    assert says in captured.err


def test_resuming_nothing_says_only_that(tmp_path, capsys) -> None:
    assert main(["demo", "--resume", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"tubelet: --resume: there is no run in {tmp_path / 'live'}\n"


@pytest.mark.parametrize("fails", [False, True])
def test_denormals_are_flushed_inside_only(monkeypatch, fails: bool) -> None:
    seen: list[float] = []

    def live(*values: object) -> None:
        seen.append(torch.tensor(1e-40).mul(1.0).item())
        if fails:
            raise ValueError("no")

    monkeypatch.setattr(command, "live_and_shipped", live)
    assert main(["demo"]) == (2 if fails else 0)
    assert seen == [0.0]
    assert torch.tensor(1e-40).mul(1.0).item() > 0


@pytest.mark.parametrize("text", ["", "{}", '{"recipe": {"steps": 0}, "clips": 1}', "[]"])
def test_a_damaged_plan_is_one_line(tmp_path, capsys, text: str) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "plan.json").write_text(text)
    assert main(["demo", "--resume", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "plan.json is no plan of a run" in error
    assert error.count("\n") == 1


def test_control_c_exits_with_130_and_says_how_to_go_on(monkeypatch, capsys) -> None:
    def stop(*values: object) -> None:
        raise Interrupted(7)

    monkeypatch.setattr(command, "live_and_shipped", stop)
    assert main(["demo"]) == 130
    error = capsys.readouterr().err
    assert "stopped after step 7" in error
    assert "--resume" in error
    assert "Traceback" not in error


def test_add_needs_no_more_than_a_parser() -> None:
    parser = argparse.ArgumentParser()
    demo.add(parser.add_subparsers())
    assert parser.parse_args(["demo"]).run is demo.run
