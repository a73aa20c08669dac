"""The order of ``auto`` is that of the documentation, and that of the times that were measured."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.attention import Joint, Temporal, backends
from tubelet.attention.dispatch import _order
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest, Pattern

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"`(\w+)`")


def documented(device: str) -> tuple[list[str], list[str]]:
    """What the page says is asked, in order, and what is taken by name only."""
    section = (ROOT / "docs" / "attention.md").read_text().split("### The order of `auto`")[1]
    row = next(line for line in section.splitlines() if line.startswith(f"| {device} |"))
    _, _, asked, named, _ = row.split("|")
    return NAME.findall(asked), NAME.findall(named)


@pytest.mark.parametrize(
    ("row", "device", "pattern"),
    [
        ("CPU", "cpu", Temporal()),
        ("CPU", "cpu", Joint()),
        ("CUDA, dense rows under `Joint()`", "cuda:0", Joint()),
        ("CUDA, anything else", "cuda:0", Temporal()),
    ],
)
def test_the_page_gives_the_order_of_dispatch(row: str, device: str, pattern: Pattern) -> None:
    index = TokenLayout.dense(1, Grid(2, 2, 2)).on("cpu")
    request = AttentionRequest(pattern, index, None, (1, 8, 2, 4), (1, 8, 2, 4), torch.float32, device, 0.5, None)
    order = [backend.name for backend in _order(request)]
    last = order.index("reference") + 1
    assert documented(row) == (order[:last], order[last:])
    assert set(order) == set(backends())


def measured(name: str) -> list[list[dict[str, Any]]]:
    """The rows of a result, a list for each request."""
    (path,) = (ROOT / "benchmarks" / "results").glob(f"*/{name}.json")
    document = json.loads(path.read_text())
    assert {"versions", "hardware", "clocks"} <= set(document["environment"])
    assert all(row["status"] == "ok" for row in document["rows"])
    groups = itertools.groupby(document["rows"], key=lambda row: row["key"].rpartition(" ")[0])
    return [list(rows) for _, rows in groups]


def test_the_order_is_that_of_the_measured_times() -> None:
    """Among backends that are equally exact; a plan's error may be that of the definition and a little more."""
    groups = measured("order-float32")
    assert len(groups) == 10  # five patterns, two layouts
    for rows in groups:
        fastest = [row["backend"] for row in sorted(rows, key=lambda row: row["median_ms"])]
        assert fastest == ["sdpa", "reference", "flex"]
        assert max(row["errors"]["out"] for row in rows) <= 1.5 * min(row["errors"]["out"] for row in rows)


def test_chunked_is_fast_and_less_exact() -> None:
    for rows in measured("order-bfloat16"):
        by_name = {row["backend"]: row for row in rows}
        assert by_name["chunked"]["median_ms"] < by_name["sdpa"]["median_ms"]
        assert 1.8 < by_name["chunked"]["errors"]["out"] / by_name["sdpa"]["errors"]["out"] < 2.6
        assert by_name["sdpa"]["median_ms"] < by_name["reference"]["median_ms"] < by_name["flex"]["median_ms"]
