"""The command `tubelet cache-latents` on real files."""

import re
from pathlib import Path

import pytest
import torch

from tubelet import hub
from tubelet.cli import main
from tubelet.data import CachedLatents, write_video
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig


def test_a_folder_of_files_is_cached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for name, frames in (("a.mp4", 12), ("b.mp4", 9), ("c.png", 1)):
        write_video(videos / name, torch.rand(3, frames, 16, 16) * 2 - 1, fps=8)
    vae = CausalAutoencoder(CausalAutoencoderConfig(in_channels=3, latent_channels=2, widths=(4,), depths=(1,)))
    hub.save(vae, tmp_path / "vae")
    command = ["cache-latents", "--clips", str(videos), "--vae", str(tmp_path / "vae"), "--out", str(out),
               "--frames", "9", "--size", "16,16", "--shard", "2"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "3 clips in 2 files" in said
    assert "mean of each channel:" in said
    cached = CachedLatents(out)
    assert [cached[i].file for i in range(3)] == ["a.mp4", "b.mp4", "c.png"]
    assert [cached.shape(i) for i in range(3)] == [(2, 3, 2, 2), (2, 3, 2, 2), (2, 1, 2, 2)]
    assert main(command) == 0
    assert main([*command, "--shard", "1", "--seed", "3"]) == 2
    assert "was made with other shard (2, not 1), seed (0, not 3)" in capsys.readouterr().err


def test_other_clips_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    for name in ("a.png", "b.png"):
        write_video(videos / name, torch.rand(3, 1, 16, 16) * 2 - 1, fps=8)
    vae = CausalAutoencoder(CausalAutoencoderConfig(in_channels=3, latent_channels=2, widths=(4,), depths=(1,)))
    hub.save(vae, tmp_path / "vae")
    command = ["cache-latents", "--clips", str(videos), "--vae", str(tmp_path / "vae"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    kept = (videos / "b.png").read_bytes()
    (videos / "b.png").rename(videos / "c.png")
    assert main(command) == 2
    assert re.search(r"other sources \(b\.png \(\d+ bytes.*, not c\.png \(", capsys.readouterr().err)
    (videos / "c.png").unlink()
    write_video(videos / "b.png", torch.zeros(3, 1, 16, 16), fps=8)
    assert main(command) == 2
    assert re.search(r"other sources \(b\.png .*, not b\.png", capsys.readouterr().err)
    (videos / "b.png").write_bytes(kept)
    assert main(command) == 0
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "noise"}')
    assert main([*command, "--captions", str(tmp_path / "captions.jsonl")]) == 2
    assert re.search(r"other sources \(a\.png .*, ''\), not a\.png .*, 'noise'\)", capsys.readouterr().err)
