"""How W.A.L.T samples (arXiv:2312.06662): self-conditioned DDIM, long videos part by part, stages of resolution.

The estimate that the network is shown is a value that the loop hands from step to step. A long video is made window
after window, each given one or two latent frames of the one before. A super-resolution stage is given the latents of
the stage before, upsampled and with noise mixed in, and the level of that noise (noise conditioning augmentation, Ho et
al., 2021, arXiv:2106.15282), so that it forgives what the stage before did wrong. The paper upsamples by a learned
depth to space; here positions are repeated, and the network's first layer learns the rest.

Shapes: latents ``(c, t, h, w)``, patches ``(*lead, p)``, one seed a sample.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.diffusion import (
    Known,
    Process,
    SelfConditioned,
    cfg,
    ddim_step,
    fold_known,
    further_seeds,
    noise_like,
    sample,
)
from tubelet.diffusion.tasks import rollout
from tubelet.layout import Rows, TokenLayout
from tubelet.models.walt import Walt, walt_process
from tubelet.patchify import fold_packed, unfold_packed
from tubelet.protocols import Denoiser

__all__ = ["upsampled", "walt_cascade", "walt_rollout", "walt_sample", "walt_upsample"]

_LEFT_OUT: Final = ("labels", "text", "known")
"""The inputs away from whose absence guidance leads."""

_BESIDE: Final = -1
"""The part of a sample's seeds from which the noise in its lower resolution comes."""


@torch.no_grad()
def walt_sample(
    model: Walt,
    layout: TokenLayout,
    seeds: Sequence[int],
    *,
    process: Process | None = None,
    steps: int = 50,
    guidance: float = 1.0,
    **inputs: Any,
) -> Float[Tensor, "*lead p"]:
    """Patches of samples of any sizes, from noise of their own seeds, by DDIM.

    Args:
        model: trained with ``process``.
        layout: where the samples lie.
        seeds: one a sample: a sample depends on its own size, seed and inputs only.
        process: None means :func:`walt_process`.
        steps: how many.
        guidance: the scale of classifier-free guidance, 1 for none; without classes, text and given frames otherwise.
        **inputs: by the names of the model's ``forward``: ``labels``, ``text``, ``text_layout``, ``known``, ``low``,
            ``noise``; what is known stands in ``known`` alone.

    Raises:
        ValueError: as many seeds as samples are not given, guidance without class, text and given frames, or what the
            model refuses.

    Example:
        >>> from tubelet import Grid
        >>> from tubelet.models import WaltConfig
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, classes=3))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)])
        >>> walt_sample(model, layout, seeds=[0, 1], steps=2, guidance=1.5, labels=torch.tensor([0, 2])).shape
        torch.Size([60, 8])
    """
    if guidance != 1 and not any(inputs.get(name) is not None for name in _LEFT_OUT):
        raise ValueError(f"guidance={guidance}, but no {', '.join(_LEFT_OUT[:-1])} or {_LEFT_OUT[-1]} are given")
    process = walt_process() if process is None else process
    like: dict[str, Any] = {"device": model.embed.weight.device, "dtype": model.embed.weight.dtype}
    index = layout.on(like["device"])
    null = _null(model, layout, inputs)

    def told(given: dict[str, Any], shown: dict[str, Any]) -> Denoiser:
        return lambda x, t: model(x, t, index, **given, **shown)

    def network(x: Tensor, t: Rows, estimate: Tensor | None = None) -> Tensor:
        shown: dict[str, Any] = {} if estimate is None else {"estimate": estimate}
        denoiser = told(inputs, shown)
        return (denoiser if guidance == 1 else cfg(denoiser, told(null, shown), guidance))(x, t)

    step: Any = SelfConditioned(ddim_step) if model.config.self_conditioning else ddim_step
    noise = noise_like(layout, model.config.patch_dim, seeds, **like)
    return sample(network, noise, process.times(steps, **like), process=process, step=step)


