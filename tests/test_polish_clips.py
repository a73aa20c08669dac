"""``scripts/polish_clips.py``: what it measures, by definitions and on clips made here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tubelet import hub
from tubelet.data import write_video
from tubelet.metrics import LPIPS, psnr
from tubelet.vae.families import PrincipalAutoencoder, PrincipalAutoencoderConfig

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("polish_clips", SCRIPTS / "polish_clips.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


def test_edges_are_differences_of_neighbours(script) -> None:
    light = torch.zeros(1, 3, 1, 4, 4)
    light[..., 2:] = 1.0  # one step of 1 in each of four rows, among 12 pairs
    assert script.edges(light) == pytest.approx(4 / 12)
    assert script.edges(light.mT) == pytest.approx(4 / 12)
    assert script.edges(3 * light) == pytest.approx(9 * 4 / 12)


def test_detail_is_what_a_plane_wave_has_above_a_quarter_cycle(script) -> None:
    place = torch.arange(16.0)
    for cycles, counts in ((1, False), (3, False), (4, True), (7, True)):
        wave = torch.cos(2 * torch.pi * cycles * place / 16).expand(1, 3, 2, 16, 16)
        for turned in (wave, wave.mT):
            assert (script.detail(turned) > 0.1) == counts, cycles
    noise = torch.randn(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert script.detail(noise) == pytest.approx(float(noise.square().mean()), rel=0.1)


def test_two_runs_are_compared_on_all_frames(script, tmp_path: Path) -> None:
    clip = (torch.randn(3, 10, 24, 40, generator=torch.Generator().manual_seed(0)).cumsum(2) / 5).clamp(-1, 1)
    write_video(tmp_path / "held" / "a.mp4", clip, fps=8)
    sizes = PrincipalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1))
    runs = {name: tmp_path / name for name in ("before", "after")}
    for path in runs.values():
        hub.save(PrincipalAutoencoder(sizes), path / "autoencoder")
    (runs["after"] / "report.json").write_text(json.dumps({"cpu_seconds": 7.0}))
    (runs["after"] / "run.json").write_text(json.dumps({"steps": 5, "lpips": 0.5, "files": ["b.mp4"]}))
    distance = LPIPS((2,) * 5).eval().requires_grad_(False)
    result = script.look(tmp_path, runs, distance, picture=tmp_path / "a.png", sides=(16, 24))
    assert [(clip["side"], clip["frames"]) for clip in result["clips"]] == [(16, 9), (24, 9)]
    assert result["options"] == {"steps": 5, "lpips": 0.5}
    assert (tmp_path / "a.png").is_file() and "5 steps, 7 CPU seconds" in script.table(result)
    video, made = torch.rand(2, 1, 3, 11, 16, 16)
    scores = script.seen(distance, video, made)
    assert scores["lpips"] == pytest.approx(float(distance(made, video)), rel=1e-5)
    assert scores["psnr"] == pytest.approx(float(psnr(video, made)))
