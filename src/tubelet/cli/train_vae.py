"""``tubelet train-vae``: a video autoencoder, trained on a folder of clips."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.cli.arguments import count, existing, folder, number, positive, share
from tubelet.cli.cpu import flushed_denormals
from tubelet.cli.kept import check_kept
from tubelet.files import parsing, write_json

__all__ = ["add", "run"]

_LOSSES = ("l1", "kl", "lpips", "frames_weight", "clips_weight", "adversarial_from")
_KEPT = ("config", "vae", "size", "frames", "batch", "lr", "muon_lr", *_LOSSES, "seed", "images")
_PER_START, _PER_STATISTICS = 16, 8  # batches
_SHOWN = 4  # clips on a sheet
_RUN, _CHECKPOINT, _DONE = "run.json", "vae.run.safetensors", "report.json"

_EXAMPLE = """example:
  tubelet train-vae --clips videos/ --judge held-out/ --size 64 --minutes 15 --out runs/vae

Clips are decoded once, and random squares of random windows are trained on. Ctrl-C leaves a checkpoint: --resume goes
on with it. What is trained lies in runs/vae/autoencoder, for tubelet.hub.load and
  tubelet cache-latents --clips videos/ --vae runs/vae/autoencoder"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "train-vae",
        help="train a video autoencoder on a folder of clips",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=existing, required=True, metavar="DIR", help="folder of videos to train on")
    parser.add_argument("--judge", type=existing, metavar="DIR", help="clips to judge on; default those of --clips")
    parser.add_argument("--images", type=existing, metavar="DIR", help="images, or videos as images: 1 step in 5")
    made = parser.add_mutually_exclusive_group()
    made.add_argument(
        "--config", default="principal_vae", metavar="C", help="a preset or a JSON file; default principal_vae"
    )
    made.add_argument("--vae", metavar="DIR", help="train a saved autoencoder further")
    parser.add_argument("--size", type=count, default=64, help="side of the crops in pixels; default 64")
    parser.add_argument("--frames", type=count, default=17, help="of a crop; default 17")
    parser.add_argument("--batch", type=count, default=16, help="crops in a step; default 16")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive, help="of training; default 15")
    length.add_argument("--steps", type=count, help="of training, instead of minutes")
    parser.add_argument("--lr", type=positive, default=1e-3, help="peak rate of AdamW; default 0.001")
    parser.add_argument("--muon-lr", type=positive, default=0.01, help="peak rate of Muon; default 0.01")
    parser.add_argument("--l1", type=share, default=0.0, help="share of the absolute error in the loss; default 0")
    parser.add_argument("--kl", type=share, default=1e-6, help="weight of the divergence; default 1e-6")
    parser.add_argument("--lpips", type=share, default=0.0, help="weight of the perceptual distance; default 0")
    parser.add_argument(
        "--lpips-weights", type=existing, metavar="FILE", help="lpips.safetensors of scripts/metric_weights.py"
    )
    for name in ("frames", "clips"):
        parser.add_argument(
            f"--{name}-weight", type=share, default=0.0, help=f"of a discriminator of {name}; default 0: none"
        )
    parser.add_argument(
        "--adversarial-from", type=count, metavar="STEP", help="when discriminators begin; default halfway"
    )
    parser.add_argument("--save-every", type=count, default=250, metavar="N", help="steps between saves; default 250")
    parser.add_argument("--seed", type=number, default=0, help="default 0")
    parser.add_argument("--out", type=folder, default=Path("runs/vae"), metavar="DIR", help="default runs/vae")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.set_defaults(run=run)


