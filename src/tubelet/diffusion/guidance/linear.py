"""Guidance by sums: a prediction plus scaled differences of predictions. It is the same in every space.

All that converts a prediction (eps, x0, v, velocity) is affine, and the weights of these sums add up to 1; so nothing
has to be converted. Classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598) is the sum of one difference.
"""

from functools import partial

import torch
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.scales import Scale, check_finite, factor
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["autoguidance", "cfg", "cfg_excess", "compose", "skip_layer", "two_conditions"]


def cfg(conditional: Denoiser, unconditional: Denoiser, scale: Scale) -> Denoiser:
    """Classifier-free guidance, ``u + scale·(c - u)``: 1 is the conditional prediction, 0 the unconditional one.

    The two are called one after the other; ``cfg(*batched(both), scale)`` and ``cfg(*packed(both, layout), scale)`` ask
    for both in one call.

    Args:
        conditional: the denoiser with its condition.
        unconditional: the denoiser without, or with a negative prompt.
        scale: the guidance scale: a number, rows, or a function of the noise level such as :func:`interval`.

    Raises:
        ValueError: ``scale`` is a number that is not finite; at the call, the two predictions differ in shape.

    Example:
        >>> import torch
        >>> guided = cfg(lambda x, t: x, lambda x, t: 0 * x, 3.0)
        >>> guided(torch.ones(2, 1), Rows(torch.tensor([0.5]))).tolist()
        [[3.0], [3.0]]
    """
    check_finite(scale=scale)
    return Guided(partial(_between, scale=scale), conditional=conditional, unconditional=unconditional)


def cfg_excess(conditional: Denoiser, unconditional: Denoiser, excess: Scale) -> Denoiser:
    """Classifier-free guidance in the other convention, ``c + excess·(c - u)``, whose number is ``scale - 1``.

    It is that of the paper (arXiv:2207.12598, equation 6) and of U-ViT (Bao et al., 2023, arXiv:2209.12152), whose 0.4
    is 1.4 in :func:`cfg`.

    Raises:
        ValueError: as for :func:`cfg`.

    Example:
        >>> import torch
        >>> guided = cfg_excess(lambda x, t: x, lambda x, t: 0 * x, 0.5)
        >>> guided(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()
        [[1.5]]
    """
    check_finite(excess=excess)
    return compose(conditional, (excess, conditional, unconditional))


def autoguidance(main: Denoiser, weak: Denoiser, scale: Scale) -> Denoiser:
    """Guide a model by a worse version of itself: ``weak + scale·(main - weak)``.

    Both have the condition; the weak model is smaller, trained less, or has some blocks :func:`skipped`. Karras et al.,
    2024, arXiv:2406.02507.

    Raises:
        ValueError: as for :func:`cfg`.

    Example:
        >>> import torch
        >>> autoguidance(lambda x, t: x, lambda x, t: 0 * x, 2.0)(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()
        [[2.0]]
    """
    check_finite(scale=scale)
    return Guided(partial(_between, scale=scale), main=main, weak=weak)


def skip_layer(guided: Denoiser, conditional: Denoiser, skipped: Denoiser, scale: Scale) -> Denoiser:
    """Skip-layer guidance, ``guided + scale·(c - s)``, with ``s`` of the conditional model less some blocks.

    It is spatio-temporal guidance with residual skips (STG, Hyung et al., 2024, arXiv:2411.18664; SLG in
    Stable Diffusion 3.5). Make the third denoiser of a model whose blocks are skipped:
    :func:`tubelet.diffusion.skipped`. Limit it to some levels by ``interval(scale, low, high, outside=0.0)``.

    Args:
        guided: what is added to, such as ``cfg(c, u, 7.5)``, or ``conditional`` itself.
        conditional: the whole model with its condition.
        skipped: the model with some blocks skipped, with the same condition.
        scale: how much of the difference is added.

    Raises:
        ValueError: as for :func:`cfg`.

    Example:
        >>> import torch
        >>> c, s = (lambda x, t: x), (lambda x, t: 0.5 * x)
        >>> skip_layer(c, c, s, 2.8)(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()
        [[2.4000000953674316]]
    """
    check_finite(scale=scale)
    return compose(guided, (scale, conditional, skipped))


def two_conditions(
    both: Denoiser, image: Denoiser, neither: Denoiser, *, image_scale: Scale, text_scale: Scale
) -> Denoiser:
    """Two conditions with a scale each, ``e(0,0) + s_I·[e(I,0) - e(0,0)] + s_T·[e(I,T) - e(I,0)]``.

    InstructPix2Pix (Brooks et al., 2023, arXiv:2211.09800, equation 3); its usual scales are 1.5 and 7.5.

    Args:
        both: with image and text.
        image: with the image alone.
        neither: with neither.
        image_scale: how much the image counts.
        text_scale: how much the text counts.

    Raises:
        ValueError: as for :func:`cfg`.

    Example:
        >>> import torch
        >>> both, image, neither = (lambda x, t: 3 * x), (lambda x, t: 2 * x), (lambda x, t: x)
        >>> guided = two_conditions(both, image, neither, image_scale=1.5, text_scale=7.5)
        >>> guided(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()
        [[10.0]]
    """
    check_finite(image_scale=image_scale, text_scale=text_scale)
    rule = partial(_two, image_scale=image_scale, text_scale=text_scale)
    return Guided(rule, both=both, image=image, neither=neither)


def compose(base: Denoiser, *terms: tuple[Scale, Denoiser, Denoiser]) -> Denoiser:
    """The general sum, ``base + sum of scale·(towards - away)``.

    With ``away = base`` it is composable diffusion (Liu et al., 2022, arXiv:2206.01714): several
    conditions, each with its scale; a negative one is led away from.

    Args:
        base: the prediction that is added to, and whose learned variance, if any, stands.
        terms: ``(scale, towards, away)`` each.

    Raises:
        ValueError: as for :func:`cfg`.

    Example:
        >>> import torch
        >>> nothing, sea, sky = (lambda x, t: 0 * x), (lambda x, t: x), (lambda x, t: 2 * x)
        >>> guided = compose(nothing, (3.0, sea, nothing), (-1.0, sky, nothing))
        >>> guided(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()
        [[1.0]]
    """
    scales = tuple(scale for scale, _, _ in terms)
    check_finite(**{f"scale {number}": scale for number, scale in enumerate(scales)})
    inputs = {"base": base}
    for number, (_, towards, away) in enumerate(terms):
        inputs |= {f"towards {number}": towards, f"away {number}": away}
    return Guided(partial(_sum, scales=scales), **inputs)


def _between(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, scale: Scale) -> Tensor:
    towards, away = map(_wide, predictions)
    difference = towards - away
    return (away + factor(scale, t, difference) * difference).to(predictions[0].dtype)


def _two(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, image_scale: Scale, text_scale: Scale) -> Tensor:
    both, image, neither = map(_wide, predictions)
    of_image, of_text = image - neither, both - image
    total = neither + factor(image_scale, t, of_image) * of_image + factor(text_scale, t, of_text) * of_text
    return total.to(predictions[0].dtype)


def _sum(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, scales: tuple[Scale, ...]) -> Tensor:
    total, *ends = map(_wide, predictions)
    for scale, (towards, away) in zip(scales, zip(ends[::2], ends[1::2], strict=True), strict=True):
        difference = towards - away
        total = total + factor(scale, t, difference) * difference
    return total.to(predictions[0].dtype)


def _wide(prediction: Tensor) -> Tensor:
    """Half precision in float32: a large scale would multiply the rounding of the difference."""
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))
