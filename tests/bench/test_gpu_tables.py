"""The tables of a GPU run whole on the CPU, so that a change of what they use is seen without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAYS = {
    "norm_modulate": {"eager", "compiled", "ours"},
    "residual_norm_modulate": {"eager", "compiled", "ours"},
    "norm_silu_pad": {"eager", "compiled", "ours"},
    "qk_norm_rope": {"eager", "compiled", "ours"},
    "grouped_attention": {"eager", "compiled", "ours"},
    "joint_attention": {"default", "cudnn", "flash", "pointers", "ours"},
    "frame_attention": {"default", "pointers", "ours"},
    "tiled_attention": {"flex", "sdpa", "flash", "natten", "ours"},
}


def test_the_dry_run_writes_its_tables(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ceilings", *WAYS)}
    for document in found.values():
        assert document["dry"] is True
        assert document["environment"]["hardware"]["device"] == "cpu"
        assert document["environment"]["versions"]["torch"] in (tmp_path / "ceilings.md").read_text()
    assert found["ceilings"]["matmul_tflops"] > 0
    assert found["ceilings"]["copy_gbs"] > 0
    for name, ways in WAYS.items():
        lines = found[name]["lines"]
        shapes = {line["shape"] for line in lines}
        assert len(lines) == len(shapes) * 2 * len(ways)  # in both directions
        assert {line["way"] for line in lines} == ways
        assert all(line["right"] and line["ms"] > 0 and line["operation"] == name for line in lines)
        assert lines[0]["shape"] in (tmp_path / f"{name}.md").read_text()
