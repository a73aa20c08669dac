"""The training loss of W.A.L.T on packed latents of any sizes (arXiv:2312.06662, sections 3.3 and 3.4).

Each sample draws a noise level; whether the network is shown its own estimate; how many of its first frames are given;
and, in a super-resolution stage, the level of the noise in the lower resolution.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion import Known, Process, self_conditioned
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.models.walt import Walt, walt_process

__all__ = ["walt_loss"]


def walt_loss(
    model: Walt,
    x0: Float[Tensor, "*lead p"],
    layout: TokenLayout | LayoutIndex,
    generator: torch.Generator,
    *,
    process: Process | None = None,
    self_conditioning: float = 0.9,
    frame_prediction: float = 0.0,
    low: Float[Tensor, "*lead p"] | None = None,
    most_noise: float = 0.5,
    **inputs: Any,
) -> Float[Tensor, ""]:
    """The loss of one batch over its real tokens; all is drawn where the generator is.

    Classes and text are taken as they are given. Guided sampling (``walt_sample(guidance=)``) needs them missing in a
    share of the samples: put ``model.label.null`` in the place of labels by :func:`tubelet.diffusion.draw_dropped`, and
    leave out the tokens of dropped prompts.

    Args:
        model: to be trained.
        x0: clean patches of unit variance.
        layout: where their samples lie.
        generator: of levels, noise and choices.
        process: None means :func:`walt_process`.
        self_conditioning: the share of samples that see an estimate, made by a first call without gradients; 0 where
            the config has none.
        frame_prediction: the share of samples of which the first frames are given, half of these one, half two, though
            never all; 0 where the config has none.
        low: the clean lower resolution, upsampled, for a super-resolution stage; it is noised by a level drawn evenly
            from 0 to ``most_noise``.
        most_noise: see ``low``.
        **inputs: ``labels``, ``text``, ``text_layout``.

    Raises:
        ValueError: a share outside [0, 1] or of what the config has not, and what the model refuses.

    Example:
        >>> from tubelet import Grid
        >>> from tubelet.models import WaltConfig
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, frame_prediction=True))
        >>> layout, draw = TokenLayout.packed([Grid(3, 2, 2), Grid(1, 2, 2)]), torch.Generator().manual_seed(0)
        >>> walt_loss(model, torch.randn(16, 8), layout, draw, frame_prediction=0.5).shape
        torch.Size([])

        With classes, a tenth of them dropped:

        >>> from tubelet.diffusion import draw_dropped
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, classes=3))
        >>> dropped = draw_dropped({("label",): 0.1}, 2, draw)["label"]
        >>> labels = torch.where(dropped, model.label.null, torch.tensor([0, 2]))
        >>> walt_loss(model, torch.randn(16, 8), layout, draw, labels=labels).shape
        torch.Size([])
    """
    process = walt_process() if process is None else process
    index = layout.on(x0.device) if isinstance(layout, TokenLayout) else layout
    shares = {"self_conditioning": self_conditioning, "frame_prediction": frame_prediction, "most_noise": most_noise}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    if frame_prediction and not model.config.frame_prediction:
        raise ValueError(f"frame_prediction={frame_prediction}, but the model has frame_prediction=False")
    chosen = index.rows(_less(self_conditioning, index, generator), "sample")
    if frame_prediction:
        inputs["known"] = Known(_given(index, frame_prediction, generator), x0).channels
    if low is not None:
        inputs["noise"] = most_noise * torch.rand(index.samples, generator=generator, device=generator.device).to(x0)
        inputs["low"] = process.noise(low, _normal(low, generator), index.rows(inputs["noise"], "sample"))
    drawn = process.draw_times((index.samples,), generator, device=x0.device, dtype=x0.dtype)
    t, noise = index.rows(drawn, "sample"), _normal(x0, generator)
    x = process.noise(x0, noise, t)
    if not model.config.self_conditioning:
        return process.loss(model(x, t, index, **inputs), x0, noise, t, mask=index.valid)

    def network(x: Tensor, t: Rows, estimate: Tensor) -> Tensor:
        prediction: Tensor = model(x, t, index, **inputs, estimate=estimate)
        return prediction

    return process.loss(self_conditioned(network, process, x, t, chosen), x0, noise, t, mask=index.valid)


def _given(index: LayoutIndex, share: float, generator: torch.Generator) -> Rows:
    """For each token whether it is given: in a share of the samples the first frame or two, of an image none."""
    wanted = torch.where(_less(share, index, generator), 1 + _less(0.5, index, generator).long(), 0)
    counts = torch.minimum(wanted[index.sample.clamp(min=0)], index.extent[..., 0] - 1)
    given = (index.frame < counts) & index.valid
    return Rows(torch.tensor([False, True], device=given.device), given.long())


def _less(share: float, index: LayoutIndex, generator: torch.Generator) -> Tensor:
    """True for a share of the samples."""
    return (torch.rand(index.samples, generator=generator, device=generator.device) < share).to(index.sample.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)
