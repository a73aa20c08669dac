"""The report is Markdown that lines up, and a row without a time says why below its table."""

import io

import pytest

from tubelet.bench import backend, report, run_plan
from tubelet.bench.plan import Plan
from tubelet.bench.table import aligned, by_headline, headline


def test_columns_line_up(small) -> None:
    text = report(small)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for lines in tables:
        assert len({len(line) for line in lines}) == 1
        assert len({line.count("|") for line in lines}) == 1
    assert "measured ceilings: matmul float32" in text
    for row in small["rows"]:
        assert f"### {headline(row)}" in text
        assert f"{row['median_ms']:.4g}" in text


def test_a_reason_stands_in_place_of_a_time(capsys) -> None:
    @backend("broken")
    def broken(q, k, v, request):
        raise NotImplementedError("later")

    plan = Plan(shapes=("1x2x2/1x8",), patterns=("joint",), backends=("broken", "sdpa"), rounds=3)
    text = report(run_plan(plan, progress=io.StringIO()))
    line = next(line for line in text.splitlines() if line.startswith("| joint   | broken"))
    assert line.split("|")[3].strip() == "failed"
    assert not any(cell.strip() for cell in line.split("|")[4:-1])
    assert "- joint, broken: failed: NotImplementedError: later" in text


def test_patterns_of_one_headline_share_a_table(small) -> None:
    first, second, third, fourth, *_ = small["rows"]
    mixed = [first, third, {**second, "pattern": "other"}, fourth]
    assert list(by_headline(mixed).values()) == [[mixed[0], mixed[2]], [mixed[1], mixed[3]]]
    assert report({**small, "rows": mixed}).count("###") == 2


@pytest.mark.parametrize("left", [0, 1, 2])
def test_padding(left: int) -> None:
    lines = aligned(["a", "bbb"], [["ccc", "d"], ["", "e"]], left).splitlines()
    assert lines[2] == ("| ccc |   d |" if left < 2 else "| ccc | d   |")
