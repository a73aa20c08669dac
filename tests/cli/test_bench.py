"""``tubelet bench``: files and table from real arguments, exit statuses, and one line for every mistake."""

import argparse
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from tubelet.attention import backends
from tubelet.bench import load, registry, save
from tubelet.cli import bench, main

TINY = ("--shapes", "2x3x3/2x8", "--rounds", "4", "--budget", "2")


def run(*argv: object) -> int:
    try:
        return main(["bench", *map(str, argv)])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path) -> None:
    """An empty folder and list of backends, and ceilings that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ADDED", {})
    monkeypatch.setattr(
        "tubelet.bench.session.measure_ceilings",
        lambda plan: {"matmul_tflops": dict.fromkeys(plan.dtypes, 0.05), "matmul_n": {}, "copy_gbps": 10.0},
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A file of a run on this machine."""
    file = tmp_path_factory.mktemp("run") / "run.json"
    assert run("attention", *TINY, "--backends", "sdpa,reference", "--json", file) == 0
    return file


def test_one_run_writes_everything(capsys) -> None:
    what = ("--backward", "--dtype", "float32,float64", "--batch", "1,2", "--backends", "sdpa,auto", "--threads", "1")
    files = ("--json", "run.json", "--csv", "run.csv", "--md", "run.md", "--plot", "run.png")
    assert run("attention", *TINY, *what, *files) == 0
    out, err = capsys.readouterr()
    assert "bench rows 16/16" in err
    assert out == Path("run.md").read_text()
    rows = load("run.json")["rows"]
    assert len(rows) == len(Path("run.csv").read_text().splitlines()) - 1 == 16
    assert {(row["dtype"], row["batch"], row["direction"], row["backend"]) for row in rows} == {
        (dtype, batch, direction, name)
        for dtype in ("float32", "float64")
        for batch in (1, 2)
        for direction in ("forward", "forward+backward")
        for name in ("sdpa", "auto")
    }
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.graph  # flex compiles: without the runtime shape checks
def test_defaults_take_all_backends_and_float32(capsys) -> None:
    assert run("attention", *TINY, "--json", "run.json") == 0
    rows = load("run.json")["rows"]
    assert [row["backend"] for row in rows] == [*backends(), "auto"]
    assert {row["dtype"] for row in rows} == {"float32"}


def test_scale_is_recorded_with_both_shapes(capsys) -> None:
    assert run("attention", "--shapes", "ltx-512", "--scale", "0.1", "--rounds", "3", "--backends", "sdpa",
               "--json", "run.json") == 0  # fmt: skip
    document = load("run.json")
    assert document["settings"]["scale"] == document["rows"][0]["scale"] == 0.1
    assert (document["rows"][0]["asked"], document["rows"][0]["run"]) == ("16x16x24/32x64", "2x2x2/32x64")
    assert "### ltx-512 as 2x2x2/32x64" in capsys.readouterr().out


def test_resume_measures_what_is_missing(capsys) -> None:
    assert run("attention", *TINY, "--backends", "sdpa", "--json", "run.json") == 0
    first = load("run.json")["rows"]
    assert run("attention", *TINY, "--backends", "sdpa", "--json", "run.json") == 2
    assert run("attention", *TINY, "--backends", "sdpa,reference", "--json", "run.json", "--resume") == 0
    assert load("run.json")["rows"][:1] == first
    assert len(load("run.json")["rows"]) == 2


def test_a_module_of_backends_is_imported_and_a_wrong_one_fails(capsys) -> None:
    Path("my_backends.py").write_text(
        dedent("""
            import torch, tubelet.bench
            @tubelet.bench.backend("nothing")
            def nothing(q, k, v, request):
                return torch.zeros_like(q)
        """)
    )
    sys.modules.pop("my_backends", None)
    assert run("attention", *TINY, "--backends", "nothing,sdpa", "--import", "my_backends", "--json", "run.json") == 1
    wrong, right = load("run.json")["rows"]
    assert (wrong["status"], wrong["median_ms"], right["status"]) == ("wrong", None, "ok")
    out = capsys.readouterr().out
    assert "- joint, nothing: wrong: out has a relative error of 1.0e+00" in out
    assert run("list", "--import", "my_backends") == 0
    assert "  nothing\n" in capsys.readouterr().out


