"""The recipe that trains a video autoencoder on crops of real clips, and what is measured of it afterwards.

It is a few lines around :func:`tubelet.training.fit`: data and noise are pure functions of the seed and the step, so
that a run that is stopped and resumed equals one that never was. The loss is the error of the pixels plus the
posterior's divergence from the normal (arXiv:1312.6114; small, as in latent diffusion, arXiv:2112.10752, appendix G).
A perceptual distance and discriminators of frames and of clips may be added (:mod:`tubelet.vae.objectives`). Matrices
and kernels inside blocks and residual branches are trained with Muon, everything else with AdamW. Matrix products run
in bfloat16, losses and weights are float32. What is kept is a moving average of the weights.

Shapes: videos ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)``.
"""

import copy
import io
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.metrics import psnr, ssim
from tubelet.training import (
    EMA,
    Checkpoint,
    History,
    MuonAdamW,
    Progress,
    fit,
    set_lr,
    step_generator,
    warmup_cosine,
)
from tubelet.vae import ChannelStatistics, bicubic_code, kl_loss, reconstruction_loss
from tubelet.vae.blocks import FrameUngroups
from tubelet.vae.objectives import (
    Adversary,
    LossPhase,
    LossSchedule,
    Objective,
    PatchDiscriminator,
    Reconstruction,
    perceptual_loss,
    reconstruct,
    training_step,
)

__all__ = ["AutoencoderRecipe", "compare", "least_side", "measure_latents", "steps_in", "train_on_crops"]

Batch = Callable[[int], Float[Tensor, "b c T H W"]]

