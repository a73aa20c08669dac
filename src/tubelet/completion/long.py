"""Videos longer than any that the model saw: window after window, each from the last frames of the one before."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tubelet.completion.complete import complete
from tubelet.diffusion import Known, Process, Seeded, euler_step, further_seeds
from tubelet.diffusion.tasks import rollout
from tubelet.pipeline import Guidance, TextToVideo, check_asked
from tubelet.protocols import SamplerStep, Solver

__all__ = ["lengthen"]


def lengthen(
    model: TextToVideo,
    prompts: Sequence[str],
    starts: Sequence[Float[Tensor, "c _ _ _"]],
    frames: int,
    seeds: Sequence[int],
    *,
    window: int,
    overlap: int,
    process: Process | None = None,
    steps: int = 25,
    step: SamplerStep | Solver | Seeded = euler_step,
    guidance: Guidance = 2.0,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Videos of ``frames`` frames from their first ones, by overlapping windows.

    Args:
        model: the trained models.
        prompts: one text a video, of all of its windows.
        starts: the first frames of each, equally many; given ones, or what ``generate`` made.
        frames: how many there shall be.
        seeds: one a video, from which those of later windows follow (:func:`tubelet.diffusion.further_seeds`).
        window: frames that are sampled at once, ``1 + temporal·k``.
        overlap: how many of them are the last ones of the window before; ``1 + temporal·k`` are known whole.
        process: what the denoiser was trained with; None means rectified flow.
        steps: how many steps of each window.
        step: how one is made: a one-step method, a solver, or one that draws (:class:`tubelet.diffusion.Seeded`).
        guidance: scale of classifier-free guidance, 1 for none; or a function (:data:`tubelet.pipeline.Guidance`).

    Raises:
        ValueError: as for :func:`tubelet.diffusion.tasks.rollout` and :func:`complete`.

    Example:
        >>> import torch
        >>> from tubelet.demo.build import build
        >>> start = torch.zeros(1, 1, 16, 16)
        >>> lengthen(build(0), ["a two"], [start], 7, seeds=[0], window=5, overlap=1, steps=1)[0].shape
        torch.Size([1, 7, 16, 16])
    """
    check_asked(prompts, guidance, prompts=prompts, starts=starts, seeds=seeds)

    def make(knowns: list[Known], number: int) -> list[Tensor]:
        drawn = further_seeds(seeds, number)
        return complete(model, prompts, knowns, drawn, process=process, steps=steps, step=step, guidance=guidance)

    return rollout(make, starts, frames, window=window, overlap=overlap)
