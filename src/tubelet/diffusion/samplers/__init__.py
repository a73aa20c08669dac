"""Samplers over any callable denoiser: pure steps from noise level to noise level, and the loop over a tensor of times.

A one-step method is ``step(denoiser, x, t, s, process) -> x_s`` with noise levels as ``Rows``; a solver that remembers
is ``solver.step(denoiser, x, t, s, process, history) -> (x_s, history)``. A token whose level does not change
(``t == s``, such as a known frame at 0) is returned bit for bit, whatever the denoiser says of it. Steps read no tensor
on the host, so that they compile whole and never stall a device. Shapes: ``(*lead, c)``.
"""

from tubelet.diffusion.samplers.loop import OneStep, Seeded, State, lift, sample, trajectory
from tubelet.diffusion.samplers.multistep import ExponentialAdams, Past, deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from tubelet.diffusion.samplers.named import SOLVERS as SOLVERS
from tubelet.diffusion.samplers.noising import Churned, ancestral_step, renoise
from tubelet.diffusion.samplers.renewal import Variance, ddim_step, ddpm_step, lcm_step
from tubelet.diffusion.samplers.rows import hold, one_row
from tubelet.diffusion.samplers.runge_kutta import euler_step, heun_step, midpoint_step, rk4_step
from tubelet.diffusion.samplers.singlestep import dpmpp_2s_step
from tubelet.diffusion.samplers.tapering import Tapered, TaperedHistory
from tubelet.diffusion.samplers.times import (
    beta_times,
    exponential_times,
    karras_times,
    leading_times,
    linear_times,
    trailing_times,
)
from tubelet.diffusion.samplers.unipc import Corrected, UniPC

__all__ = [
    "Churned",
    "Corrected",
    "ExponentialAdams",
    "OneStep",
    "Past",
    "Seeded",
    "State",
    "Tapered",
    "TaperedHistory",
    "UniPC",
    "Variance",
    "ancestral_step",
    "beta_times",
    "ddim_step",
    "ddpm_step",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_step",
    "dpmpp_3m",
    "euler_step",
    "exponential_times",
    "heun_step",
    "hold",
    "karras_times",
    "lcm_step",
    "leading_times",
    "lift",
    "linear_times",
    "midpoint_step",
    "one_row",
    "renoise",
    "rk4_step",
    "sample",
    "trailing_times",
    "trajectory",
]
