"""A second phase for the eye: an autoencoder of real clips trained on with LPIPS and a discriminator of frames.

``polish`` goes on from what ``scripts/real_clips.py judge`` trained, on the same clips, and compares both on the clips
that neither saw, over all frames; ``look`` compares alone. It says PSNR, SSIM, LPIPS with its published weights
(``scripts/metric_weights.py``), and how sharp both are, as shares of the originals' energy: of the differences of
neighbouring pixels, and at high spatial frequencies. CPU seconds are those of the whole training command.

    python scripts/polish_clips.py polish clips weights/lpips.safetensors --before runs/real-clips --out runs/polished
    python scripts/polish_clips.py look clips weights/lpips.safetensors --json result.json --picture polished.png
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from real_clips import SIDES, fitting, train
from torch import Tensor

from tubelet import hub
from tubelet.bench.device import environment
from tubelet.data import read_video, write_contact_sheet
from tubelet.files import write_json
from tubelet.metrics import LPIPS, load_weights, psnr, ssim

PHASE = ("--steps", "400", "--batch", "8", "--lr", "3e-4", "--muon-lr", "2e-3", "--l1", "1", "--lpips", "0.5")
PHASE += ("--frames-weight", "0.3", "--adversarial-from", "50")
_AT_ONCE = 8  # frames that LPIPS sees together
_SHOWN = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Polish or look; exit status 1 where LPIPS did not fall on every clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("polish", "look"), help="train, then look; or look alone")
    parser.add_argument("folder", type=Path, help="as real_clips.py fetch made it")
    parser.add_argument("weights", type=Path, help="lpips.safetensors")
    parser.add_argument("--before", type=Path, default=Path("runs/real-clips"))
    parser.add_argument("--out", type=Path, default=Path("runs/polished"))
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("--picture", type=Path, help="write film strips there")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "polish":
        phase = ["--vae", str(arguments.before / "autoencoder"), "--lpips-weights", str(arguments.weights), *PHASE]
        train(arguments.folder, arguments.out, [*phase, *rest])
    elif rest:
        parser.error(f"look takes no {' '.join(rest)}")
    runs = {"before": arguments.before, "after": arguments.out}
    distance = load_weights(LPIPS(), arguments.weights)
    result = look(arguments.folder, runs, distance, picture=arguments.picture)
    print(table(result))
    if arguments.json is not None:
        write_json(arguments.json, result)
    return 0 if all(clip["after"]["lpips"] < clip["before"]["lpips"] for clip in result["clips"]) else 1


@torch.no_grad()
def look(
    folder: Path,
    runs: dict[str, Path],
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    picture: Path | None = None,
    sides: Sequence[int] = SIDES,
) -> dict[str, Any]:
    """What each run makes of ``folder/held``."""
    vaes = {name: hub.load(path / "autoencoder").eval() for name, path in runs.items()}
    clips: list[dict[str, Any]] = []
    shown, labels = [], []
    for path in sorted((folder / "held").iterdir()):
        for side in sides:
            video = fitting(read_video(path, size=(side, side)), vaes["before"])
            made = {name: vae(video).clamp(-1, 1) for name, vae in vaes.items()}
            scores = {name: seen(distance, video, each) for name, each in made.items()}
            clips.append({"clip": path.name, "side": side, "frames": video.shape[2], **scores})
            if side == max(sides):
                shown += [video[0], *(each[0] for each in made.values())]
                labels += ["original", *(f"{name}, LPIPS {scores[name]['lpips']:.3f}" for name in made)]
    if picture is not None:
        write_contact_sheet(picture, shown, columns=len(made) + 1, labels=labels, frames=_SHOWN)
    report, begun = (json.loads((runs["after"] / name).read_text()) for name in ("report.json", "run.json"))
    options = {name: value for name, value in begun.items() if name not in ("files", "vae", "images")}
    return {
        "environment": environment(torch.device("cpu")),
        "options": options,
        "cpu_seconds": report["cpu_seconds"],
        "clips": clips,
    }


@torch.no_grad()
def seen(distance: Callable[[Tensor, Tensor], Tensor], video: Tensor, made: Tensor) -> dict[str, float]:
    """How near one is to the other, and how sharp."""
    frames = video.shape[2]
    parts = zip(made.split(_AT_ONCE, 2), video.split(_AT_ONCE, 2), strict=True)
    lpips = sum(float(distance(own, original)) * own.shape[2] for own, original in parts) / frames
    return {
        "psnr": float(psnr(video, made)),
        "ssim": float(ssim(video, made)),
        "lpips": lpips,
        "edges": edges(made) / edges(video),
        "detail": detail(made) / detail(video),
    }


def edges(video: Tensor) -> float:
    """The energy of differences of neighbouring pixels' light."""
    light = video.mean(1)
    return float(light.diff(dim=-1).square().mean() + light.diff(dim=-2).square().mean())


def detail(video: Tensor) -> float:
    """The energy of light at spatial frequencies of a quarter of a cycle a pixel and above, along either axis."""
    light = video.mean(1)
    rows, columns = torch.fft.fftfreq(light.shape[-2]).abs(), torch.fft.rfftfreq(light.shape[-1])
    energy = torch.fft.rfft2(light, norm="ortho").abs().square()
    return float(energy[..., torch.maximum(rows[:, None], columns) >= 0.25].mean())


def table(result: dict[str, Any]) -> str:
    """The result in lines."""
    names = ("psnr", "ssim", "lpips", "edges", "detail")
    lines = [f"{result['options']['steps']} steps, {result['cpu_seconds']:.0f} CPU seconds"]
    lines.append(f"{'clip':24}{'side':>5}{'frames':>7}" + "".join(f"{name:>16}" for name in names))
    for clip in result["clips"]:
        cells = (f"{clip['before'][name]:.3f} {clip['after'][name]:.3f}" for name in names)
        lines.append(f"{clip['clip']:24}{clip['side']:5}{clip['frames']:7}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
