"""Diffusion mathematics: paths, predictions, the shared process, samplers, guidance and known frames. All stateless.

Everything acts on patches ``(*lead, c)`` (``n c`` packed, ``b n c`` dense; levels per sample also serve raw videos
``b c t h w``) with noise levels as :class:`~tubelet.layout.Rows`: per sample, frame or token. Time runs from 0 (data)
to 1 (noise) and ``x_t = alpha(t)·x0 + sigma(t)·eps``; every conversion follows from those two and their derivatives
(Lipman et al., 2023, arXiv:2210.02747; Kingma et al., 2021, arXiv:2107.00630).
"""

from tubelet.diffusion.guidance import (
    Distilled,
    Guided,
    Momentum,
    PerSample,
    Rule,
    Scale,
    Skip,
    apg,
    autoguidance,
    batched,
    cfg,
    cfg_excess,
    cfg_zero_star,
    compose,
    distilled,
    dynamic_threshold,
    in_space,
    interval,
    only_channels,
    packed,
    replaced,
    rescale,
    restate,
    skip_layer,
    skipped,
    two_conditions,
    within,
    zero_init,
)
from tubelet.diffusion.known import Known
from tubelet.diffusion.losses import masked_mean, squared_error
from tubelet.diffusion.noise import noise_like, noise_stream
from tubelet.diffusion.paths import VP, RectifiedFlow
from tubelet.diffusion.predictions import Coefficients, Prediction, coefficients, from_x0_eps, level, to_x0_eps
from tubelet.diffusion.process import Density, Process, constant, discrete, identity, logit_normal, shift_warp, uniform
from tubelet.diffusion.samplers import ddim_step, euler_step, heun_step, hold, one_row, sample

__all__ = [
    "VP",
    "Coefficients",
    "Density",
    "Distilled",
    "Guided",
    "Known",
    "Momentum",
    "PerSample",
    "Prediction",
    "Process",
    "RectifiedFlow",
    "Rule",
    "Scale",
    "Skip",
    "apg",
    "autoguidance",
    "batched",
    "cfg",
    "cfg_excess",
    "cfg_zero_star",
    "coefficients",
    "compose",
    "constant",
    "ddim_step",
    "discrete",
    "distilled",
    "dynamic_threshold",
    "euler_step",
    "from_x0_eps",
    "heun_step",
    "hold",
    "identity",
    "in_space",
    "interval",
    "level",
    "logit_normal",
    "masked_mean",
    "noise_like",
    "noise_stream",
    "one_row",
    "only_channels",
    "packed",
    "replaced",
    "rescale",
    "restate",
    "sample",
    "shift_warp",
    "skip_layer",
    "skipped",
    "squared_error",
    "to_x0_eps",
    "two_conditions",
    "uniform",
    "within",
    "zero_init",
]