_TRIAL = 3
_RAMP = 100  # steps in which an adversary comes to its weight
_FRAMES = 2  # of each clip, that the perceptual distance sees
_LEAST_STD = 1e-4


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Everything that a training run depends on beside the autoencoder and the data.

    Args:
        steps: length of the run.
        seed: of the posterior's noise.
        lr, muon_lr: peak rates of AdamW and Muon, reached in ``warmup`` steps; half a cosine goes down to 0.
        warmup: steps.
        l1: share of the absolute error in that of the pixels; the rest is the squared error.
        kl: weight of the posterior's divergence from the normal, nats per latent number.
        lpips: weight of the perceptual distance, of two frames of each clip.
        frames, clips: weights of discriminators of frames and of clips, whose gradient at the decoder's last layer is
            first made as long as that of the rest; they learn and count from step ``adversarial_from`` on.
        ema: decay of the weights' average.
        bf16: run matrix products in bfloat16 (autocast).
        save_every: steps between checkpoints.

    Raises:
        ValueError: a length or rate that is not positive, a share outside [0, 1], or a weight that is negative.

    Example:
        >>> AutoencoderRecipe(steps=1000).warmup
        50
    """

    steps: int
    seed: int = 0
    lr: float = 1e-3
    muon_lr: float = 0.01
    warmup: int = 50
    l1: float = 0.0
    kl: float = 1e-6
    lpips: float = 0.0
    frames: float = 0.0
    clips: float = 0.0
    adversarial_from: int = 0
    ema: float = 0.998
    bf16: bool = True
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "muon_lr", "save_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("kl", "warmup", "lpips", "frames", "clips", "adversarial_from"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.l1 <= 1:
            raise ValueError(f"l1 must lie in [0, 1], got {self.l1}")

    @property
    def schedule(self) -> LossSchedule:
        """The weights of the losses by step: pixels, divergence and perceptual distance, then the adversaries too."""
        weights = {"pixels": 1.0, "kl": self.kl, "lpips": self.lpips}
        first = {name: weight for name, weight in weights.items() if weight}
        adversaries = {name: weight for name in ("frames", "clips") if (weight := getattr(self, name))}
        if not adversaries:
            return LossSchedule((LossPhase(0, first),))
        if not self.adversarial_from:
            return LossSchedule((LossPhase(0, first | adversaries),))
        return LossSchedule((LossPhase(0, first), LossPhase(self.adversarial_from, first | adversaries, ramp=_RAMP)))


def train_on_crops(
    vae: nn.Module,
    batch: Batch,
    recipe: AutoencoderRecipe,
    *,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    checkpoint: Path | None = None,
    on_save: Callable[[int, nn.Module], None] | None = None,
    on_progress: Callable[[int, int], Progress] | None = None,
) -> History:
    """Train an autoencoder in place on ``batch(step)``; at the end it holds the average of its weights.

    Args:
        vae: encodes to a posterior with ``kl()``, a diagonal Gaussian.
        batch: videos, a pure function of the step.
        recipe: lengths, rates and weights.
        distance: of videos, such as :class:`tubelet.metrics.LPIPS`; needed where ``recipe.lpips`` is not 0.
        checkpoint: where to save and, if the file is there, to go on from.
        on_save: called after each save with the steps done and the autoencoder, which then has the averaged weights.
        on_progress: makes the progress display from the number of steps and the first step.

    Returns:
        ``loss``, ``pixels``, ``kl`` and what else the recipe counts (:func:`tubelet.vae.objectives.training_step`),
        ``psnr`` (of the sampled reconstruction, decibels) and ``seconds``, by step.

    Raises:
        ValueError: a checkpoint of another run, or a weight of the perceptual distance without one.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> vae, recipe = CausalAutoencoder(digits()), AutoencoderRecipe(steps=1)
        >>> history = train_on_crops(vae, lambda step: torch.zeros(1, 1, 5, 8, 8), recipe)  # doctest: +ELLIPSIS
        train ...
        >>> sorted(history.values)
        ['kl', 'loss', 'pixels', 'psnr', 'seconds']
    """
    optimizer = MuonAdamW(vae, lr=recipe.lr, muon_lr=recipe.muon_lr)
    objective, schedule = _objective(vae, recipe, distance), recipe.schedule
    history, ema = History(), EMA(vae, recipe.ema)
    parts: dict[str, Any] = {"model": vae, "optimizer": optimizer, "ema": ema, "history": history}
    discriminators = None
    if objective.adversaries:
        discriminators = torch.optim.Adam(objective.adversaries.parameters(), recipe.lr / 2, betas=(0.5, 0.9))
        parts |= {"adversaries": objective.adversaries, "discriminators": discriminators}
    run = None if checkpoint is None else Checkpoint(checkpoint, **parts)

    def step_fn(step: int) -> dict[str, float | Tensor]:
        began, seen = time.perf_counter(), []

        def through(vae: nn.Module, video: Tensor, generator: torch.Generator | None) -> Reconstruction:
            with torch.autocast(video.device.type, torch.bfloat16, enabled=recipe.bf16):
                made = reconstruct(vae, video, generator)
            made = made._replace(decoded=made.decoded.float())
            seen.append(psnr(video, made.decoded.detach()).mean())
            return made

        set_lr(optimizer, warmup_cosine(step, recipe.steps, warmup=min(recipe.warmup, recipe.steps)))
        numbers = training_step(
            vae,
            objective,
            schedule,
            batch(step),
            step,
            optimizer=optimizer,
            discriminators=discriminators,
            generator=step_generator(recipe.seed, step, stream=7),
            through=through,
        )
        ema.update(vae)
        return {**numbers, "psnr": seen[0], "seconds": time.perf_counter() - began}

    def save(done: int) -> None:
        if run is not None:
            run.save(done)
        if on_save is not None:
            with ema.swapped(vae):
                on_save(done, vae)

    start = 0 if run is None else run.restore()
    shown = None if on_progress is None else on_progress(recipe.steps, start)
    fit(
        step_fn,
        recipe.steps,
        start=start,
        save=save,
        save_every=recipe.save_every,
        history=history,
        progress=shown,
    )
    ema.copy_to(vae)
    return history


def _objective(
    vae: nn.Module, recipe: AutoencoderRecipe, distance: Callable[[Tensor, Tensor], Tensor] | None
) -> Objective:
    """The losses that the recipe counts; adversaries are balanced at the last matrix or kernel of the decoder."""
    if recipe.lpips and distance is None:
        raise ValueError(f"distance must be given for a weight of lpips={recipe.lpips}, got None")
    config: Any = vae.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        found = _discriminators(recipe, config.in_channels)
    adversaries = {name: Adversary(discriminator) for name, discriminator in found.items()}
    terms = {
        "pixels": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=recipe.l1),
        "kl": lambda made, _: kl_loss(made.posterior),
    }
    if distance is not None:
        terms["lpips"] = lambda made, draws: perceptual_loss(
            distance, made.decoded, made.video, frames=_FRAMES, generator=draws
        )
    decoder: Any = vae.decoder
    return Objective(terms, adversaries, balance_at=_last_layer(decoder))


def _last_layer(decoder: nn.Module) -> list[Tensor]:
    """The last matrix or kernel; both, where first frames (so all of an image) have one of their own."""
    last = [p for p in decoder.parameters() if p.ndim > 1][-1]
    for layer in decoder.modules():
        if isinstance(layer, FrameUngroups) and any(p is last for p in layer.parameters()):
            return [layer.first.weight, layer.rest.weight]
    return [last]


def _discriminators(recipe: AutoencoderRecipe, in_channels: int) -> dict[str, PatchDiscriminator]:
    """Those that the recipe counts."""
    kernels = {"frames": (1, 4, 4), "clips": (3, 4, 4)}
    return {
        name: PatchDiscriminator(in_channels, 32, n_layers=2, kernel=kernel, norm=_norm)
        for name, kernel in kernels.items()
        if getattr(recipe, name)
    }


def least_side(recipe: AutoencoderRecipe) -> int:
    """The side in pixels of the smallest crops that a recipe's discriminators score; 1 without any.

    Example:
        >>> least_side(AutoencoderRecipe(steps=1)), least_side(AutoencoderRecipe(steps=1, frames=0.5))
        (1, 12)
    """
    with torch.device("meta"):
        return max([1, *(max(each.least[1:]) for each in _discriminators(recipe, 3).values())])


def _norm(channels: int) -> nn.Module:
    """A discriminator's norm: of each video alone, since batches of images and of clips take turns."""
    return nn.GroupNorm(8, channels)


