"""The judged run of ``scripts/real_clips.py``, shortened: on clips made here, or on fetched ones if a variable says so.

``TUBELET_REAL_CLIPS`` names a folder that ``python scripts/real_clips.py fetch`` filled.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tubelet.data import write_video

SCRIPT = Path(__file__).parent.parent / "scripts" / "real_clips.py"
FETCHED = os.environ.get("TUBELET_REAL_CLIPS")
SMALL = {"latent_channels": 12, "widths": [32, 64], "depths": [1, 1], "decoder_depths": [1, 2]}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_clips", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scene(seed: int, frames: int = 17) -> torch.Tensor:
    """A camera that glides over a picture of edges and soft light: ``(3, t, 80, 96)``."""
    generator = torch.Generator().manual_seed(seed)
    soft = functional.interpolate(torch.randn(1, 3, 8, 8, generator=generator), size=(200, 200), mode="bicubic")
    patches = torch.randint(-1, 2, (1, 1, 16, 16), generator=generator).float()
    wide = functional.interpolate(patches, size=(200, 200)) * 0.5
    turned = functional.affine_grid(torch.tensor([[[0.8, 0.5, 0.0], [-0.5, 0.8, 0.0]]]), [1, 1, 200, 200], False)
    picture = (0.4 * soft + functional.grid_sample(wide, turned, padding_mode="reflection", align_corners=False))[0]
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    views = [picture[:, 60 + down * t : 140 + down * t, 52 + right * t : 148 + right * t] for t in range(frames)]
    return torch.stack(views, 1).clamp(-1, 1)


@pytest.mark.slow
def test_it_beats_block_pca_and_bicubic_on_a_clip_it_never_saw(script, tmp_path) -> None:
    folder = Path(FETCHED) if FETCHED else tmp_path
    if not FETCHED:
        for i in range(8):
            write_video(folder / ("held" if i == 0 else "train") / f"{i}.mp4", scene(i), fps=8)
    named = {"_class": "tubelet.vae.families.PrincipalAutoencoder", "config": SMALL}
    (tmp_path / "small.json").write_text(json.dumps(named))
    options = ("--config", tmp_path / "small.json", "--steps", 300, "--batch", 4, "--frames", 9)
    script.train(folder, tmp_path / "run", list(map(str, options)))
    result = script.score(folder, tmp_path / "run", sides=(64,))
    assert {clip["clip"] for clip in result["clips"]} == {path.name for path in (folder / "held").iterdir()}
    print(script.table(result))
    for clip in result["clips"]:
        assert clip["gain"]["pca"] > 0.3
        assert FETCHED or clip["gain"]["bicubic"] > 1.0
    assert (tmp_path / "run" / "held-out.png").is_file()


def test_gzipped_clips_are_unpacked(script, tmp_path) -> None:
    import gzip

    (tmp_path / "a.mp4.gz").write_bytes(gzip.compress(b"frames"))
    assert script._is_clip(tmp_path / "a.mp4.gz")
    assert not script._is_clip(tmp_path / "a.html")
    script._copy(tmp_path / "a.mp4.gz", tmp_path / "a.mp4")
    script._copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert (tmp_path / "b.mp4").read_bytes() == b"frames"


def test_components_keep_what_lies_among_them(script) -> None:
    """Videos of two patterns in every cell pass two components unchanged, and not one."""
    generator = torch.Generator().manual_seed(0)
    first, later = torch.rand(2, 3, 1, 8, 8, generator=generator), torch.rand(2, 3, 4, 8, 8, generator=generator)
    weights = torch.rand(6, 2, generator=generator)
    videos = [torch.cat([torch.einsum("k,kcthw->cthw", w, each) for each in (first, later)], 1)[None] for w in weights]
    codes = script.principal_codes(iter(videos), 2)
    assert (script.through(videos[0], codes) - videos[0].clamp(-1, 1)).abs().max() < 1e-5
    one = script.principal_codes(iter(videos), 1)
    assert (script.through(videos[0], one) - videos[0].clamp(-1, 1)).abs().max() > 1e-3
