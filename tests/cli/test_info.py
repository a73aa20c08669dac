"""``tubelet info``: a list, one model, JSON of a stable form, and mistakes in one line."""

import builtins
import json
import sys

import pytest

from tubelet.cli import main
from tubelet.cli.info import _bytes, _short
from tubelet.planner import presets

NEEDED = ("dit_s", "wan_1_3b", "digits")
"""A list of these takes a second; the whole one is a slow test."""


@pytest.fixture
def few(monkeypatch) -> None:
    some = {name: presets()[name] for name in NEEDED}
    monkeypatch.setattr("tubelet.planner.estimate.presets", lambda: some)


def run(*argv: str) -> int:
    try:
        return main(["info", *argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_list_has_a_row_for_each(few, capsys) -> None:
    assert run() == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows] == list(NEEDED)
    assert [title.strip() for title in head.strip("| ").split("|")][-5:] == [
        "dense GMACs", "attention GMACs", "total GMACs", "weights", "training",
    ]  # fmt: skip
    dense, attention, total = (float(cell) for cell in rows[0].split("|")[-6:-3])
    assert (dense + attention, total) == (pytest.approx(6.06, abs=0.01), 6.06)
    assert "65.73 MB" in rows[0]
    assert "32,865,056" in rows[0]
    assert "6.06" in rows[0]
    assert "21x30x52" in rows[1]


def test_one_grid_for_all(few, capsys) -> None:
    assert run("--grid", "1,8,8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["grid"] for each in found["models"]] == [[1, 8, 8]] * 3


def test_a_model_that_does_not_take_the_grid_says_why(monkeypatch, capsys) -> None:
    some = {name: presets()[name] for name in ("dit_s", "uvit_cifar10")}
    monkeypatch.setattr("tubelet.planner.estimate.presets", lambda: some)
    assert run("--grid", "9,20,20") == 0
    out = capsys.readouterr().out
    assert "44,255,328" in out
    assert "\nuvit_cifar10: " in out


def test_one_model_has_its_config_and_parts(capsys) -> None:
    assert run("wan_1_3b", "--grid", "3,4,4", "--text", "7") == 0
    out = capsys.readouterr().out
    assert out.startswith("wan_1_3b: WanTransformer, 1,418,996,800 parameters\n")
    assert "  depth = 30\n" in out
    assert "| blocks " in out
    assert "grid 3x4x4: 48 tokens and 7 of text" in out
    assert "a forward adds at most" in out
    assert "50 steps with guidance" in out


def test_an_autoencoder_has_latents_and_no_steps(capsys) -> None:
    assert run("digits") == 0
    out = capsys.readouterr().out
    assert "5,120 latents; one forward" in out
    assert "steps" not in out


def test_a_classifier_has_no_steps(capsys) -> None:
    assert run("navit_s", "--grid", "1,4,4") == 0
    out = capsys.readouterr().out
    assert "16 tokens; one forward" in out
    assert "steps" not in out


def test_parts_add_up_to_the_total(capsys) -> None:
    assert run("dit_s", "--grid", "1,64,64") == 0
    lines = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, *parts = ([cell.strip() for cell in line] for line in lines)
    assert head == ["part", "parameters", "dense GMACs", "attention GMACs", "total GMACs"]
    together = next([float(cell) for cell in part[2:]] for part in parts if part[0] == "together")
    assert together[1] > 1
    assert together[0] + together[1] == pytest.approx(together[2], abs=0.02)


def test_a_size_is_named_with_its_argument(capsys) -> None:
    assert run("DiT-S/4") == 0
    out = capsys.readouterr().out
    assert out.startswith("dit_s(patch=4): DiT, ")
    assert "  patch = (1, 4, 4)\n" in out
    assert "grid 1x8x8: 64 tokens" in out


def test_little_memory_has_digits_and_a_long_tuple_has_few(capsys) -> None:
    assert [_bytes(n) for n in (0, 40, 123_456, 7_654_321, 28_576_983_168)] == [
        "0.00 kB", "0.04 kB", "123.46 kB", "7.65 MB", "28.58 GB",
    ]  # fmt: skip
    assert _short((1,) * 16) == repr((1,) * 16)
    assert run("cosmos_vae", "--grid", "1,2,2") == 0
    out = capsys.readouterr().out
    assert "... 256 in all)\n" in out
    assert max(map(len, out.splitlines())) < 200


FIELDS = {
    "name", "architecture", "kind", "config", "grid", "tokens", "text_tokens", "batch", "parameters", "macs",
    "attention_macs", "parts", "reason", "memory_bytes",
}  # fmt: skip


def test_json_has_one_form(few, capsys) -> None:
    assert run("dit_s", "--json") == 0
    one = json.loads(capsys.readouterr().out)
    assert run("--json") == 0
    every = json.loads(capsys.readouterr().out)
    assert one.keys() == every.keys() == {"format", "models"}
    assert one["format"] == every["format"] == "tubelet.info/1"
    for each in [*one["models"], *every["models"]]:
        assert each.keys() == FIELDS
        assert each["memory_bytes"].keys() == {"weights", "training", "forward", "saved"}
        assert all(part.keys() == {"name", "parameters", "macs", "attention_macs"} for part in each["parts"])
        assert sum(part["macs"] for part in each["parts"]) == each["macs"]
    (only,) = one["models"]
    assert (only["parameters"], only["macs"], only["config"]["depth"]) == (32_865_056, 6_055_673_856, 12)
    assert only["memory_bytes"]["saved"] > 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("wan",), "no preset is called 'wan': did you mean wan_1_3b"),
        (("qqq",), "tubelet info lists them"),
        (("dit_s", "--grid", "1,2"), "'1,2'"),
        (("dit_s", "--grid", "0,2,2"), "'0,2,2'"),
        (("dit_s", "--text", "0"), "'0'"),
        (
            ("uvit_coco", "--text", "5"),
            "text of uvit_coco must be 77, the number of tokens that the model reads, got 5",
        ),
        (("dit_s", "--text", "5"), "text of dit_s must be 0"),
        (("dit_s(size=4)",), "dit_s takes the arguments patch, got size=4"),
        (("uvit_cifar10", "--grid", "9,99,99"), "grid"),
        (("dit_s", "wan_14b"), "wan_14b"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, says: str, capsys) -> None:
    assert run(*argv) == 2
    out, error = capsys.readouterr()
    assert says in error
    assert error.count("\n") == 1
    assert out == ""


def test_help_has_examples(capsys) -> None:
    assert run("--help") == 0
    assert capsys.readouterr().out.count("  tubelet info") >= 4


def test_a_terminal_has_a_table_of_lines(few, capsys, monkeypatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    assert run() == 0
    out = capsys.readouterr().out
    assert "│ dit_s" in out
    assert "|" not in out


def test_a_terminal_without_rich_has_plain_text(few, capsys, monkeypatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    assert run() == 0
    assert "| dit_s " in capsys.readouterr().out
