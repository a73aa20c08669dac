"""The demo from start to end: train live, sample the shipped checkpoint, judge, draw, and write it all down.

Under the output folder: ``live/`` (the run that was just trained), ``full/`` (pictures of the shipped checkpoint, or
with ``--full`` the hour-long run that makes it) and ``metrics.json``; ``judged/`` is what ``--judge`` leaves.
"""

import hashlib
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tubelet import hub
from tubelet._version import __version__
from tubelet.demo import digits
from tubelet.demo.build import FULL, Plan, build, check_folder, live_plan, prepare, resumable, run
from tubelet.demo.evaluate import (
    autoencoder_metrics,
    copying,
    held_out_loss,
    judged_clips,
    sample_like,
    sample_metrics,
    verdicts,
)
from tubelet.demo.gallery import given_frames_exact, image_to_video, text_to_video, write_all
from tubelet.demo.judge import Judge, train_judge
from tubelet.demo.metrics import direction_accuracy
from tubelet.demo.pictures import loss_curves, reconstruction_sheet
from tubelet.demo.shipped import NAME, load_model
from tubelet.demo.tasks import NAMES, do_task, judged_task, moving_clips, task_line
from tubelet.files import write_json
from tubelet.pipeline import TextToVideo
from tubelet.text import WordEncoder
from tubelet.training import History, Progress

__all__ = ["full", "judged", "live_and_shipped", "tasks"]

_MOVING = 500


def live_and_shipped(out: Path, minutes: float, seed: int, resume: bool) -> dict[str, Any]:
    """What ``tubelet demo`` does: part (a) trains from scratch, part (b) samples the shipped checkpoint.

    Args:
        out: folder for everything that is written.
        minutes: of live training; measured once into a step count that is stored with the run.
        seed: of models, data, noise and samples; a resumed run keeps its own.
        resume: go on with an interrupted live run.

    Raises:
        ValueError: an interrupted run is in ``out`` and ``resume`` is False, or there is none to resume.

    Example:
        >>> metrics = live_and_shipped(Path("runs/demo"), minutes=2.0, seed=0, resume=False)  # doctest: +SKIP
    """
    began = time.monotonic()
    check_folder(out / "live", resume)
    _greet(out)
    _say("(a) live: an autoencoder and a video DiT, built from blocks and trained from scratch")
    plan = prepare(out / "live", resume, lambda: live_plan(minutes, seed))
    _say(f"seed {plan.seed}, {plan.recipe.vae_steps} steps of the autoencoder, {plan.recipe.steps} of the video DiT")
    with resumable():
        metrics: dict[str, Any] = {"live": _live(out / "live", plan)}
        _say("(b) the full recipe's checkpoint, sampled at several durations and shapes")
        metrics |= _judged(load_model(), out / "full", plan.seed)
        metrics["seconds"] = round(time.monotonic() - began, 1)
        _finish(out, metrics, plan.seed)
    return metrics


def judged(out: Path, seed: int, checkpoint: Path | None = None) -> dict[str, Any]:
    """What ``tubelet demo --judge`` does: no training; a checkpoint's file is sampled and judged.

    The metrics beside the shipped checkpoint are those of this function on the shipped file.

    Args:
        out: pictures and ``metrics.json`` go into its folder ``judged/``.
        seed: of the judge, the held-out clips and the samples.
        checkpoint: a file of the demo's; None is the one that ships.

    Raises:
        ValueError: no such file, or a model of another world.

    Example:
        >>> metrics = judged(Path("runs/demo"), seed=0)  # doctest: +SKIP
    """
    began = time.monotonic()
    model = load_model(checkpoint)
    _check_world(model, checkpoint)
    _greet(out / "judged")
    _say(f"{checkpoint or 'the checkpoint that ships'}, sampled and judged with seed {seed}")
    metrics = _judged(model, out / "judged", seed)
    metrics["seconds"] = round(time.monotonic() - began, 1)
    _finish(out / "judged", metrics, seed)
    return metrics