@flushed_denormals()
def run(arguments: argparse.Namespace) -> None:
    """Train, and write ``autoencoder/``, ``report.json``, ``loss.png`` and pictures of reconstructions.

    Raises:
        ValueError: nothing usable in a folder, a damaged file, sizes that the autoencoder does not divide or that
            are too small to judge, nothing to resume, a run that was begun with other options, or an ``--out`` in use.

    Example:
        >>> callable(run)
        True
    """
    from tubelet import hub
    from tubelet.cli.reconstructions import judged, write_reconstructions
    from tubelet.demo.build import resumable
    from tubelet.demo.pictures import loss_curves
    from tubelet.training import Progress
    from tubelet.vae_recipe import measure_latents, train_on_crops

    out: Path = arguments.out
    began = time.process_time()
    _check_folders(arguments)
    _check_sizes(arguments)
    vae = _made(arguments)
    batch, files = _batches(arguments, vae)
    clips = judged(arguments.judge or arguments.clips, arguments.frames, arguments.size)
    distance = _distance(arguments)
    recipe = _recipe(arguments, files, vae, batch)

    def show(done: int, model: nn.Module) -> None:
        scores = write_reconstructions(out / f"step-{done:06d}", model, clips[:_SHOWN])
        print(f"step {done}: {scores}")

    with resumable():
        history = train_on_crops(
            vae,
            batch,
            recipe,
            distance=distance,
            checkpoint=out / _CHECKPOINT,
            on_save=show,
            on_progress=lambda steps, start: Progress(steps, start=start, title="autoencoder"),
        )
        seen = measure_latents(vae, (batch(recipe.steps + i) for i in range(_PER_STATISTICS)))
        scores = write_reconstructions(out / "reconstructions", vae, clips)
        report = {
            "parameters": sum(p.numel() for p in vae.parameters()),
            "steps": recipe.steps,
            "cpu_seconds": round(time.process_time() - began, 1),
            "clips": scores.clips,
            "latent_mean": seen.mean.tolist(),
            "latent_std": seen.std.tolist(),
        }
        loss_curves(out / "loss.png", {"autoencoder": history})
        noted = {"steps": recipe.steps, "seed": recipe.seed, "clips": len(files)}
        hub.save(vae, out / "autoencoder", metadata=noted)
        write_json(out / _DONE, report)
    print(f"{out}: autoencoder, report.json, loss.png, reconstructions.png, reconstructions.gif")
    print(scores)


def _check_folders(arguments: argparse.Namespace) -> None:
    """Before anything is read: folders are folders, and ``--out`` is free or to be resumed."""
    for name in ("clips", "judge", "images"):
        path = getattr(arguments, name)
        if path is not None and not path.is_dir():
            raise ValueError(f"--{name} must be a folder, got the file {path}")
    begun, out = arguments.out / _RUN, arguments.out
    if arguments.resume and not begun.exists():
        raise ValueError(f"--resume: there is no run in {out}")
    if not arguments.resume and (out / _DONE).exists():
        raise ValueError(f"{out} holds a finished run: name another folder with --out, or empty this one")
    if not arguments.resume and begun.exists():
        raise ValueError(f"{out} holds an interrupted run: go on with --resume, or name another folder with --out")


def _check_sizes(arguments: argparse.Namespace) -> None:
    """Crops are as large as everything that judges them needs."""
    from tubelet.metrics.frames import SSIM_SIDE
    from tubelet.metrics.lpips import VGG_SIDE
    from tubelet.vae_recipe import AutoencoderRecipe, least_side

    needs = {
        "SSIM": SSIM_SIDE,
        "the perceptual distance": VGG_SIDE * bool(arguments.lpips),
        "discriminators": least_side(AutoencoderRecipe(steps=1, **_given(arguments))),
    }
    judge = max(needs, key=needs.__getitem__)
    if arguments.size < needs[judge]:
        raise ValueError(f"--size must be at least {needs[judge]} for {judge}, got {arguments.size}")


def _made(arguments: argparse.Namespace) -> Any:
    """The autoencoder before its first step, whose sizes fit."""
    from tubelet import hub
    from tubelet.cli.autoencoders import autoencoder

    if arguments.vae is not None:
        vae: Any = hub.load(arguments.vae)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            vae = autoencoder(arguments.config)
    if not hasattr(vae, "set_latent_stats"):
        raise ValueError(f"{type(vae).__name__} cannot be trained here: it has no latents with statistics")
    if vae.config.in_channels != 3:
        raise ValueError(f"the autoencoder must take 3 channels, but takes {vae.config.in_channels}")
    vae.config.factors.check(arguments.frames, arguments.size, arguments.size, start=True)
    if arguments.images is not None:
        vae.config.factors.check(1, arguments.size, arguments.size, start=True)
    with torch.no_grad():
        posterior = vae.encode(torch.zeros(1, 3, arguments.frames, arguments.size, arguments.size))
    if not hasattr(posterior, "kl"):
        raise ValueError(
            f"{type(vae).__name__} cannot be trained here: its posterior, a {type(posterior).__name__}, is no Gaussian"
        )
    return vae.train()