def test_list_names_shapes_patterns_and_backends(capsys) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "wan-14b-720p      21x45x80/40x128             75,600 tokens" in out
    assert all(f"  {name}\n" in out for name in (*backends(), "joint", "auto"))
    assert "mix:navit" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "KIND"),
        (("attention", "--shapes", "nothing"), "shape 'nothing' is neither"),
        (("attention", "--shapes", "a,,b"), "'a,,b'"),
        (("attention", "--patterns", "dance"), "'dance' is unknown; the patterns are"),
        (("attention", "--backends", "fast"), "'fast' is unknown; the backends are"),
        (("attention", "--dtype", "int8"), "'int8'"),
        (("attention", "--device", "tpu"), "'tpu'"),
        (("attention", "--device", "cuda:99"), "cuda:99"),
        (("attention", "--modes", "graph"), "CUDA graph"),
        (("attention", "--scale", "0"), "'0'"),
        (("attention", "--batch", "1,x"), "'x'"),
        (("attention", "--rounds", "0"), "'0'"),
        (("attention", "--import", "no_such_module"), "no_such_module"),
        (("attention", "--resume"), "--json"),
        (("attention", "--plot", "run.bmp"), "run.bmp"),
        (("attention", "--json", "bad.json/run.json", "--shapes", "1x1x1/1x8"), "bad.json"),
        (("compare", "a.json"), "B.json"),
        (("compare", "a.json", "b.json"), "a.json"),
        (("compare", "bad.json", "bad.json"), "bad.json is no run of tubelet.bench/1"),
        (("compare", "a.json", "b.json", "--fail-above", "-1"), "-1"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, says: str, capsys) -> None:
    Path("bad.json").write_text("{}")
    device = () if "--device" in argv or argv[:1] != ("attention",) else ("--device", "cpu")
    assert run(*argv, *device) == 2
    out, error = capsys.readouterr()
    assert says in error
    assert error.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("kind", [(), ("attention",), ("compare",), ("list",)])
def test_help_has_examples(kind, capsys) -> None:
    assert run(*kind, "--help") == 0
    out = capsys.readouterr().out
    lines = [line.split()[2] for line in out.splitlines() if line.startswith("  tubelet bench ")]
    assert set(lines) == (set(kind) if kind in (("compare",), ("list",)) else {"attention", "compare", "list"})


def slower(file: Path, factor: float, **hardware: str) -> Path:
    document = load(file)
    for row in document["rows"]:
        row["seconds"] = [factor * value for value in (1.0, 1.01, 1.02, 0.99)]
    document["environment"]["hardware"] |= hardware
    target = file.with_name(f"x{factor}{'-'.join(hardware)}.json")
    save(target, document)
    return target


def test_compare_and_its_exit_statuses(measured: Path, capsys) -> None:
    before, after = slower(measured, 1.0), slower(measured, 1.2)
    assert run("compare", before, after) == 0
    out = capsys.readouterr().out
    assert out.count("slower") == 2
    assert "1.200" in out
    assert run("compare", before, after, "--fail-above", "1.05") == 1
    assert "regressed: 2x3x3/2x8" in capsys.readouterr().err
    assert run("compare", before, after, "--fail-above", "1.5") == 0
    assert run("compare", after, before, "--fail-above", "1.05") == 0


def test_compare_refuses_other_hardware(measured: Path, capsys) -> None:
    before, after = slower(measured, 1.0), slower(measured, 1.2, name="another")
    assert run("compare", before, after) == 2
    assert "'another'" in capsys.readouterr().err
    assert run("compare", before, after, "--force") == 0


def test_control_c_says_what_is_kept(monkeypatch, capsys) -> None:
    def stopped(plan, done, watch):
        raise KeyboardInterrupt

    monkeypatch.setattr("tubelet.bench.session.measure", stopped)
    assert run("attention", *TINY, "--json", "run.json") == 130
    assert f"0 of {len(backends()) + 1} rows are in run.json; --resume goes on" in capsys.readouterr().err
    assert load("run.json")["rows"] == []
    assert run("attention", *TINY) == 130
    assert capsys.readouterr().err == "\ntubelet: stopped\n"


def test_threads_are_set_and_recorded(capsys) -> None:
    before = torch.get_num_threads()
    try:
        assert run("attention", *TINY, "--backends", "sdpa", "--threads", "2", "--json", "run.json") == 0
        assert load("run.json")["environment"]["hardware"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_add_needs_no_more_than_a_parser() -> None:
    parser = argparse.ArgumentParser()
    bench.add(parser.add_subparsers())
    assert parser.parse_args(["bench", "compare", "a", "b"]).run is bench.run_compare
