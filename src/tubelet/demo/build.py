"""The demo's models and the two plans that train them: minutes for a live run, an hour for the checkpoint that ships.

What differs between the plans is only how long they train and on how many clips; the models, the data and the recipe
are the same. Shapes: clips ``(1, T, H, W)`` in [-1, 1].
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.demo import digits
from tubelet.files import replacing
from tubelet.models import VideoDiT, video_dit_digits
from tubelet.pipeline import TextToVideo, encode_videos
from tubelet.recipe import LatentSet, Recipe, calibrated, train_autoencoder, train_denoiser, with_latent_stats
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.training import History, Progress, step_generator
from tubelet.vae import CausalAutoencoder
from tubelet.vae import digits as digits_vae

__all__ = [
    "FULL",
    "Plan",
    "build",
    "check_folder",
    "latents_of",
    "live_plan",
    "prepare",
    "resumable",
    "run",
    "vae_batch",
]

_PIXELS = 110_000  # about as many pixels in each batch of the autoencoder, whatever the clips' size
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and on how many clips; stored beside a run so that a resumed one follows the same.

    Example:
        >>> Plan(recipe=Recipe(vae_steps=10, steps=10), clips=100).seed
        0
    """

    recipe: Recipe
    clips: int

    @property
    def seed(self) -> int:
        """The seed of models, data and noise."""
        return self.recipe.seed

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {"recipe": asdict(self.recipe), "clips": self.clips}

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        with replacing(path) as temporary:
            Path(temporary).write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan back.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            stored = json.loads(path.read_text())
            return cls(recipe=Recipe(**stored["recipe"]), clips=stored["clips"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no plan of a run: {error}") from error

    def with_seed(self, seed: int) -> "Plan":
        """The same plan with another seed."""
        return replace(self, recipe=replace(self.recipe, seed=seed))


FULL = Plan(recipe=Recipe(vae_steps=3000, steps=5000), clips=20_000)
"""What ``tubelet demo --full`` does: within an hour on two cores."""


def build(seed: int) -> TextToVideo:
    """The demo's models with fresh weights that depend on the seed alone.

    Example:
        >>> sum(p.numel() for p in build(0).parameters()) < 4_200_000
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = CausalAutoencoder(digits_vae())
        words = sorted({word for prompt in digits.PROMPTS for word in prompt.split()})
        text = WordEncoder(WordEncoderConfig(words=tuple(words), dim=64, max_length=8))
        return TextToVideo(vae, text, VideoDiT(video_dit_digits()))


def live_plan(minutes: float, seed: int) -> Plan:
    """As many steps as fit into ``minutes`` on this machine, measured once; about 1,500 clips a minute.

    Example:
        >>> live_plan(0.1, seed=0).recipe.steps >= 1
        True
    """
    model, recipe = build(seed), Recipe(seed=seed, vae_steps=1, steps=1, budget=1024, ema=0.99)
    trial = latents_of(model, "train", seed, 256)
    measured = calibrated(recipe, minutes, model, lambda step: vae_batch(seed, step), trial)
    return Plan(recipe=measured, clips=max(256, int(1500 * minutes)))


def vae_batch(seed: int, step: int) -> Float[Tensor, "b 1 T H W"]:
    """The autoencoder's batch of a step: fresh training clips of one size, drawn as often as the mix has it.

    Example:
        >>> vae_batch(0, 0).shape[1]
        1
    """
    shares = torch.tensor([share for _, share in digits.SIZES])
    pick = int(torch.multinomial(shares, 1, generator=step_generator(seed, step, stream=5)))
    size = digits.SIZES[pick][0]
    count = max(4, min(64, _PIXELS // (size[0] * size[1] * size[2])))
    clips = digits.batch("train", seed, step * 64, count, size)
    return torch.stack([clip.video for clip in clips])


def latents_of(
    model: TextToVideo,
    split: digits.Split,
    seed: int,
    count: int,
    tick: Callable[[int], None] | None = None,
) -> LatentSet:
    """Render and encode ``count`` clips of a split, a chunk at a time.

    Example:
        >>> len(latents_of(build(0), "held_out", seed=0, count=3).latents)
        3
    """
    latents: list[Tensor] = []
    captions: list[str] = []
    for start in range(0, count, _CHUNK):
        clips = digits.batch(split, seed, start, min(_CHUNK, count - start))
        latents += encode_videos(model.vae, [clip.video for clip in clips])
        captions += [clip.caption for clip in clips]
        if tick is not None:
            tick(len(latents))
    return LatentSet(tuple(latents), tuple(captions))


def run(
    model: TextToVideo,
    plan: Plan,
    out: Path,
    show: Callable[[str], Callable[[int, int], Progress]],
) -> dict[str, History]:
    """Train both stages in place; checkpoints in ``out`` make it resumable at any step.

    Args:
        model: from :func:`build` with the plan's seed.
        plan: what to do.
        out: an existing folder.
        show: makes a stage's progress display from its title.

    Returns:
        The histories of "autoencoder" and "denoiser".

    Example:
        >>> import io, tempfile
        >>> plan = Plan(recipe=Recipe(vae_steps=1, steps=1, budget=256), clips=16)
        >>> quiet = lambda title: lambda steps, start: Progress(steps, start=start, stream=io.StringIO())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(run(build(0), plan, Path(folder), quiet))
        ['autoencoder', 'denoiser']
    """
    seed, recipe = plan.seed, plan.recipe
    histories: dict[str, History] = {}
    histories["autoencoder"] = train_autoencoder(
        model.vae,
        lambda step: vae_batch(seed, step),
        recipe,
        checkpoint=out / "autoencoder.run.safetensors",
        on_progress=show("autoencoder"),
    )
    sample: Sequence[digits.Clip] = digits.batch("train", seed + 1, 0, min(plan.clips, _CHUNK))
    with_latent_stats(model.vae, [clip.video for clip in sample])
    encoding = show("encode")(plan.clips, 0)
    with encoding:
        data = latents_of(model, "train", seed + 1, plan.clips, lambda done: encoding.update(done, {}))
    histories["denoiser"] = train_denoiser(
        model,
        data,
        recipe,
        checkpoint=out / "denoiser.run.safetensors",
        on_progress=show("denoiser"),
    )
    return histories


def prepare(folder: Path, resume: bool, plan: Callable[[], Plan], done: str = "metrics.json") -> Plan:
    """The plan of a run: made and stored for a new one, read back for one that is resumed.

    Args:
        folder: of the run.
        resume: go on with what is there.
        plan: makes the plan of a new run.
        done: the file whose presence says that the run in the folder has ended, so that a new one may replace it.

    Raises:
        ValueError: an interrupted run is in the folder and ``resume`` is False, or there is none to resume.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = prepare(Path(folder), False, lambda: FULL)
        ...     prepare(Path(folder), True, lambda: FULL) == made
        True
    """
    check_folder(folder, resume, done)
    stored, ended = folder / "plan.json", folder / done
    if resume:
        return Plan.load(stored)
    folder.mkdir(parents=True, exist_ok=True)
    made = plan()
    for old in (*folder.glob("*.run.safetensors"), ended):
        old.unlink(missing_ok=True)
    made.save(stored)
    return made


def check_folder(folder: Path, resume: bool, done: str = "metrics.json") -> None:
    """Refuse, before anything is done or said, what :func:`prepare` would refuse.

    Raises:
        ValueError: an interrupted run is in the folder and ``resume`` is False, or there is none to resume, or its plan
            is damaged.

    Example:
        >>> check_folder(Path("runs/nowhere"), resume=False)
    """
    stored = folder / "plan.json"
    if resume:
        if not stored.exists():
            raise ValueError(f"--resume: there is no run in {folder}")
        Plan.load(stored)
    elif stored.exists() and not (folder / done).exists():
        raise ValueError(f"{folder} holds an interrupted run: go on with --resume, or name another folder with --out")


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside the block names what happened, so that the command line adds how to go on.

    Raises:
        KeyboardInterrupt: with a text, which a bare one lacks.

    Example:
        >>> try:
        ...     with resumable():
        ...         raise KeyboardInterrupt
        ... except KeyboardInterrupt as stop:
        ...     print(stop)
        stopped
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        raise KeyboardInterrupt("stopped") from stop