def tasks(out: Path, seed: int, checkpoint: Path | None = None, samples: int = 200) -> dict[str, Any]:
    """What ``tubelet demo --tasks`` does: every task of known frames on held-out clips, judged, with pictures.

    Args:
        out: ``metrics.json`` and a folder of each task go into its folder ``tasks/``.
        seed: of the judge, the held-out clips and the samples.
        checkpoint: a file of the demo's; None is the one that ships.
        samples: clips of each task.

    Raises:
        ValueError: no such file, or a model of another world.

    Example:
        >>> metrics = tasks(Path("runs/demo"), seed=0)  # doctest: +SKIP
    """
    model, folder = load_model(checkpoint), out / "tasks"
    _check_world(model, checkpoint)
    _greet(folder)
    judge, clips = _trained_judge(seed), moving_clips(seed, samples)
    _say(f"{checkpoint or 'the checkpoint that ships'}, {samples} videos of each task, seed {seed}")
    found: dict[str, Any] = {}
    for name in NAMES:
        with _show(name)(samples, 0) as progress:
            done = do_task(model, name, clips, 10_000 + seed, tick=partial(progress.update, record={}))
        found[name] = judged_task(judge, name, done)
        write_all(folder / name, done.videos[:6], done.captions[:6])
        _say(task_line(name, found[name]))
    metrics = {"tasks": found, "seed": seed, "samples": samples, **_versions()}
    write_json(folder / "metrics.json", metrics)
    _say(f"pictures, videos and metrics.json are in {folder}")
    return metrics


def full(out: Path, seed: int, resume: bool, plan: Plan = FULL) -> dict[str, Any]:
    """What ``tubelet demo --full`` does: train by the full plan and leave the checkpoint that ships.

    What is measured is the file: the weights as they were stored, in bfloat16, and read back.

    Raises:
        ValueError: as :func:`live_and_shipped`.

    Example:
        >>> metrics = full(Path("runs/demo"), seed=0, resume=False)  # doctest: +SKIP
    """
    folder, file = out / "full", out / "full" / f"{NAME}.safetensors"
    check_folder(folder, resume, done=f"{NAME}.json")
    _greet(out)
    plan = prepare(folder, resume, lambda: plan.with_seed(seed), done=f"{NAME}.json")
    _say(f"seed {plan.seed}, {plan.recipe.vae_steps} steps of the autoencoder, {plan.recipe.steps} of the video DiT")
    with resumable():
        model = build(plan.seed)
        histories = run(model, plan, folder, _show)
        loss_curves(folder / "loss.png", histories)
        hub.save_bundle(file, model.parts(), dtype=torch.bfloat16, metadata=_versions())
        metrics = _judged(load_model(file), folder, plan.seed)
        metrics["bars"] = verdicts(metrics)
        write_json(folder / f"{NAME}.json", _record(plan, histories, metrics, file))
        _finish(out, metrics, plan.seed)
    return metrics


def _record(plan: Plan, histories: dict[str, History], metrics: dict[str, Any], file: Path) -> dict[str, Any]:
    """How a checkpoint was made and what its file scores; ``measured`` says how to repeat the latter."""
    here = {"threads": torch.get_num_threads(), **_versions()}
    command, sha256 = f"tubelet demo --judge {file.name} --seed {plan.seed}", hashlib.sha256(file.read_bytes())
    return {
        "command": f"tubelet demo --full --seed {plan.seed}",
        **here,
        "plan": plan.to_dict(),
        "measured": {"command": command, "sha256": sha256.hexdigest(), **here},
        "metrics": metrics,
        "training_seconds": {name: round(sum(history.values["seconds"])) for name, history in histories.items()},
        "first_losses": {name: history["loss"][:20] for name, history in histories.items()},
    }


def _check_world(model: TextToVideo, checkpoint: Path | None) -> None:
    """That a model knows the demo's captions and makes grey video."""
    words = {word for prompt in digits.PROMPTS for word in prompt.split()}
    assert isinstance(model.text, WordEncoder)
    if (missing := sorted(words - set(model.text.config.words))) or model.vae.config.in_channels != 1:
        lacks = f"does not know {', '.join(missing)}" if missing else "makes coloured video"
        raise ValueError(f"--judge reads drifting digits, but the model of {checkpoint} {lacks}")