def walt_rollout(
    model: Walt,
    starts: Sequence[Float[Tensor, "c _ _ _"]],
    frames: int,
    seeds: Sequence[int],
    *,
    window: int = 5,
    overlap: int = 1,
    **options: Any,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Latents of ``frames`` frames from their first ones, by windows that are given the last frames of the one before.

    Args:
        model: with ``frame_prediction``.
        starts: the first latent frames of each, at least ``overlap`` and equally many; they come back bit for bit.
        frames: how many there shall be.
        seeds: one a video; each window draws anew.
        window: latent frames that are made at once.
        overlap: how many of them are given: one (image to video) or two (the paper's video prediction), or more.
        **options: as for :func:`walt_sample`.

    Raises:
        ValueError: the model has no ``frame_prediction``, or as for :func:`tubelet.diffusion.tasks.rollout`.

    Example:
        >>> from tubelet.models import WaltConfig
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, frame_prediction=True))
        >>> starts = [torch.randn(8, 1, 4, 4), torch.randn(8, 1, 2, 6)]
        >>> long = walt_rollout(model, starts, frames=9, seeds=[0, 1], steps=2)
        >>> long[1].shape, torch.equal(long[0][:, :1], starts[0])
        (torch.Size([8, 9, 2, 6]), True)
    """
    if not model.config.frame_prediction:
        raise ValueError(f"frame_prediction={model.config.frame_prediction}: the model is told of no given frames")

    def make(knowns: list[Known], number: int) -> list[Tensor]:
        known, layout = fold_known(knowns, model.config.patch)
        drawn = further_seeds(seeds, number)
        patches = walt_sample(model, layout, drawn, known=known.channels, **options)
        return unfold_packed(known.apply(patches), _grids(layout), model.config.patch)

    return rollout(make, starts, frames, window=window, overlap=overlap)


def upsampled(latents: Float[Tensor, "c t h w"], scale: int) -> Float[Tensor, "c t h2 w2"]:
    """Each position ``scale`` times along height and width.

    Example:
        >>> upsampled(torch.tensor([[[[1.0, 2.0]]]]), 2)[0, 0].tolist()
        [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    return F.interpolate(latents, scale_factor=(scale, scale), mode="nearest")


@torch.no_grad()
def walt_upsample(
    model: Walt,
    lows: Sequence[Float[Tensor, "c _ _ _"]],
    seeds: Sequence[int],
    *,
    scale: int = 2,
    level: float = 0.1,
    process: Process | None = None,
    **options: Any,
) -> list[Float[Tensor, "c _ _ _"]]:
    """One super-resolution stage: latents ``scale`` times as high and wide.

    Args:
        model: with ``super_resolution``.
        lows: the latents of the stage before, of any sizes.
        seeds: one a video, of the noise in the lower resolution and of the sampler.
        scale: of height and width.
        level: that of the noise in the lower resolution, of which the network is told.
        process: None means :func:`walt_process`.
        **options: as for :func:`walt_sample`.

    Raises:
        ValueError: the model has no ``super_resolution``, ``scale`` is no positive whole number, ``level`` is outside
            [0, 1], and as for :func:`walt_sample`.

    Example:
        >>> from tubelet.models import WaltConfig
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, super_resolution=True))
        >>> walt_upsample(model, [torch.randn(8, 3, 2, 4)], seeds=[0], steps=2)[0].shape
        torch.Size([8, 3, 4, 8])
    """
    if not model.config.super_resolution:
        raise ValueError(f"super_resolution={model.config.super_resolution}: the model takes no lower resolution")
    if type(scale) is not int or scale < 1:
        raise ValueError(f"scale must be a positive whole number, got {scale!r}")
    if not 0 <= level <= 1:
        raise ValueError(f"level must lie in [0, 1], got {level}")
    process = walt_process() if process is None else process
    weight = model.embed.weight
    patches, grids = fold_packed([upsampled(low, scale).to(weight) for low in lows], model.config.patch)
    layout = TokenLayout.packed(grids)
    beside = further_seeds(seeds, _BESIDE)  # the sampler's own noise would tell of this
    noise = noise_like(layout, patches.shape[-1], beside, device=weight.device, dtype=weight.dtype)
    levels = torch.full((len(lows),), level, device=weight.device, dtype=weight.dtype)
    low = process.noise(patches, noise, Rows(levels[:1]))
    made = walt_sample(model, layout, seeds, process=process, low=low, noise=levels, **options)
    return unfold_packed(made, grids, model.config.patch)


def walt_cascade(
    stages: Sequence[Walt],
    latents: Sequence[Float[Tensor, "c _ _ _"]],
    seeds: Sequence[int],
    **options: Any,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Latents through super-resolution stages one after another; ``options`` are those of :func:`walt_upsample`.

    Example:
        >>> from tubelet.models import WaltConfig
        >>> stage = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, super_resolution=True))
        >>> walt_cascade([stage, stage], [torch.randn(8, 1, 2, 3)], seeds=[0], steps=1)[0].shape
        torch.Size([8, 1, 8, 12])
    """
    made = list(latents)
    for number, model in enumerate(stages):
        made = walt_upsample(model, made, further_seeds(seeds, number), **options)
    return made


def _null(model: Walt, layout: TokenLayout, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without class, text and given frames."""
    null = {name: value for name, value in inputs.items() if name != "known"}
    if model.label is not None and "labels" in inputs:
        null["labels"] = torch.full_like(inputs["labels"], model.label.null or 0)
    if "text" in inputs:
        samples = len(layout.grids)
        no_words = [0] * samples
        empty = TokenLayout.padded(no_words, 1) if layout.batched else TokenLayout.packed([None] * samples, no_words)
        null |= {"text": inputs["text"].new_zeros(*empty.shape, inputs["text"].shape[-1]), "text_layout": empty}
    return null


def _grids(layout: TokenLayout) -> list[Any]:
    return [grid for grid in layout.grids if grid is not None]
