"""The benchmark of autoencoders: both answers alike in both directions and dtypes; a wrong answer gets no time."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "wan-2.1": {"base_dim": 4, "num_res_blocks": 1},
    "hunyuan-video": {"block_out_channels": [4, 4, 4, 4], "norm_num_groups": 2, "layers_per_block": 1},
    "cogvideox": {"block_out_channels": [4, 4, 4, 4], "norm_num_groups": 2, "layers_per_block": 1},
    "mochi": {
        "encoder_block_out_channels": [32, 32, 32, 32],
        "decoder_block_out_channels": [32, 32, 32, 32],
        "layers_per_block": [1, 1, 1, 1, 1],
    },
    "ltx": {
        "block_out_channels": [4, 6, 8, 8],
        "decoder_block_out_channels": [4, 6, 8, 8],
        "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1, 1],
    },
}


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    found = importlib.import_module("benchmarks.vae")
    for name, config in TINY.items():
        monkeypatch.setitem(found.VAES, name, replace(found.VAES[name], config=config))
    return found


@pytest.mark.parametrize(
    ("name", "frames"), [("wan-2.1", 5), ("hunyuan-video", 5), ("cogvideox", 9), ("mochi", 7), ("ltx", 9)]
)
def test_both_answer_alike(suite, name: str, frames: int) -> None:
    side = 32 if name == "ltx" else 16
    lines = list(suite.compare_vaes([name], ["float32", "bfloat16"], 2, (frames, side, side)))
    assert [(line.dtype, line.direction) for line in lines] == [
        ("float32", "decode"), ("float32", "encode"), ("bfloat16", "decode"), ("bfloat16", "encode")
    ]  # fmt: skip
    for line in lines:
        assert line.low <= line.ratio <= line.high
        assert line.memory > 0
        assert line.error < (1e-5 if line.dtype == "float32" else 0.1)
    assert len(suite.report_vaes(lines).splitlines()) == 2 + len(lines)


def test_a_wrong_answer_gets_no_time(suite, monkeypatch) -> None:
    monkeypatch.setattr(suite, "_theirs_decoded", lambda peer, z: -peer.decode(z).sample)
    with pytest.raises(RuntimeError, match=r"wan-2.1, decode in float32 is off by"):
        next(suite.compare_vaes(["wan-2.1"], ["float32"], 2, (5, 16, 16)))
