"""The suite of papers compares one function: every way gives the peer's own answer, and the ratio has a direction."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def papers(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    from benchmarks import papers as suite

    return suite


@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.parametrize("name", ["dit-xl", "latte", "uvit", "vivit"])
def test_every_way_gives_the_peers_answer(papers, name: str) -> None:
    from benchmarks import measure

    made = {"uvit": papers._uvit, "vivit": papers._vivit}
    cases = made[name]() if name in made else papers._of_diffusers(name, name, 256)
    assert [case.name for case in cases] == ["theirs", "ours", "ours, fused"]
    results = measure(cases, 2)
    assert all(result.right and result.error < 1e-5 for result in results)
    assert [each for each, *_ in papers.speedups(results)] == [cases[0].group] * 2


def test_a_speedup_is_theirs_over_ours(papers) -> None:
    from benchmarks import Result

    def result(group: str, name: str, seconds: list[float] | None) -> Result:
        return Result(group, name, 0.0, seconds, None, None, None, None)

    results = [
        *(result("a", "theirs", [2.0] * 5), result("a", "ours", [1.0] * 5), result("a", "ours, fused", None)),
        *(result("b", "theirs", None), result("b", "ours", [1.0] * 5)),
    ]
    assert papers.speedups(results) == [("a", "ours", 2.0, 2.0, 2.0)]
