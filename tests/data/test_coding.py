"""Files through an autoencoder: clips equal to the whole file, sizes that do not divide, constant memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tubelet.bench.memory import peak_bytes
from tubelet.data import coding, decode_file, encode_file, probe_video, read_clips, read_video, write_clips, write_video
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig


@pytest.fixture(scope="module")
def vae() -> CausalAutoencoder:
    torch.manual_seed(0)
    config = CausalAutoencoderConfig(in_channels=3, latent_channels=3, widths=(4, 6), depths=(1, 1))
    model = CausalAutoencoder(config)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.reset_parameters()
    return model.eval()


def moving(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("clip", [1, 3, 7, 100])
def test_clips_are_the_file(tmp_path: Path, real: dict[str, Path], clip: int) -> None:
    options = {"fps": 12.5, "size": (32, 48), "gray": True, "start": 1.0}
    whole = read_video(real["bikes"], frames=7 * 3, **options)
    clips = []
    for part in read_clips(real["bikes"], clip, **options):
        clips.append(part)
        if sum(each.shape[1] for each in clips) >= 21:
            break
    assert torch.equal(torch.cat(clips, 1)[:, :21], whole)
    with pytest.raises(ValueError, match=r"frames must be at least 1, got 0"):
        next(read_clips(real["bikes"], 0))


def test_written_clips_are_the_written_whole(tmp_path: Path) -> None:
    video = moving(11, 15, 21)
    write_video(tmp_path / "whole.mp4", video, fps=10)
    write_clips(tmp_path / "clips.mp4", video.split(4, 1), fps=10)
    assert torch.equal(read_video(tmp_path / "clips.mp4"), read_video(tmp_path / "whole.mp4"))
    with pytest.raises(ValueError, match=r"clips must hold at least one, got none"):
        write_clips(tmp_path / "none.mp4", [])
    with pytest.raises(ValueError, match=r"clips must have one size, got \(15, 21\) and \(16, 21\)"):
        write_clips(tmp_path / "none.mp4", [video, moving(3, 16, 21)])
    with pytest.raises(ValueError, match=r"path must end in \.mp4, got '.*none\.gif'"):
        write_clips(tmp_path / "none.gif", [video])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.mp4", "whole.mp4"]


@pytest.mark.parametrize(("frames", "clip"), [(9, 4), (10, 3), (12, 17), (1, 5)])
def test_a_file_is_encoded_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: CausalAutoencoder, frames: int, clip: int
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving(frames, 18, 28), fps=8)
    parts = list(encode_file(vae, path, clip=clip))
    with torch.no_grad():
        whole = vae.encode(vae.config.factors.padded(read_video(path)[None]))
    streamed = torch.cat([part.mode() for part in parts], 2)
    assert not streamed.requires_grad
    torch.testing.assert_close(streamed, whole.mode(), rtol=1e-5, atol=1e-6)
    decode_file(vae, streamed.split(1, 2), tmp_path / "b.mp4", fps=8, size=(frames, 18, 28))
    info = probe_video(tmp_path / "b.mp4")
    assert (info.frames, info.height, info.width) == (frames, 18, 28)
    written: list[torch.Tensor] = []
    monkeypatch.setattr(coding, "write_clips", lambda path, clips, fps: written.extend(clips))  # before compression
    decode_file(vae, streamed.split(2, 2), tmp_path / "b.mp4", fps=8, size=(frames, 18, 28))
    with torch.no_grad():
        expected = vae.decode(streamed)[0, :, :frames, :18, :28]
    torch.testing.assert_close(torch.cat(written, 1), expected, rtol=1e-5, atol=1e-6)


def test_gradients_stay_as_the_caller_has_them(tmp_path: Path, vae: CausalAutoencoder) -> None:
    write_video(tmp_path / "a.mp4", moving(9, 16, 16), fps=8)
    for _ in encode_file(vae, tmp_path / "a.mp4", clip=4):
        assert torch.is_grad_enabled()


def test_memory_does_not_grow_with_the_file(tmp_path: Path, vae: CausalAutoencoder) -> None:
    def peak(frames: int) -> int:
        path = tmp_path / f"{frames}.mp4"
        write_clips(path, (moving(8, 32, 32) for _ in range(frames // 8)), fps=8)

        def latents() -> Iterator[torch.Tensor]:
            for part in encode_file(vae, path, clip=8):
                yield part.mode()

        return peak_bytes(lambda: decode_file(vae, latents(), tmp_path / "out.mp4"), torch.device("cpu"))[0] or 0

    assert peak(24) == peak(96) > 0
