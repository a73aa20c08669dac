"""Video to video: the same motion with another prompt, by SDEdit or from inverted noise."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.completion.complete import check_range
from tubelet.diffusion import Process, Seeded, euler_step, noise_like
from tubelet.diffusion.tasks import edit_start, edit_times, nothing
from tubelet.layout import TokenLayout
from tubelet.patchify import grid_of, unfold_packed
from tubelet.pipeline import (
    Guidance,
    TextToVideo,
    check_asked,
    decode_latents,
    encode_videos,
    sample_latents,
    state_like,
)
from tubelet.protocols import SamplerStep, Solver

__all__ = ["edit", "edit_inverted"]


@torch.no_grad()
def edit(
    model: TextToVideo,
    prompts: Sequence[str],
    videos: Sequence[Float[Tensor, "c _ _ _"]],
    seeds: Sequence[int],
    *,
    strength: float = 0.75,
    process: Process | None = None,
    steps: int = 25,
    step: SamplerStep | Solver | Seeded = euler_step,
    guidance: Guidance = 2.0,
) -> list[Float[Tensor, "c _ _ _"]]:
    """SDEdit: noise up to ``strength`` and sample from there (:func:`tubelet.diffusion.tasks.edit_start`).

    Args:
        model: the trained models.
        prompts: what each video shall show.
        videos: of any sizes.
        seeds: one a video.
        strength: in [0, 1]: at 0 the videos are returned themselves, at 1 they do not count.
        process: what the denoiser was trained with; None means rectified flow.
        steps: how many steps at strength 1; ``ceil(strength·steps)`` are made.
        step: how one is made: a one-step method, a solver, or one that draws (:class:`tubelet.diffusion.Seeded`).
        guidance: scale of classifier-free guidance, 1 for none; or a function (:data:`tubelet.pipeline.Guidance`).

    Raises:
        ValueError: ``strength`` is outside [0, 1], videos that leave [-1, 1], and as for
            :func:`tubelet.pipeline.sample_latents`.

    Example:
        >>> from tubelet.demo.build import build
        >>> video = torch.zeros(1, 5, 16, 16)
        >>> torch.equal(edit(build(0), ["a two"], [video], seeds=[0], strength=0.0)[0], video)
        True
    """
    check_asked(prompts, guidance, prompts=prompts, videos=videos, seeds=seeds)
    for video in videos:
        check_range("videos", video)
    process = Process() if process is None else process
    times = edit_times(process, steps, strength)
    if times.numel() == 1:
        return list(videos)
    latents = [latent.to(state_like(model)) for latent in encode_videos(model.vae, videos)]
    noise = [_noise(model, latent, seed) for latent, seed in zip(latents, seeds, strict=True)]
    starts = [edit_start(x0, eps, times, process) for x0, eps in zip(latents, noise, strict=True)]
    knowns = [nothing(latent) for latent in latents]
    how: dict[str, Any] = {"process": process, "times": times, "step": step, "guidance": guidance}
    made = sample_latents(model, prompts, knowns, seeds, starts=starts, **how)
    return [made.to(video) for made, video in zip(decode_latents(model.vae, made), videos, strict=True)]


@torch.no_grad()
def edit_inverted(
    model: TextToVideo,
    prompts: Sequence[str],
    videos: Sequence[Float[Tensor, "c _ _ _"]],
    sources: Sequence[str],
    *,
    strength: float = 1.0,
    process: Process | None = None,
    steps: int = 25,
    step: SamplerStep | Solver | Seeded = euler_step,
    guidance: Guidance = 2.0,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Sample from the noise that the videos came from: the sampling equation backward, then forward again.

    Args:
        model: the trained models.
        prompts: what each video shall show.
        videos: of any sizes.
        sources: what each video shows: backward the equation is followed with this prompt, unguided.
        strength: how far back; at 0 the videos are returned themselves.
        process: what the denoiser was trained with; None means rectified flow.
        steps: how many steps from noise to data at strength 1, and as many back.
        step: how one is made, both ways: a one-step method or a solver that draws nothing.
        guidance: scale of classifier-free guidance forward, or a function (:data:`tubelet.pipeline.Guidance`).

    Raises:
        ValueError: ``strength`` is outside [0, 1], videos that leave [-1, 1], ``step`` draws, and as
            for :func:`tubelet.pipeline.sample_latents`.

    Example:
        >>> from tubelet.demo.build import build
        >>> video = torch.zeros(1, 5, 16, 16)
        >>> edit_inverted(build(0), ["a two"], [video], ["a one"], steps=1)[0].shape
        torch.Size([1, 5, 16, 16])
    """
    if isinstance(step, Seeded):
        raise ValueError("step draws noise, so that it does not lead back to where a video came from: take another")
    check_asked(prompts, guidance, prompts=prompts, videos=videos, sources=sources)
    for video in videos:
        check_range("videos", video)
    process = Process() if process is None else process
    times = edit_times(process, steps, strength)
    if times.numel() == 1:
        return list(videos)
    latents = [latent.to(state_like(model)) for latent in encode_videos(model.vae, videos)]
    knowns, seeds = [nothing(latent) for latent in latents], [0] * len(latents)  # nothing is drawn
    how: dict[str, Any] = {"process": process, "step": step}
    starts = sample_latents(model, sources, knowns, seeds, times=times.flip(0), starts=latents, guidance=1.0, **how)
    made = sample_latents(model, prompts, knowns, seeds, times=times, starts=starts, guidance=guidance, **how)
    return [made.to(video) for made, video in zip(decode_latents(model.vae, made), videos, strict=True)]


def _noise(model: TextToVideo, latent: Float[Tensor, "z t h w"], seed: int) -> Float[Tensor, "z t h w"]:
    """The noise that sampling without a video starts from."""
    patch = model.denoiser.config.patch
    grid = grid_of(latent.shape, patch)
    patches = noise_like(TokenLayout.packed([grid]), model.denoiser.config.patch_dim, [seed])
    return unfold_packed(patches, [grid], patch)[0].to(latent)
