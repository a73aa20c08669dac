"""Diffusion mathematics: paths, predictions, the shared process, samplers, guidance and known frames. All stateless.

Everything acts on patches ``(*lead, c)`` (``n c`` packed, ``b n c`` dense; levels per sample also serve raw videos
``b c t h w``) with noise levels as :class:`~tubelet.layout.Rows`: per sample, frame or token. Time runs from 0 (data)
to 1 (noise) and ``x_t = alpha(t)·x0 + sigma(t)·eps``; every conversion follows from those two and their derivatives
(Lipman et al., 2023, arXiv:2210.02747; Kingma et al., 2021, arXiv:2107.00630).
"""

from tubelet.diffusion.condition_dropout import Drops, draw_dropped, independent_drops, nulled
from tubelet.diffusion.conventions import Invertible, log_snr, noise_ratio, time_of_log_snr, time_of_ratio
from tubelet.diffusion.conversion import converted
from tubelet.diffusion.densities import (
    Density,
    cosmap,
    discrete,
    log_normal,
    logit_normal,
    mode,
    stratified,
    uniform,
)
from tubelet.diffusion.forcing import draw_levels, staircase
from tubelet.diffusion.guidance import cfg, interval
from tubelet.diffusion.known import Known
from tubelet.diffusion.losses import masked_mean, squared_error
from tubelet.diffusion.noise import noise_like, noise_stream
from tubelet.diffusion.offset import offset_noise
from tubelet.diffusion.paths import EDM, VESDE, VP, VPSDE, Normalized, RectifiedFlow
from tubelet.diffusion.posteriors import Posterior, learned_range, posterior, range_share
from tubelet.diffusion.predictions import Coefficients, Prediction, coefficients, from_x0_eps, level, to_x0_eps
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers import (
    Churned,
    Corrected,
    ExponentialAdams,
    OneStep,
    Past,
    State,
    UniPC,
    Variance,
    ancestral_step,
    ddim_step,
    ddpm_step,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_step,
    dpmpp_3m,
    euler_step,
    heun_step,
    hold,
    lcm_step,
    lift,
    midpoint_step,
    one_row,
    renoise,
    rk4_step,
    sample,
    trajectory,
)
from tubelet.diffusion.self_conditioning import SelfConditioned, SelfConditionedNetwork, self_conditioned
from tubelet.diffusion.variational import bin_log_likelihood, hybrid_loss, normal_kl, vlb
from tubelet.diffusion.warps import identity, log_linear_shift, root_shift, shift_warp
from tubelet.diffusion.weights import Importance, constant, edm_weight, min_snr, p2, truncated_snr, weighted

__all__ = [
    "EDM",
    "VESDE",
    "VP",
    "VPSDE",
    "Churned",
    "Coefficients",
    "Corrected",
    "Density",
    "Drops",
    "ExponentialAdams",
    "Importance",
    "Invertible",
    "Known",
    "Normalized",
    "OneStep",
    "Past",
    "Posterior",
    "Prediction",
    "Process",
    "RectifiedFlow",
    "SelfConditioned",
    "SelfConditionedNetwork",
    "State",
    "UniPC",
    "Variance",
    "ancestral_step",
    "bin_log_likelihood",
    "cfg",
    "coefficients",
    "constant",
    "converted",
    "cosmap",
    "ddim_step",
    "ddpm_step",
    "deis",
    "discrete",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_step",
    "dpmpp_3m",
    "draw_dropped",
    "draw_levels",
    "edm_weight",
    "euler_step",
    "from_x0_eps",
    "heun_step",
    "hold",
    "hybrid_loss",
    "identity",
    "independent_drops",
    "interval",
    "lcm_step",
    "learned_range",
    "level",
    "lift",
    "log_linear_shift",
    "log_normal",
    "log_snr",
    "logit_normal",
    "masked_mean",
    "midpoint_step",
    "min_snr",
    "mode",
    "noise_like",
    "noise_ratio",
    "noise_stream",
    "normal_kl",
    "nulled",
    "offset_noise",
    "one_row",
    "p2",
    "posterior",
    "range_share",
    "renoise",
    "rk4_step",
    "root_shift",
    "sample",
    "self_conditioned",
    "shift_warp",
    "squared_error",
    "staircase",
    "stratified",
    "time_of_log_snr",
    "time_of_ratio",
    "to_x0_eps",
    "trajectory",
    "truncated_snr",
    "uniform",
    "vlb",
    "weighted",
]
