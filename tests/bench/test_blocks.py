"""Each block of the benchmark answers as diffusers', every way, in both directions and dtypes."""

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_families import TINY

compiled = torch.compile
ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    found = importlib.import_module("benchmarks.blocks")
    monkeypatch.setattr(torch, "compile", lambda block, **_: block)
    return found


def tiny(suite, monkeypatch, name: str) -> None:
    block = suite.BLOCKS[name]
    family = suite.FAMILIES[block.family]
    monkeypatch.setitem(suite.FAMILIES, block.family, replace(family, config={**family.config, **TINY[block.family]}))


@pytest.mark.parametrize("name", ["DiT-XL", "Wan 1.3B", "HunyuanVideo, dual", "HunyuanVideo, single"])
def test_every_way_answers_alike(suite, monkeypatch, name: str) -> None:
    tiny(suite, monkeypatch, name)
    groups = list(suite.compare_blocks("cpu", ["float32", "bfloat16"], 2, tokens=16, names=[name]))
    assert [(group[0].dtype, group[0].backward) for group in groups] == [
        ("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)
    ]  # fmt: skip
    for group in groups:
        assert [line.way for line in group][::2] == ["diffusers", "ours", "ours, compiled"]
        assert group[0].error == 0 <= group[2].error < (3e-6 if group[0].dtype == "float32" else 0.03)
        assert all(line.low <= line.ratio <= line.high and line.peak > 0 for line in group)
        assert len(suite.report_blocks(group).splitlines()) == 2 + 2 + 6


@pytest.mark.graph
def test_ours_is_one_graph(suite, monkeypatch) -> None:
    tiny(suite, monkeypatch, "Wan 1.3B")
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="eager"))
    assert len(next(suite.compare_blocks("cpu", ["float32"], 2, tokens=16, names=["Wan 1.3B"]))) == 6


def test_a_wrong_block_gets_no_time(suite, monkeypatch) -> None:
    tiny(suite, monkeypatch, "Wan 1.3B")
    monkeypatch.setattr(suite, "use_kernels", lambda block: block.apply(halved))
    with pytest.raises(RuntimeError, match="ours, fused"):
        next(suite.compare_blocks("cpu", ["float32"], 2, tokens=16, names=["Wan 1.3B"]))


def halved(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.data.mul_(0.5)
