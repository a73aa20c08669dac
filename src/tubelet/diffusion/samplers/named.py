"""Samplers by name, for command lines and tables of comparison."""

from collections.abc import Mapping
from functools import partial

from tubelet.diffusion.samplers.loop import Seeded
from tubelet.diffusion.samplers.multistep import deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from tubelet.diffusion.samplers.noising import ancestral_step
from tubelet.diffusion.samplers.renewal import ddim_step, ddpm_step
from tubelet.diffusion.samplers.runge_kutta import euler_step, heun_step, midpoint_step, rk4_step
from tubelet.diffusion.samplers.singlestep import dpmpp_2s_step
from tubelet.diffusion.samplers.unipc import UniPC
from tubelet.protocols import SamplerStep, Solver

__all__ = ["SOLVERS"]

SOLVERS: Mapping[str, SamplerStep | Solver | Seeded] = {
    "euler": euler_step,
    "heun": heun_step,
    "midpoint": midpoint_step,
    "rk4": rk4_step,
    "ddim": ddim_step,
    "2s": dpmpp_2s_step,
    "2m": dpmpp_2m(),
    "3m": dpmpp_3m(),
    "unipc": UniPC(),
    "deis": deis(),
    "ddpm": Seeded(lambda noise: partial(ddpm_step, noise=noise)),
    "ancestral": Seeded(lambda noise: partial(ancestral_step, noise=noise)),
    "2m-sde": Seeded(dpmpp_2m_sde),
}
"""Every sampler by name; the last three draw. Example: ``SOLVERS["unipc"]``."""
