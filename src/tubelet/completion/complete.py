"""Videos of which some pixels are known, completed in one packed batch."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tubelet.completion.cells import consistent, known_latents
from tubelet.diffusion import Known, Process, Seeded, euler_step
from tubelet.pipeline import Guidance, TextToVideo, decode_latents, sample_latents, state_like
from tubelet.protocols import SamplerStep, Solver

__all__ = ["complete"]


@torch.no_grad()
def complete(
    model: TextToVideo,
    prompts: Sequence[str],
    knowns: Sequence[Known],
    seeds: Sequence[int],
    *,
    process: Process | None = None,
    steps: int = 25,
    step: SamplerStep | Solver | Seeded = euler_step,
    repaint: int | None = None,
    guidance: Guidance = 2.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Complete videos of any sizes, each from what is known of its pixels (:mod:`tubelet.diffusion.tasks`).

    Args:
        model: the trained models.
        prompts: one text a video; "" is unconditional.
        knowns: what is known of each video, at noise level 0 or another.
        seeds: one a video: a video depends on its own prompt, seed and what is known of it only.
        process: what the denoiser was trained with; None means rectified flow.
        steps: how many steps.
        step: how one is made: a one-step method, a solver, or one that draws (:class:`tubelet.diffusion.Seeded`).
        repaint: how often each step is made, for a model that is told nothing of what is known
            (:class:`tubelet.diffusion.Repainted`); None where it knows masks and levels of tokens.
        guidance: scale of classifier-free guidance, 1 for none; or a function (:data:`tubelet.pipeline.Guidance`).
        callback: called after each step with its number and the packed state.

    Returns:
        Videos on the denoiser's device in the dtype of the known values; the known pixels are the given ones, bit for
        bit.

    Raises:
        ValueError: known values outside [-1, 1], sizes that the autoencoder does not divide, and as for
            :func:`tubelet.pipeline.sample_latents`.

    Example:
        >>> from tubelet.demo.build import build
        >>> from tubelet.diffusion.tasks import connect
        >>> first, last = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
        >>> made, = complete(build(0), ["a two"], [connect(first, last, frames=5)], seeds=[0], steps=1)
        >>> made.shape, bool((made[:, 0] == 0).all()), bool((made[:, 4] == 1).all())
        (torch.Size([1, 5, 16, 16]), True, True)
    """
    for known in knowns:
        check_range("known values", torch.where(known.tokens[..., None], known.values, 0))
    device = state_like(model).device
    knowns = [Known.of_video(k.video.to(device), k.tokens.to(device), k.noise_level) for k in knowns]
    made = sample_latents(
        model,
        prompts,
        known_latents(model.vae, knowns),
        seeds,
        process=process,
        steps=steps,
        step=step,
        project=consistent(model.vae, knowns, model.denoiser.config.patch),
        repaint=repaint,
        guidance=guidance,
        callback=callback,
    )
    return [_whole(known, video) for known, video in zip(knowns, decode_latents(model.vae, made), strict=True)]


def _whole(known: Known, video: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
    """The video in the dtype of the known pixels, which are in place."""
    made = rearrange(video, "c t h w -> t h w c").to(known.values)
    return rearrange(known.apply(made), "t h w c -> c t h w")


def check_range(name: str, values: Tensor) -> None:
    """Refuse values outside [-1, 1], and NaN."""
    if not (values.is_floating_point() and bool((values.abs() <= 1 + 1e-3).all())):
        raise ValueError(
            f"{name} must lie in [-1, 1], got {float(values.min())} to {float(values.max())} of {values.dtype}"
        )