def _batches(arguments: argparse.Namespace, vae: Any) -> tuple[Callable[[int], Float[Tensor, "b 3 t h w"]], list[str]]:
    """The batch of each step, and the names of the files behind it."""
    from tubelet.data import RandomCrops
    from tubelet.training import interleave

    clips = RandomCrops(arguments.clips, frames=arguments.frames, size=arguments.size, seed=arguments.seed)
    names = [file.name for file in clips.files]
    if arguments.images is None:
        return lambda step: clips.batch(step, arguments.batch), names
    images = RandomCrops(arguments.images, frames=1, size=arguments.size, seed=arguments.seed + 1)
    many = arguments.batch * vae.latent_grid(arguments.frames, arguments.size, arguments.size).t

    def batch(step: int) -> Float[Tensor, "b 3 t h w"]:
        source, turn = interleave(arguments.seed, step, (1, 4))
        return clips.batch(turn, arguments.batch) if source else images.batch(turn, many)

    return batch, names + [file.name for file in images.files]


def _distance(arguments: argparse.Namespace) -> nn.Module | None:
    """The perceptual distance that is asked for."""
    from tubelet.metrics import LPIPS, load_weights

    if bool(arguments.lpips) != (arguments.lpips_weights is not None):
        raise ValueError(
            f"--lpips and --lpips-weights go together, got {arguments.lpips} and {arguments.lpips_weights}"
        )
    return load_weights(LPIPS(), arguments.lpips_weights) if arguments.lpips else None


def _recipe(arguments: argparse.Namespace, files: list[str], vae: Any, batch: Any) -> Any:
    """How long to train: of a new run asked for or measured, and noted; of a resumed one what was noted.

    An autoencoder that can start from data does so here, unless a checkpoint holds its weights.
    """
    from tubelet.vae.families import PrincipalAutoencoder, start_from
    from tubelet.vae_recipe import AutoencoderRecipe, steps_in

    given = _given(arguments)
    kept = {name: getattr(arguments, name) for name in _KEPT}
    asked = json.loads(json.dumps(kept, default=str)) | {"files": files}
    path, checkpoint = arguments.out / _RUN, arguments.out / _CHECKPOINT
    if not arguments.resume:
        checkpoint.unlink(missing_ok=True)
    if not checkpoint.exists() and isinstance(vae, PrincipalAutoencoder) and arguments.vae is None:
        if arguments.frames == 1:
            raise ValueError(f"--frames must be above 1: {type(vae).__name__} starts from videos, got --frames 1")
        start_from(vae, _clips_of(batch, _PER_START))
    if arguments.resume:
        with parsing(path):
            begun = json.loads(path.read_text())
            check_kept(begun, asked, _KEPT)
            lengths = {name: getattr(arguments, name) for name in ("steps", "minutes")}
            check_kept(
                {"minutes": None} | begun, lengths, [name for name, length in lengths.items() if length is not None]
            )
        if begun["files"] != files:
            then, now = (", ".join(names) for names in (begun["files"], files))
            raise ValueError(f"--resume: the run was begun with other clips: {then} then, {now} now")
        return _from(AutoencoderRecipe(steps=begun["steps"], **given), arguments)
    steps = arguments.steps
    if steps is None:
        steps = steps_in(arguments.minutes or 15.0, vae, batch, AutoencoderRecipe(steps=1, **given))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked | {"steps": steps, "minutes": arguments.minutes})
    return _from(AutoencoderRecipe(steps=steps, **given), arguments)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the recipe takes from the options."""
    given = {name: getattr(arguments, name) for name in ("seed", "lr", "muon_lr", "l1", "kl", "lpips", "save_every")}
    return given | {"frames": arguments.frames_weight, "clips": arguments.clips_weight}


def _from(recipe: Any, arguments: argparse.Namespace) -> Any:
    """The recipe with the step from which discriminators count."""
    begin = arguments.adversarial_from
    return replace(recipe, adversarial_from=recipe.steps // 2 if begin is None else begin)


def _clips_of(batch: Callable[[int], Tensor], many: int) -> Iterator[Float[Tensor, "b 3 t h w"]]:
    return (batch(step) for step in range(many))
