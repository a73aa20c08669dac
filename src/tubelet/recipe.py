"""The recipe that trains text to video from captioned clips: first the autoencoder, then the denoiser on its latents.

Both stages are a few lines around :func:`tubelet.training.fit`; data, noise and packing are pure functions of the seed
and the step, so that a run that is stopped and resumed equals one that never was. Matrices of the transformer's blocks
are trained with Muon (Jordan et al., 2024; ``torch.optim.Muon``), everything else with AdamW.

Shapes: videos ``(c, T, H, W)`` in [-1, 1]; latents ``(z, t, h, w)``.
"""

import copy
import io
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.diffusion import Process, logit_normal
from tubelet.packing import fill, pack_stream
from tubelet.pipeline import LatentBatch, TextToVideo, denoising_loss, encode_videos
from tubelet.training import (
    EMA,
    Checkpoint,
    History,
    Progress,
    fit,
    set_lr,
    step_generator,
    warmup_cosine,
)
from tubelet.vae import CausalAutoencoder

__all__ = [
    "LatentSet",
    "Recipe",
    "encode_clips",
    "train_autoencoder",
    "train_denoiser",
    "with_latent_stats",
]


_TRIAL = 5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training run depends on beside the models and the data.

    Args:
        seed: of data order, noise and dropout.
        vae_steps, vae_lr: length and peak rate of the autoencoder's training (AdamW).
        kl: weight of the posterior's divergence from the normal, per latent number.
        ink: extra weight of the squared error near what is not background (a pixel above -0.8, dilated by one).
        steps, budget: length of the denoiser's training and tokens in one packed batch.
        lr, muon_lr: peak rates of AdamW and of Muon.
        ema: decay of the weights' average.
        bf16: run the denoiser's matrix products in bfloat16 (autocast).
        save_every: steps between checkpoints.

    Raises:
        ValueError: a length or rate that is not positive, or a weight that is negative.

    Example:
        >>> Recipe(vae_steps=100, steps=200).budget
        2048
    """

    seed: int = 0
    vae_steps: int
    steps: int
    vae_lr: float = 3e-3
    kl: float = 2e-5
    ink: float = 4.0
    budget: int = 2048
    lr: float = 1e-3
    muon_lr: float = 0.02
    ema: float = 0.999
    bf16: bool = True
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("vae_steps", "steps", "vae_lr", "budget", "lr", "muon_lr", "save_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("kl", "ink"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")

    @property
    def process(self) -> Process:
        """Rectified flow whose training times lean towards noise (logit-normal, mean 0.3)."""
        return Process(density=logit_normal(0.3, 1.0))


def train_autoencoder(
    vae: CausalAutoencoder,
    batch: Callable[[int], Float[Tensor, "b c T H W"]],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[int, int], Progress] | None = None,
) -> History:
    """Train an autoencoder in place on ``batch(step)``; a checkpoint file makes it resumable.

    The loss is the weighted squared error (times 10) plus the divergence of the posterior.

    Args:
        vae: trained in place.
        batch: videos of one size, a pure function of the step.
        recipe: lengths and rates.
        checkpoint: where to save and, if the file is there, to go on from.
        on_progress: makes the progress display from the number of steps and the first step.

    Example:
        >>> from tubelet.vae import digits
        >>> vae, recipe = CausalAutoencoder(digits()), Recipe(vae_steps=1, steps=1)
        >>> history = train_autoencoder(vae, lambda step: torch.zeros(1, 1, 1, 8, 8), recipe)  # doctest: +ELLIPSIS
        train ...
        >>> len(history["loss"])
        1
    """
    optimizer = torch.optim.AdamW(vae.parameters(), recipe.vae_lr, betas=(0.9, 0.95), weight_decay=0.01)
    history = History()
    run = None if checkpoint is None else Checkpoint(checkpoint, model=vae, optimizer=optimizer, history=history)

    def step_fn(step: int) -> dict[str, float | Tensor]:
        began = time.perf_counter()
        set_lr(
            optimizer,
            warmup_cosine(step, recipe.vae_steps, warmup=min(50, recipe.vae_steps)),
        )
        video, generator = batch(step), step_generator(recipe.seed, step, stream=2)
        with _autocast(recipe.bf16):
            posterior = vae.encode(video)
            decoded = vae.decode(posterior.sample(generator)).float()
        near_ink = nn.functional.max_pool3d((video > -0.8).float(), (1, 3, 3), 1, (0, 1, 1))
        error = ((1 + recipe.ink * near_ink) * (decoded - video).square()).mean()
        kl = posterior.kl().sum() / posterior.mean.numel()
        loss = 10 * error + recipe.kl * kl
        _update(loss, vae, [optimizer])
        seconds = time.perf_counter() - began
        return {"loss": loss.detach(), "error": error.detach(), "kl": kl.detach(), "seconds": seconds}

    return _fit(step_fn, recipe.vae_steps, run, recipe, history, on_progress)


@dataclass(frozen=True, eq=False)
class LatentSet:
    """Unit-variance latents of many clips with their captions: what the denoiser is trained on.

    Raises:
        ValueError: no latents, or not one caption each.

    Example:
        >>> LatentSet((torch.zeros(16, 2, 3, 4),), ("a seven",)).lengths((1, 1, 1))
        (24,)
    """

    latents: tuple[Float[Tensor, "z _ _ _"], ...]
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.latents or len(self.latents) != len(self.captions):
            raise ValueError(f"captions must be one per latent, got {len(self.captions)} for {len(self.latents)}")

    def lengths(self, patch: tuple[int, int, int]) -> tuple[int, ...]:
        """Tokens of each clip."""
        pt, ph, pw = patch
        return tuple((z.shape[1] // pt) * (z.shape[2] // ph) * (z.shape[3] // pw) for z in self.latents)

    def batch(self, members: Sequence[int], patch: tuple[int, int, int]) -> LatentBatch:
        """The packed batch of some clips."""
        return LatentBatch.of(
            [self.latents[i] for i in members],
            [self.captions[i] for i in members],
            patch,
        )


def with_latent_stats(vae: CausalAutoencoder, videos: Sequence[Float[Tensor, "c _ _ _"]]) -> None:
    """Measure mean and deviation of each latent channel over ``videos`` and store them in the autoencoder.

    Raises:
        ValueError: no videos, or latents that are not finite.

    Example:
        >>> from tubelet.vae import digits
        >>> vae = CausalAutoencoder(digits())
        >>> with_latent_stats(vae, [torch.rand(1, 5, 16, 16)])
        >>> bool(vae.latent_std.ne(1).all())
        True
    """
    if not videos:
        raise ValueError("videos is empty: there is nothing to measure")
    channels = vae.config.latent_channels
    vae.set_latent_stats(torch.zeros(channels), torch.ones(channels))
    numbers = torch.cat([z.flatten(1) for z in encode_videos(vae, videos)], dim=1)
    vae.set_latent_stats(numbers.mean(1), numbers.std(1).clamp(min=1e-4))


def encode_clips(
    vae: CausalAutoencoder,
    videos: Sequence[Float[Tensor, "c _ _ _"]],
    captions: Sequence[str],
) -> LatentSet:
    """Encode captioned videos of any sizes.

    Example:
        >>> from tubelet.vae import digits
        >>> encode_clips(CausalAutoencoder(digits()), [torch.zeros(1, 5, 16, 16)], ["a seven"]).latents[0].shape
        torch.Size([16, 2, 2, 2])
    """
    return LatentSet(tuple(encode_videos(vae, videos)), tuple(captions))


def train_denoiser(
    model: TextToVideo,
    data: LatentSet,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[int, int], Progress] | None = None,
) -> History:
    """Train the denoiser, and the text encoder if it is a module, on packed latents; at the end they hold the averages.

    Args:
        model: its autoencoder stays as it is.
        data: latents and captions.
        recipe: lengths and rates.
        checkpoint: where to save and, if the file is there, to go on from.
        on_progress: makes the progress display from the number of steps and the first step.

    Returns:
        ``loss``, ``tokens``, ``seconds`` and ``padding`` (the share of the budget that the pack left empty), by step.

    Raises:
        ValueError: a clip has more tokens than the budget.

    Example:
        >>> from tubelet.models import VideoDiT, VideoDiTConfig
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> from tubelet.vae import digits
        >>> dit = VideoDiT(VideoDiTConfig(latent_channels=16, dim=32, depth=1, heads=2, text_dim=8))
        >>> text = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> model = TextToVideo(CausalAutoencoder(digits()), text, dit)
        >>> data = LatentSet((torch.zeros(16, 1, 2, 2),) * 4, ("a seven",) * 4)
        >>> history = train_denoiser(model, data, Recipe(vae_steps=1, steps=2, budget=8))  # doctest: +ELLIPSIS
        train ...
        >>> history["tokens"], history["padding"]
        ([8.0, 8.0], [0.0, 0.0])
    """
    trained = nn.ModuleDict({name: part for name, part in model.parts().items() if name != "vae"})
    optimizers = _optimizers(trained, recipe)
    ema, history, process = EMA(trained, recipe.ema), History(), recipe.process
    lengths = data.lengths(model.denoiser.config.patch)
    packs = _PackOrder(lengths, recipe.budget, recipe.seed)
    run = None
    if checkpoint is not None:
        muon, adamw = optimizers
        run = Checkpoint(checkpoint, model=trained, ema=ema, history=history, muon=muon, adamw=adamw)

    def step_fn(step: int) -> dict[str, float | Tensor]:
        began = time.perf_counter()
        for optimizer in optimizers:
            set_lr(
                optimizer,
                warmup_cosine(step, recipe.steps, warmup=min(100, recipe.steps)),
            )
        members = packs[step]
        batch = data.batch(members, model.denoiser.config.patch)
        with _autocast(recipe.bf16):
            loss = denoising_loss(model, batch, process, step_generator(recipe.seed, step, stream=3))
        _update(loss, trained, optimizers)
        ema.update(trained)
        padding = 1 - fill(lengths, [members], recipe.budget)
        seconds = time.perf_counter() - began
        return {"loss": loss.detach(), "tokens": batch.patches.shape[0], "padding": padding, "seconds": seconds}

    _fit(step_fn, recipe.steps, run, recipe, history, on_progress)
    ema.copy_to(trained)
    return history


def calibrated(
    recipe: Recipe,
    minutes: float,
    model: TextToVideo,
    batch: Callable[[int], Float[Tensor, "b c T H W"]],
    data: LatentSet,
    *,
    share: float = 0.45,
) -> Recipe:
    """The recipe with as many steps as fit into ``minutes`` on this machine, measured on copies of the models.

    Args:
        recipe: whose rates and budget count; its steps do not.
        minutes: wall time of both stages together.
        model: left as it is.
        batch: the autoencoder's batches, as in :func:`train_autoencoder`.
        data: a few packs of latents, of an untrained autoencoder if need be.
        share: of the time for the autoencoder.

    Example:
        >>> callable(calibrated)
        True
    """
    trial = replace(recipe, vae_steps=_TRIAL, steps=_TRIAL)
    copied = copy.deepcopy(model)
    per_vae = _seconds(lambda show: train_autoencoder(copied.vae, batch, trial, on_progress=show))
    per_step = _seconds(lambda show: train_denoiser(copied, data, trial, on_progress=show))
    vae_steps, steps = 60 * minutes * share / per_vae, 60 * minutes * (1 - share) / per_step
    return replace(recipe, vae_steps=max(1, round(vae_steps)), steps=max(1, round(steps)))


def _seconds(train: Callable[[Callable[[int, int], Progress]], object]) -> float:
    """Seconds a step of a short silent training, after another that warms up."""
    train(_silent)
    began = time.perf_counter()
    train(_silent)
    return (time.perf_counter() - began) / _TRIAL


def _silent(steps: int, start: int) -> Progress:
    return Progress(steps, start=start, stream=io.StringIO())


class _PackOrder:
    """The packs of a run, one a step, epoch after epoch, each epoch a new order of all clips."""

    def __init__(self, lengths: Sequence[int], budget: int, seed: int) -> None:
        self.lengths, self.budget, self.seed = lengths, budget, seed
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self.starts = [0]

    def __getitem__(self, step: int) -> list[int]:
        while self.starts[-1] <= step:
            self.starts.append(self.starts[-1] + len(self.epoch(len(self.starts) - 1)))
        number = bisect_right(self.starts, step) - 1
        return self.epoch(number)[step - self.starts[number]]

    def _epoch(self, number: int) -> list[list[int]]:
        order = torch.randperm(len(self.lengths), generator=step_generator(self.seed, number, stream=4)).tolist()
        packs = list(pack_stream([self.lengths[i] for i in order], self.budget))
        full = packs[:-16] if len(packs) > 32 else packs  # the bins still open at the end of an epoch are not full
        return [[order[i] for i in pack] for pack in full]


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".blocks." in name else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, momentum=0.95, weight_decay=0.01)
    return [
        muon,
        torch.optim.AdamW(others, recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _update(loss: Tensor, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _autocast(bf16: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def _fit(
    step_fn: Callable[[int], dict[str, float | Tensor]],
    steps: int,
    run: Checkpoint | None,
    recipe: Recipe,
    history: History,
    on_progress: Callable[[int, int], Progress] | None,
) -> History:
    start = 0 if run is None else run.restore()
    return fit(
        step_fn,
        steps,
        start=start,
        save=None if run is None else run.save,
        save_every=recipe.save_every,
        history=history,
        progress=None if on_progress is None else on_progress(steps, start),
    )
