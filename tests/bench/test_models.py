"""Each open model of the benchmark has its published width, and its question is the same to both, in both dtypes."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_families import TINY

from tubelet import models
from tubelet.hub import foreign

ROOT = Path(__file__).parents[2]

PRESETS = {
    "allegro": models.allegro_3b(),
    "cogvideox-5b": models.cogvideox_5b(),
    "cosmos-2b": replace(models.cosmos_2_v2w_2b(), padding_channel=False),
    "dit-xl": replace(models.dit_xl(), freq_shift=1, mlp_eps=1e-5, base_grid=(64, 64)),
    "hunyuan-video": replace(models.hunyuan_video(), single_depth=2),
    "latte": models.latte_1(),
    "ltx-2b": models.ltx_2b(),
    "mochi": models.mochi_10b(),
    "wan-1.3b": models.wan_1_3b(),
}


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.models")


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi's peer asks for float32
@pytest.mark.parametrize("name", TINY)
def test_both_answer_alike(suite, monkeypatch, name: str) -> None:
    family = suite.FAMILIES[name]
    tiny = replace(family, config={**family.config, **TINY[name]})
    monkeypatch.setitem(suite.FAMILIES, name, tiny)
    found = list(suite.compare_models([name], ["float32", "bfloat16"], ["auto"], [True], 2, tokens=16))
    assert [each.dtype for each in found] == ["float32", "bfloat16"]
    assert all(each.error < (3e-6 if each.dtype == "float32" else 0.03) for each in found)
    assert all(each.low <= each.ratio <= each.high for each in found)
    assert len(suite.report_models(found).splitlines()) == 2 + 2 + 1 + 2


def test_every_model_is_here(suite) -> None:
    assert list(suite.FAMILIES) == sorted(suite.FAMILIES) == sorted(TINY) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_width_is_the_published_one(suite, name: str) -> None:
    family = suite.FAMILIES[name]
    adapter = next(each for each in foreign._FAMILIES if each.peer == family.peer and each.form == "diffusers")
    config = adapter.read_config(family.config)
    assert replace(config, depth=PRESETS[name].depth) == PRESETS[name]
    x = family.latents()
    t, h, w = (side // p for side, p in zip(x.shape[2:], family.patch, strict=True))
    assert (t * h * w, x.shape[1]) == (4096, family.channels)


def test_one_layer_of_each_kind_is_said_in_the_name(suite, monkeypatch) -> None:
    tiny = replace(suite.FAMILIES["wan-1.3b"], config={**suite.FAMILIES["wan-1.3b"].config, **TINY["wan-1.3b"]})
    monkeypatch.setitem(suite.FAMILIES, "wan-1.3b", tiny)
    (found,) = suite.compare_models(["wan-1.3b"], ["float32"], ["auto"], [False], 2, tokens=16, one_layer=True)
    assert found.model == "wan-1.3b, one layer"


TITLES = {
    "latte": "Latte-1",
    "dit-xl": "DiT-XL/2",
    "ltx-2b": "LTX-Video 2B",
    "wan-1.3b": "Wan 1.3B",
    "cogvideox-5b": "CogVideoX 5B",
    "cosmos-2b": "Cosmos 2B",
    "allegro": "Allegro",
    "mochi": "Mochi",
    "hunyuan-video, one layer": "HunyuanVideo, one layer of each kind",
}


def test_the_table_of_the_docs_is_that_of_the_results() -> None:
    folder = ROOT / "benchmarks" / "results" / "2026-11-26-amd-epyc-cpu"
    documents = [json.loads((folder / name).read_text()) for name in ("models.json", "models-bfloat16.json")]
    results = [result for document in documents for result in document["results"]]
    found = {(each["model"], each["dtype"], each["backward"]): each for each in results}
    assert len(found) == len(results) == 4 * len(TITLES)
    lines = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    start = lines.index("| model | pass | float32 | bfloat16 | memory, float32, bfloat16 |") + 2
    assert lines[start : start + 2 * len(TITLES)] == [
        _line(title if not backward else "", backward, [found[name, dtype, backward] for dtype in DTYPES])
        for name, title in TITLES.items()
        for backward in (False, True)
    ]


DTYPES = ("float32", "bfloat16")


def _line(title: str, backward: bool, results: list[dict]) -> str:
    ratios = ("{ratio:.2f} ({low:.2f} to {high:.2f})".format(**each) for each in results)
    memory = ", ".join("{memory:.2f}".format(**each) for each in results)
    cells = (title, "with backward" if backward else "forward", *ratios, memory)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