def steps_in(minutes: float, vae: nn.Module, batch: Batch, recipe: AutoencoderRecipe) -> int:
    """How many steps this machine does in so many minutes, measured on a copy of the autoencoder.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> vae, recipe = CausalAutoencoder(digits()), AutoencoderRecipe(steps=1)
        >>> steps_in(0.1, vae, lambda step: torch.zeros(1, 1, 5, 8, 8), recipe) > 1
        True
    """
    trial = replace(recipe, steps=_TRIAL, warmup=0, lpips=0.0, adversarial_from=0)

    def seconds() -> float:
        began = time.perf_counter()
        train_on_crops(copy.deepcopy(vae), batch, trial, on_progress=_silent)
        return (time.perf_counter() - began) / _TRIAL

    seconds()  # warms up
    return max(1, round(60 * minutes / seconds()))


@torch.no_grad()
def measure_latents(vae: nn.Module, videos: Iterable[Float[Tensor, "b c T H W"]]) -> ChannelStatistics:
    """Measure the mean and deviation of each latent channel over ``videos``, and store them in the autoencoder.

    Args:
        vae: its ``set_latent_stats`` is called.
        videos: batches.

    Raises:
        ValueError: no videos, or an autoencoder that has no place for statistics.

    Example:
        >>> from tubelet.vae.families import PrincipalAutoencoder, PrincipalAutoencoderConfig
        >>> vae = PrincipalAutoencoder(PrincipalAutoencoderConfig(latent_channels=2, widths=(4,), depths=(1,)))
        >>> measure_latents(vae, [torch.rand(1, 3, 5, 8, 8)]).count, len(vae.config.latent_mean)
        (2, 2)
    """
    seen: ChannelStatistics | None = None
    for video in videos:
        more = ChannelStatistics.of(vae.encode(video).mode())  # type: ignore[operator]
        seen = more if seen is None else seen + more
    if seen is None:
        raise ValueError("videos is empty: there is nothing to measure")
    vae.set_latent_stats(seen.mean.float(), seen.std.float().clamp(min=_LEAST_STD))  # type: ignore[operator]
    return seen


@torch.no_grad()
def compare(vae: nn.Module, video: Float[Tensor, "1 c T H W"]) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """A video, what an autoencoder makes of it, and what resizing to as many numbers as the latents makes of it.

    Args:
        vae: decodes the mode of its posterior.
        video: of a size that it takes, with sides of 11 pixels or more.

    Returns:
        ``original``, ``reconstruction`` and ``bicubic``; and ``psnr`` (decibels) and ``ssim`` of the latter two.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> videos, scores = compare(CausalAutoencoder(digits()), torch.zeros(1, 1, 5, 16, 16))
        >>> sorted(videos), sorted(scores["reconstruction"])
        (['bicubic', 'original', 'reconstruction'], ['psnr', 'ssim'])
    """
    latents = vae.encode(video).mode()  # type: ignore[operator]
    made = {
        "reconstruction": vae.decode(latents).float().clamp(-1, 1),  # type: ignore[operator]
        "bicubic": bicubic_code(video, latents.numel()),
    }
    scores = {name: {"psnr": float(psnr(video, y)), "ssim": float(ssim(video, y))} for name, y in made.items()}
    return {"original": video, **made}, scores


def _silent(steps: int, start: int) -> Progress:
    return Progress(steps, start=start, stream=io.StringIO())
