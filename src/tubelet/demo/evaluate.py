"""What the demo measures: the autoencoder, the live run's loss, and samples judged by what never saw their training.

The result is plain JSON values with the bar that each must pass beside it. Videos are ``(1, T, H, W)`` in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.demo import digits
from tubelet.demo.judge import Judge
from tubelet.demo.metrics import (
    Memorised,
    digit_accuracy,
    direction_accuracy,
    diversity,
    linear_predictor_loss,
    memorised,
)
from tubelet.demo.reconstruction import BlockPCA, compression, psnr_db
from tubelet.diffusion import Process
from tubelet.layout import Rows
from tubelet.pipeline import LatentBatch, TextToVideo, decode_latents, encode_videos, generate
from tubelet.recipe import encode_clips

__all__ = [
    "BARS",
    "autoencoder_metrics",
    "copying",
    "held_out_loss",
    "judged_clips",
    "sample_like",
    "sample_metrics",
    "verdicts",
]

BARS: dict[str, tuple[str, float]] = {
    "samples.digit_accuracy.lower": ("at least", 0.90),
    "samples.direction_accuracy.lower": ("at least", 0.95),
    "samples.diversity": ("at least", 0.7),
    "autoencoder.psnr_db": ("at least", 24.0),
    "autoencoder.psnr_above_block_pca_db": ("at least", 0.0),
    "autoencoder.compression": ("at least", 8.0),
    "image_to_video.given_frame_exact": ("at least", 1.0),
    "live.padding_fraction": ("at most", 0.02),
    "live.loss_over_linear_predictor": ("at most", 1.0),
}
"""Which number, on which side of which bar. Example: ``BARS["samples.diversity"]``."""

_TIMES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)


def autoencoder_metrics(model: TextToVideo, seed: int, clips: int = 256) -> dict[str, float]:
    """Foreground PSNR on held-out clips, against block PCA with as many coefficients, and the compression.

    Example:
        >>> from tubelet.demo.build import build
        >>> sorted(autoencoder_metrics(build(0), seed=0, clips=8))
        ['block_pca_psnr_db', 'compression', 'psnr_above_block_pca_db', 'psnr_db']
    """
    videos = [clip.video for clip in digits.batch("held_out", seed, 0, clips)]
    latents = encode_videos(model.vae, videos)
    ours = psnr_db(videos, decode_latents(model.vae, latents))
    train = [clip.video for clip in digits.batch("train", seed, 0, 2 * clips)]
    pca = BlockPCA.fit(train, model.vae.config.latent_channels)
    theirs = psnr_db(videos, [pca.reconstruct(video) for video in videos])
    return {
        "psnr_db": ours,
        "block_pca_psnr_db": theirs,
        "psnr_above_block_pca_db": ours - theirs,
        "compression": compression(videos, latents),
    }


@torch.no_grad()
def held_out_loss(model: TextToVideo, seed: int, clips: int = 256) -> dict[str, float]:
    """The velocity loss on held-out clips at fixed noise levels, and that of the best per-element linear predictor.

    There are as many clips of each size.

    Example:
        >>> from tubelet.demo.build import build
        >>> sorted(held_out_loss(build(0), seed=0, clips=32))
        ['linear_predictor_loss', 'loss', 'loss_over_linear_predictor']
    """
    each = max(2, clips // len(digits.SIZES))
    shown = [clip for size, _ in digits.SIZES for clip in digits.batch("held_out", seed, 0, each, size)]
    data = encode_clips(model.vae, [clip.video for clip in shown], [clip.caption for clip in shown])
    patch, process = model.denoiser.config.patch, Process()
    generator, losses = torch.Generator().manual_seed(seed), []
    for time in _TIMES:
        for start in range(0, len(shown), 64):
            batch = data.batch(range(start, min(start + 64, len(shown))), patch)
            losses.append((_loss_at(model, batch, time, process, generator), batch.patches.numel()))
    loss = sum(value * weight for value, weight in losses) / sum(weight for _, weight in losses)
    linear = linear_predictor_loss(data.latents, torch.tensor(_TIMES))
    return {"loss": loss, "linear_predictor_loss": linear, "loss_over_linear_predictor": loss / linear}


def _loss_at(
    model: TextToVideo, batch: LatentBatch, time: float, process: Process, generator: torch.Generator
) -> float:
    index, t = batch.layout.on("cpu"), Rows(torch.tensor([time]))
    noise = torch.randn(batch.patches.shape, generator=generator)
    text = model.text(batch.prompts)
    noisy = process.noise(batch.patches, noise, t)
    prediction = model.denoiser(noisy, t, text.tokens, index, text.layout)
    return float(process.loss(prediction, batch.patches, noise, t))


def judged_clips(seed: int, moving: int) -> list[digits.Clip]:
    """The held-out clips up to the one that is number ``moving`` of those that drift: so many for every bar, or more.

    About a fifth of the clips are stills, which have no direction to judge.

    Example:
        >>> clips = judged_clips(seed=0, moving=8)
        >>> len(clips), sum(clip.direction is not None for clip in clips)
        (9, 8)
    """
    clips: list[digits.Clip] = []
    while missing := moving - sum(clip.direction is not None for clip in clips):
        clips += digits.batch("held_out", seed, len(clips), missing)
    return clips


def sample_like(
    model: TextToVideo,
    clips: Sequence[digits.Clip],
    seed: int,
    *,
    first_frames: bool = False,
    steps: int = 20,
    guidance: float = 2.0,
    tick: Callable[[int], None] | None = None,
) -> list[Float[Tensor, "1 _ _ _"]]:
    """One sample for each real clip, with its caption and size, and its first frame where asked.

    Example:
        >>> from tubelet.demo.build import build
        >>> clips = digits.batch("held_out", 0, 0, 2, (1, 16, 16))
        >>> [v.shape for v in sample_like(build(0), clips, seed=0, steps=1)]
        [torch.Size([1, 1, 16, 16]), torch.Size([1, 1, 16, 16])]
    """
    made: list[Tensor] = []
    for start in range(0, len(clips), 64):
        chosen = clips[start : start + 64]
        with torch.autocast("cpu", torch.bfloat16):
            videos = generate(
                model,
                [clip.caption for clip in chosen],
                [(clip.video.shape[1], clip.video.shape[2], clip.video.shape[3]) for clip in chosen],
                [seed + start + i for i in range(len(chosen))],
                prefixes=[clip.video[:, :1] if first_frames else None for clip in chosen],
                steps=steps,
                guidance=guidance,
            )
        made += [video.float() for video in videos]
        if tick is not None:
            tick(len(made))
    return made


def sample_metrics(
    judge: Judge, samples: Sequence[Float[Tensor, "1 _ _ _"]], real: Sequence[digits.Clip], seed: int
) -> dict[str, Any]:
    """Accuracies with their lower 95 % bounds, diversity and copying, beside the judge's scores of the real clips.

    Example:
        >>> clips = digits.batch("held_out", 0, 0, 60)
        >>> found = sample_metrics(Judge(), [clip.video for clip in clips], clips, seed=0)
        >>> found["diversity"], found["direction_accuracy"]["value"]
        (1.0, 1.0)
    """
    videos, captions = [clip.video for clip in real], [clip.caption for clip in real]
    labels = torch.tensor([clip.digit for clip in real])
    train = [clip.video for clip in digits.batch("train", seed, 0, 4000, (1, 24, 24))]
    copied = memorised(samples, train, videos)
    return {
        "digit_accuracy": digit_accuracy(judge, samples, captions)._asdict(),
        "direction_accuracy": direction_accuracy(samples, captions)._asdict(),
        "judge_on_real": {
            "digit_accuracy": digit_accuracy(judge, videos, captions)._asdict(),
            "direction_accuracy": direction_accuracy(videos, captions)._asdict(),
        },
        "diversity": diversity(judge.features(samples), labels, judge.features(videos), labels),
        "memorised": copied._asdict(),
    }


def copying(memorised: Mapping[str, float]) -> str:
    """What :func:`~tubelet.demo.metrics.memorised` found, beside what real held-out clips score by construction.

    Example:
        >>> print(copying({"beyond_median": 0.59, "beyond_fifth_percentile": 0.127}))
        nearer to a training clip than the median held-out clip: 59 % of samples, 50 % of held-out clips
        nearer than the nearest 5 % of held-out clips: 13 % of samples, 5 % of held-out clips
    """
    median, fifth = (f"{100 * memorised[name]:.0f} % of samples" for name in Memorised._fields)
    return (
        f"nearer to a training clip than the median held-out clip: {median}, 50 % of held-out clips\n"
        f"nearer than the nearest 5 % of held-out clips: {fifth}, 5 % of held-out clips"
    )


def verdicts(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar that the metrics hold a number for: the number, the bar and whether it passes.

    Example:
        >>> verdicts({"samples": {"diversity": 0.8}})
        {'samples.diversity': {'value': 0.8, 'bar': 'at least 0.7', 'passes': True}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, (side, bar) in BARS.items():
        value: Any = metrics
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            passes = value >= bar if side == "at least" else value <= bar
            found[name] = {"value": value, "bar": f"{side} {bar:g}", "passes": bool(passes)}
    return found
