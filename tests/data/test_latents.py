"""Cached latents: equal to encoding, shards, statistics, runs that were killed, folders of other runs."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelet.data import CachedLatents, Clip, cache_latents
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, ChannelStatistics

CONFIG = CausalAutoencoderConfig(in_channels=1, latent_channels=3, widths=(4,), depths=(1,), spatial=4)


def vae(seed: int = 0) -> CausalAutoencoder:
    torch.manual_seed(seed)
    return CausalAutoencoder(CONFIG).eval()


def clips(count: int = 7) -> list[Clip]:
    """Of several sizes, with captions that are hard to write down."""
    made = []
    for i in range(count):
        video = torch.rand(1, 1 + 4 * (i % 3), 8, 8 + 4 * (i % 2), generator=torch.Generator().manual_seed(i)) * 2 - 1
        made.append(Clip(video, f'clip "{i}" ✓\n', f"dir/{i}.mp4", i / 3))
    return made


@pytest.mark.parametrize("shard", [1, 3, 100])
def test_equal_to_encoding_each_clip(tmp_path: Path, shard: int) -> None:
    model, seen = vae(), []
    cached = cache_latents(
        model, clips(), tmp_path, shard=shard, on_clip=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i + 1, 7) for i in range(7)]
    assert len(list(tmp_path.glob("*.safetensors"))) == -(-7 // shard)
    everything = []
    for i, clip in enumerate(clips()):
        with torch.no_grad():
            z = model.encode(clip.video[None]).mode()[0]
        assert torch.equal(cached[i].latents, z)
        assert cached[i][1:] == clip[1:]
        assert cached.shape(i) == tuple(z.shape)
        everything.append(z.double().flatten(1))
    assert torch.equal(cached[-1].latents, cached[6].latents)
    whole = torch.cat(everything, 1)
    assert cached.statistics.count == whole.shape[1]
    torch.testing.assert_close(cached.statistics.mean, whole.mean(1), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(cached.statistics.std, whole.std(1, correction=0), rtol=1e-13, atol=0)
    with pytest.raises(IndexError, match=r"index 7 is outside a folder of 7 clips"):
        cached[7]


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    model, clip = vae(), clips(1)
    cached = cache_latents(model, clip, tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        z = model.encode(clip[0].video[None]).mode()
    assert torch.equal(cached[0].latents, z[0].bfloat16())
    torch.testing.assert_close(cached.statistics.mean, z.double().mean((0, 2, 3, 4)), rtol=1e-13, atol=1e-15)


def test_statistics_keep_a_small_deviation_beside_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    data = 1e8 + rng.standard_normal((2, 600))
    parts = [ChannelStatistics.of(torch.from_numpy(part).reshape(1, 2, -1, 1, 1)) for part in np.split(data, 4, axis=1)]
    total = sum(parts[1:], parts[0])
    np.testing.assert_allclose(total.std.numpy(), data.std(1), rtol=1e-7)
    np.testing.assert_allclose(total.mean.numpy(), data.mean(1), rtol=1e-15)
    with pytest.raises(ValueError, match=r"statistics of 2 and 3 channels do not add up"):
        _ = total + ChannelStatistics.of(torch.zeros(1, 3, 1, 1, 1))
    with pytest.raises(ValueError, match=r"latents must hold numbers, got shape \(1, 3, 0, 1, 1\)"):
        ChannelStatistics.of(torch.zeros(1, 3, 0, 1, 1))


def test_what_is_there_is_not_encoded_again(tmp_path: Path) -> None:
    whole = cache_latents(vae(), clips(), tmp_path / "whole", shard=2)
    model, calls = vae(), []
    encode = model.encode

    class StopError(Exception):
        pass

    def stop_at(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 5:
            raise StopError

    with pytest.raises(StopError):
        cache_latents(model, clips(), tmp_path / "parts", shard=2, on_clip=stop_at)
    with pytest.raises(ValueError, match=r"has no index\.json"):
        CachedLatents(tmp_path / "parts")
    encoded = []
    model.encode = lambda video: encoded.append(1) or encode(video)
    cache_latents(model, clips(), tmp_path / "parts", shard=2)
    assert len(encoded) == 3  # of the third shard of clips 4 and 5, and the last of clip 6
    assert _contents(tmp_path / "parts") == _contents(tmp_path / "whole")
    assert len(whole) == 7


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


SCRIPT = """
import sys, torch
from safetensors.torch import load_file
from tubelet.data import Clip, cache_latents
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

torch.set_num_threads(1)
config = CausalAutoencoderConfig(in_channels=1, latent_channels=3, widths=(4,), depths=(1,), spatial=4)
vae = CausalAutoencoder(config).eval()
vae.load_state_dict(load_file(sys.argv[1]))
clips = [Clip(video, "", name, 0.0) for name, video in sorted(load_file(sys.argv[2]).items())]
print("ready", flush=True)
cache_latents(vae, clips, sys.argv[3], shard=2)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_nothing(tmp_path: Path) -> None:
    model, videos = vae(), {f"{i:03d}": clip.video for i, clip in enumerate(clips(60))}
    save_file(model.state_dict(), tmp_path / "vae.safetensors")
    save_file(videos, tmp_path / "clips.safetensors")
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        *(str(tmp_path / name) for name in ("vae.safetensors", "clips.safetensors")),
    ]
    draw, folder, before = random.Random(0), tmp_path / "killed", set()
    for _ in range(4):
        with subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
        shards = {path.name: path.read_bytes() for path in folder.glob("latents-*.safetensors")}
        assert all(shards.get(name) == content for name, content in before)  # no shard is lost or written again
        before = set(shards.items())
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    assert _contents(folder) == _contents(tmp_path / "whole")
    assert len(CachedLatents(folder)) == 60


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    (tmp_path / ".tmp-12345678-latents-00001.safetensors").write_bytes(b"half")
    cache_latents(vae(), clips(3), tmp_path, shard=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json", "latents-00000.safetensors", "latents-00001.safetensors", "plan.json"]  # fmt: skip


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    cache_latents(vae(), clips(3), tmp_path)
    with pytest.raises(ValueError, match=r"was made with other vae \(\w{16}, not \w{16}\)"):
        cache_latents(vae(1), clips(3), tmp_path)
    with pytest.raises(ValueError, match=r"was made with other clips \(3, not 4\), dtype \(None, not float16\)"):
        cache_latents(vae(), clips(4), tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"clips and shard must be at least 1, got 0 clips and shard 256"):
        cache_latents(vae(), [], tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"clips": []}))
    with pytest.raises(ValueError, match=r"index\.json is damaged or of another format: it lacks 'statistics'"):
        CachedLatents(tmp_path)


def test_a_plan_without_shards_binds_nothing(tmp_path: Path) -> None:
    broken = [clips(1)[0]._replace(video=torch.zeros(1, 2, 8, 8))]  # two frames do not divide
    with pytest.raises(ValueError, match="frames"):
        cache_latents(vae(), broken, tmp_path, notes={"size": 3})
    assert (tmp_path / "plan.json").exists()
    cache_latents(vae(), clips(1), tmp_path, notes={"size": 4, "files": ["a", "b"]})
    for files, says in ((["a", "c"], "b, not c"), (["a"], "b, not None"), (["a", "b", "d"], "None, not d")):
        with pytest.raises(ValueError, match=rf"was made with other size \(4, not 5\), files \({says}\)"):
            cache_latents(vae(), clips(1), tmp_path, notes={"size": 5, "files": files})