def _live(folder: Path, plan: Plan) -> dict[str, Any]:
    seed, model = plan.seed, build(plan.seed)
    histories = run(model, plan, folder, _show)
    model.eval()
    denoiser = histories["denoiser"]
    metrics: dict[str, Any] = held_out_loss(model, seed)
    metrics["padding_fraction"] = sum(denoiser["padding"]) / len(denoiser["padding"])
    metrics["tokens_per_s"] = sum(denoiser["tokens"]) / sum(denoiser["seconds"])
    metrics["autoencoder"] = autoencoder_metrics(model, seed)
    metrics["steps"] = {name: len(history["loss"]) for name, history in histories.items()}
    baseline = ("best per-element linear predictor", metrics["linear_predictor_loss"])
    loss_curves(folder / "loss.png", histories, baselines={"denoiser": baseline})
    hub.save_bundle(folder / "checkpoint.safetensors", model.parts(), metadata=_versions())
    prompts, videos = text_to_video(model, seed)
    write_all(folder / "samples", videos, prompts)
    _reconstructions(model, folder, seed)
    write_json(folder / "metrics.json", metrics)
    return metrics


def _judged(model: TextToVideo, folder: Path, seed: int) -> dict[str, Any]:
    """Pictures and judgement of a trained model."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, videos = text_to_video(model, seed)
    write_all(folder / "samples", videos, prompts)
    clips, moved = image_to_video(model, seed)
    write_all(folder / "image-to-video", moved[:6], [clip.caption for clip in clips[:6]])
    _reconstructions(model, folder, seed)
    judge = _trained_judge(seed)
    real = judged_clips(seed, _MOVING)
    with _show("sample")(len(real), 0) as progress:
        samples = sample_like(model, real, 10_000 + seed, tick=lambda done: progress.update(done, {}))
    captions = [clip.caption for clip in clips]
    followed = {"direction_accuracy": direction_accuracy(moved, captions)._asdict()}
    return {
        "autoencoder": autoencoder_metrics(model, seed),
        "samples": sample_metrics(judge, samples, real, seed),
        "image_to_video": given_frames_exact(clips, moved) | followed,
        "sizes": sorted({tuple(video.shape[1:]) for video in [*videos, *samples]}),
    }


def _trained_judge(seed: int) -> Judge:
    with _show("judge")(1, 0) as progress:
        judge = train_judge(seed)
        progress.update(1, {})
    return judge


def _reconstructions(model: TextToVideo, folder: Path, seed: int) -> None:
    clips = digits.batch("held_out", seed, 0, 10)
    with torch.no_grad():
        again = [model.vae(clip.video[None])[0].clamp(-1, 1) for clip in clips]
    captions = [clip.caption for clip in clips]
    reconstruction_sheet(folder / "reconstructions.png", [clip.video for clip in clips], again, captions)


def _finish(out: Path, metrics: dict[str, Any], seed: int) -> None:
    metrics["bars"] = verdicts(metrics)
    metrics |= {"seed": seed, **_versions()}
    write_json(out / "metrics.json", metrics)
    for name, found in metrics["bars"].items():
        _say(f"  {'pass' if found['passes'] else 'MISS'}  {name:<42} {found['value']:.4g}  ({found['bar']})")
    if "samples" in metrics:
        for line in copying(metrics["samples"]["memorised"]).split("\n"):
            _say(f"  note  {line}")
    _say(f"pictures, videos and metrics.json are in {out}")


def _greet(out: Path) -> None:
    _say(f"tubelet {__version__}: {torch.get_num_threads()} threads, writing to {out}")


def _versions() -> dict[str, str]:
    return {"tubelet": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _show(title: str) -> Callable[[int, int], Progress]:
    return lambda steps, start: Progress(steps, start=start, title=title)


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
