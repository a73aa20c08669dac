"""Predictions restated: noise, data, v and velocity are affine in each other at a given state and noise level.

A guidance that is no sum of predictions is another one in each space; each here works in that of its paper.
"""

from functools import partial
from typing import get_args

import torch
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided, Rule
from tubelet.diffusion.predictions import Coefficients, Prediction, coefficients, from_x0_eps, to_x0_eps
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["in_space", "restate"]


def restate(denoiser: Denoiser, process: Process, kind: Prediction) -> Denoiser:
    """A denoiser that predicts ``process.prediction``, as one that predicts ``kind``.

    Raises:
        ValueError: ``kind`` is not a :data:`~tubelet.diffusion.Prediction`.

    Example:
        >>> data = restate(lambda x, t: torch.ones_like(x), Process(), "x0")
        >>> data(torch.ones(1, 1), Rows(torch.tensor([0.25]))).tolist()
        [[0.75]]
    """
    _check_kind(kind)
    if kind == process.prediction:
        return denoiser
    return Guided(partial(_restated, process=process, kind=kind), denoiser=denoiser)


def in_space(rule: Rule, process: Process, kind: Prediction) -> Rule:
    """A rule on predictions of ``kind``, as one on predictions of ``process.prediction``.

    What the rule adds to the first prediction is converted back; so where the conversion has no inverse (the data tell
    nothing of the noise at level 0) the first prediction stands.

    Raises:
        ValueError: ``kind`` is not a :data:`~tubelet.diffusion.Prediction`.

    Example:
        >>> from tubelet.diffusion import Guided
        >>> black = Guided(in_space(lambda predictions, x, t: 0 * x, Process(), "x0"), plain=lambda x, t: x)
        >>> black(torch.ones(1, 1), Rows(torch.tensor([0.5]))).tolist()  # x0 = 0 is the velocity x / t
        [[2.0]]
    """
    _check_kind(kind)
    return rule if kind == process.prediction else partial(_in_space, rule=rule, process=process, kind=kind)


def _in_space(
    predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, rule: Rule, process: Process, kind: Prediction
) -> Tensor:
    at = coefficients(process.path, t, x)
    there = tuple(_convert(process.prediction, kind, each, x, at) for each in predictions)
    change = rule(there, x, t) - there[0]
    # the linear part of the way back: its value for a change, at the state 0
    back = _convert(kind, process.prediction, change, torch.zeros_like(change), at)
    return (predictions[0] + back).to(predictions[0].dtype)


def _restated(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, process: Process, kind: Prediction) -> Tensor:
    return _convert(process.prediction, kind, predictions[0], x, coefficients(process.path, t, x))


def _convert(have: Prediction, want: Prediction, prediction: Tensor, x: Tensor, at: Coefficients) -> Tensor:
    if prediction.shape != x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, but prediction has {tuple(prediction.shape)}")
    return from_x0_eps(want, *to_x0_eps(have, prediction, x, at), at)


def _check_kind(kind: str) -> None:
    if kind not in get_args(Prediction):
        raise ValueError(f"kind must be one of {get_args(Prediction)}, got {kind!r}")
