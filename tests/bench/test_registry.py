"""Backends of others: by decorator, by entry point of an installed package; names are never taken twice in silence."""

import sys
from importlib import metadata
from textwrap import dedent

import pytest
import torch

from tubelet import attention
from tubelet.bench import Plan, available, backend
from tubelet.bench.run import measure
from tubelet.protocols import Answer


def exact(q, k, v, request):
    return attention.backends()["reference"].run(q, k, v, request)


def plan(*backends: str) -> Plan:
    return Plan(shapes=("1x2x3/2x8",), patterns=("joint",), backends=backends, rounds=3)


def test_a_function_becomes_a_backend_and_stays_a_function() -> None:
    assert backend("mine")(exact) is exact
    assert list(available()) == [*attention.backends(), "auto", "mine"]
    [[row]] = measure(plan("mine"))
    assert (row["backend"], row["status"]) == ("mine", "ok")


def test_a_function_may_refuse() -> None:
    backend("picky", lambda request: Answer("only on Sundays"))(exact)
    [[row]] = measure(plan("picky"))
    assert (row["status"], row["reason"], row["seconds"]) == ("unsupported", "only on Sundays", None)


def test_a_class_becomes_a_backend() -> None:
    @backend("whole")
    class Whole:
        name = "whole"

        def supports(self, request):
            return Answer()

        def run(self, q, k, v, request):
            return exact(q, k, v, request)

    assert isinstance(available()["whole"], Whole)


def test_names_are_taken_once() -> None:
    backend("mine")(exact)
    backend("mine")(exact)  # the same again, as a module that is imported anew
    with pytest.raises(ValueError, match="'mine' is registered twice"):
        backend("mine")(lambda q, k, v, request: q)
    for own in ("sdpa", "auto"):
        with pytest.raises(ValueError, match=f"'{own}' is tubelet's own"):
            backend(own)(exact)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="backend 'fast' is unknown; the backends are sdpa"):
        list(measure(plan("fast")))


@pytest.fixture
def points(tmp_path, monkeypatch):
    """A package with a module of backends, as pip would have unpacked it."""
    (tmp_path / "fast_attention.py").write_text(
        dedent("""
            import torch
            def fast(q, k, v, request):
                return torch.zeros_like(q)
            number = 3
        """)
    )
    info = tmp_path / "fast_attention-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-attention\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield info / "entry_points.txt"
    sys.modules.pop("fast_attention", None)


def test_an_entry_point_is_found_and_checked_like_any_other(points) -> None:
    points.write_text("[tubelet.backends]\nfast = fast_attention:fast\n")
    assert [point.name for point in metadata.entry_points(group="tubelet.backends")] == ["fast"]
    assert list(available()) == [*attention.backends(), "auto", "fast"]
    [[wrong, right]] = measure(plan("fast", "sdpa"))
    assert (wrong["status"], wrong["median_ms"], wrong["errors"]["out"]) == ("wrong", None, 1.0)
    assert right["status"] == "ok"


@pytest.mark.parametrize(
    ("line", "says"), [("sdpa = fast_attention:fast", "exists already"), ("n = fast_attention:number", "must be")]
)
def test_a_bad_entry_point_is_named(points, line: str, says: str) -> None:
    points.write_text(f"[tubelet.backends]\n{line}\n")
    with pytest.raises(ValueError, match=says):
        available()


def test_zeros_are_wrong_not_fast() -> None:
    backend("zeros")(lambda q, k, v, request: torch.zeros_like(q))
    [[row]] = measure(plan("zeros"))
    assert row["status"] == "wrong"
