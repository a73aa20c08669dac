"""The recipe that trains a video autoencoder on crops of real clips, and what is measured of it afterwards.

It is a few lines around :func:`tubelet.training.fit`: data and noise are pure functions of the seed and the step, so
that a run that is stopped and resumed equals one that never was. The loss is the error of the pixels plus the
posterior's divergence from the normal (arXiv:1312.6114; small, as in latent diffusion, arXiv:2112.10752, appendix G).
Matrices and kernels inside blocks and residual branches are trained with Muon (Jordan et al., 2024;
``torch.optim.Muon``), a kernel as the matrix from all that it sees to its outputs; everything else with AdamW. Matrix
products run in bfloat16, losses and weights are float32. What is kept is a moving average of the weights.

Shapes: videos ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)``.
"""

import copy
import io
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.metrics import psnr, ssim
from tubelet.training import EMA, Checkpoint, History, Progress, fit, set_lr, step_generator, warmup_cosine
from tubelet.vae import ChannelStatistics, bicubic_code, kl_loss, reconstruction_loss

__all__ = ["AutoencoderRecipe", "compare", "measure_latents", "steps_in", "train_on_crops"]

Batch = Callable[[int], Float[Tensor, "b c T H W"]]

_TRIAL = 3
_INSIDE = re.compile(r"\.(blocks|branch)\.")
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
    ema: float = 0.998
    bf16: bool = True
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "muon_lr", "save_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("kl", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.l1 <= 1:
            raise ValueError(f"l1 must lie in [0, 1], got {self.l1}")


def train_on_crops(
    vae: nn.Module,
    batch: Batch,
    recipe: AutoencoderRecipe,
    *,
    checkpoint: Path | None = None,
    on_save: Callable[[int, nn.Module], None] | None = None,
    on_progress: Callable[[int, int], Progress] | None = None,
) -> History:
    """Train an autoencoder in place on ``batch(step)``; at the end it holds the average of its weights.

    Args:
        vae: encodes to a posterior with ``kl()``, a diagonal Gaussian.
        batch: videos, a pure function of the step.
        recipe: lengths, rates and weights.
        checkpoint: where to save and, if the file is there, to go on from.
        on_save: called after each save with the steps done and the autoencoder, which then has the averaged weights.
        on_progress: makes the progress display from the number of steps and the first step.

    Returns:
        ``loss``, ``psnr`` (of the sampled reconstruction, decibels), ``kl`` and ``seconds`` by step.

    Raises:
        ValueError: a checkpoint of another run.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> vae, recipe = CausalAutoencoder(digits()), AutoencoderRecipe(steps=1)
        >>> history = train_on_crops(vae, lambda step: torch.zeros(1, 1, 5, 8, 8), recipe)  # doctest: +ELLIPSIS
        train ...
        >>> sorted(history.values)
        ['kl', 'loss', 'psnr', 'seconds']
    """
    optimizers = _Optimizers(vae, recipe)
    history, ema = History(), EMA(vae, recipe.ema)
    parts: dict[str, Any] = {"model": vae, "optimizers": optimizers, "ema": ema, "history": history}
    run = None if checkpoint is None else Checkpoint(checkpoint, **parts)

    def step_fn(step: int) -> dict[str, float | Tensor]:
        began = time.perf_counter()
        optimizers.set_lr(warmup_cosine(step, recipe.steps, warmup=min(recipe.warmup, recipe.steps)))
        video = batch(step)
        decoded, posterior = _reconstructed(vae, video, step_generator(recipe.seed, step, stream=7), recipe.bf16)
        error, kl = reconstruction_loss(decoded, video, l1=recipe.l1), kl_loss(posterior)
        loss = error + recipe.kl * kl
        vae.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizers.step()
        ema.update(vae)
        shown = psnr(video, decoded.detach()).mean()
        return {"loss": loss.detach(), "psnr": shown, "kl": kl.detach(), "seconds": time.perf_counter() - began}

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


class _Optimizers:
    """Muon for the kernels and matrices inside blocks, AdamW for everything else, as one."""

    def __init__(self, vae: nn.Module, recipe: AutoencoderRecipe) -> None:
        inner = {id(p) for name, p in vae.named_parameters() if p.ndim > 1 and _INSIDE.search(name)}
        self.kernels = [p for p in vae.parameters() if id(p) in inner]
        self.views = [nn.Parameter(p.detach().flatten(1)) for p in self.kernels]  # of the same memory, as matrices
        others = [p for p in vae.parameters() if id(p) not in inner]
        adamw = torch.optim.AdamW(others, recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)
        muon = torch.optim.Muon(self.views, recipe.muon_lr, momentum=0.95, weight_decay=0.01) if self.views else None
        self.parts = {"adamw": adamw} | ({} if muon is None else {"muon": muon})

    def set_lr(self, factor: float) -> None:
        for part in self.parts.values():
            set_lr(part, factor)

    def step(self) -> None:
        for view, kernel in zip(self.views, self.kernels, strict=True):
            view.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def steps_in(minutes: float, vae: nn.Module, batch: Batch, recipe: AutoencoderRecipe) -> int:
    """How many steps this machine does in so many minutes, measured on a copy of the autoencoder.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> vae, recipe = CausalAutoencoder(digits()), AutoencoderRecipe(steps=1)
        >>> steps_in(0.1, vae, lambda step: torch.zeros(1, 1, 5, 8, 8), recipe) > 1
        True
    """
    trial = replace(recipe, steps=_TRIAL, warmup=0)

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


def _reconstructed(vae: Any, video: Tensor, generator: torch.Generator, bf16: bool) -> tuple[Tensor, Any]:
    """What is decoded of a sample of the posterior, in float32, and the posterior."""
    with torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
        posterior = vae.encode(video)
        return vae.decode(posterior.sample(generator)).float(), posterior


def _silent(steps: int, start: int) -> Progress:
    return Progress(steps, start=start, stream=io.StringIO())
