"""The cost of a sampler's step against diffusers' scheduler of the same name: everything but the network.

Both follow one trajectory on the latents of a real model, with a network that costs nothing, on the same levels and
with the same noise, drawn beforehand. Both are compared with ours in float64 before anything is timed. In the table
theirs comes first, so that ``× first`` is our cost over theirs.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import Case
from tubelet.diffusion import (
    EDM,
    VP,
    Churned,
    Process,
    RectifiedFlow,
    UniPC,
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
    lcm_step,
    midpoint_step,
    noise_ratio,
    sample,
    time_of_ratio,
)

__all__ = ["SHAPE", "STEPS", "cases"]

SHAPE = (1, 16, 13, 30, 52)
"""Latents of 49 frames of 240 x 416."""
STEPS = 20
"""Steps of a timed run."""
TABLE, FLOW, NOISY = VP.linear(), RectifiedFlow(), EDM(50.0)
LINEAR = MappingProxyType({"beta_start": 1e-4, "beta_end": 0.02})
FLOWING = MappingProxyType({"use_flow_sigmas": True, "prediction_type": "flow_prediction"})

Way = tuple[Any, Tensor, Process, Callable[[Iterator[Tensor]], Any], dict[str, Any]]
"""A scheduler that is ready, our times, our process, our step for a stream of noise, and what their step takes."""


def cases(device: str) -> Iterator[list[Case]]:
    """A group for each sampler: theirs, then ours."""
    if device != "cpu":
        raise SystemExit("the suite of samplers runs on the CPU")
    generator = torch.Generator().manual_seed(0)
    start, out, noise = torch.randn(3, *SHAPE, generator=generator).unbind(0)
    for name, (scheduler, times, process, step, options) in _ways().items():
        both = torch.cat([out, out.tanh()], dim=1) if "learned" in name else out
        theirs = partial(_theirs, scheduler, both, start, noise, options)
        ours = partial(_ours, times, process, step, both, start, noise)
        exact = _ours(times, process, step, both.double(), start.double(), noise.double())
        group = f"samplers: {name}, {len(times) - 1} steps on {' x '.join(map(str, SHAPE))}, float32"
        runs = {type(scheduler).__name__: theirs, "tubelet": ours}
        yield [Case(group, label, run, exact, len(times) - 1, 1e-4) for label, run in runs.items()]


def _ours(
    times: Tensor, process: Process, step: Callable[[Iterator[Tensor]], Any], out: Tensor, start: Tensor, noise: Tensor
) -> Tensor:
    made = step(itertools.repeat(noise))
    with torch.inference_mode():
        return sample(lambda x, t: out, start, times, process=process, step=made)


def _theirs(ready: Any, out: Tensor, start: Tensor, noise: Tensor, options: dict[str, Any]) -> Tensor:
    scheduler, x = copy.copy(ready), start
    vars(scheduler).update({name: list(value) for name, value in vars(ready).items() if type(value) is list})
    drawn = {name: noise if value == "noise" else value for name, value in options.items()}
    draws = f"{type(scheduler).__module__}.randn_tensor"
    with torch.inference_mode(), patch(draws, lambda *_, **__: noise, create=True):
        for label in scheduler.timesteps:
            x = scheduler.step(out, label, x, **drawn).prev_sample
    return x


def _ways() -> dict[str, Way]:
    import diffusers as d

    table = Process(path=TABLE, prediction="eps")
    flow, noisy = Process(path=FLOW), Process(path=NOISY, prediction="eps")
    here, flows, powers = _levels()
    dpm, unipc = partial(d.DPMSolverMultistepScheduler, **LINEAR), partial(d.UniPCMultistepScheduler, **LINEAR)
    third, rough = {"solver_order": 3, "lower_order_final": False}, {"algorithm_type": "sde-dpmsolver++"}
    churn = {"s_churn": 2.0, "s_noise": 1.0}
    ways: dict[str, Way] = {
        "DDIM": _own(d.DDIMScheduler(clip_sample=False, **LINEAR), table, lambda noise: ddim_step),
        "DDIM, eta 1": _own(
            d.DDIMScheduler(clip_sample=False, **LINEAR),
            table,
            lambda noise: partial(ddim_step, eta=1.0, noise=noise),
            eta=1.0,
            variance_noise="noise",
        ),
        "DDPM": _own(
            d.DDPMScheduler(clip_sample=False, **LINEAR), table, lambda noise: partial(ddpm_step, noise=noise)
        ),
        "DDPM, learned variance": _own(
            d.DDPMScheduler(clip_sample=False, variance_type="learned_range", **LINEAR),
            table,
            lambda noise: partial(ddpm_step, noise=noise, variance="learned_range", parts=lambda p: p.chunk(2, dim=1)),
        ),
        "LCM": _own(
            d.LCMScheduler(clip_sample=False, **LINEAR),
            table,
            lambda noise: partial(lcm_step, noise=noise, boundary=0.5 / 10_000),
        ),
        "Euler on a flow": _put(d.FlowMatchEulerDiscreteScheduler(), flows, flows, flow, lambda noise: euler_step),
        "2M": _put(dpm(), here, noise_ratio(TABLE, here), table, lambda noise: dpmpp_2m()),
        "2M on a flow": _put(d.DPMSolverMultistepScheduler(**FLOWING), flows, flows, flow, lambda noise: dpmpp_2m()),
        "3M": _put(dpm(**third), here, noise_ratio(TABLE, here), table, lambda noise: dpmpp_3m()),
        "2M SDE": _put(dpm(**rough), here, noise_ratio(TABLE, here), table, dpmpp_2m_sde, variance_noise="noise"),
        "DEIS 3": _put(
            d.DEISMultistepScheduler(solver_order=3, lower_order_final=False, **LINEAR),
            here[:-1],
            noise_ratio(TABLE, here[:-1]),
            table,
            lambda noise: deis(3),
        ),
        "UniPC 2": _put(unipc(), here, noise_ratio(TABLE, here), table, lambda noise: UniPC(2)),
        "UniPC 2 on a flow": _put(d.UniPCMultistepScheduler(**FLOWING), flows, flows, flow, lambda noise: UniPC(2)),
        "UniPC 3": _put(unipc(**third), here[:-1], noise_ratio(TABLE, here[:-1]), table, lambda noise: UniPC(3)),
        "Euler": _put(d.EulerDiscreteScheduler(), powers / 50, powers, noisy, lambda noise: euler_step),
        "Euler with churn": _put(
            d.EulerDiscreteScheduler(),
            powers / 50,
            powers,
            noisy,
            lambda noise: Churned(euler_step, 2.0 / STEPS, noise),
            **churn,
        ),
        "Euler, ancestral": _put(
            d.EulerAncestralDiscreteScheduler(),
            powers / 50,
            powers,
            noisy,
            lambda noise: partial(ancestral_step, noise=noise),
        ),
        "2S": _single(d.DPMSolverSinglestepScheduler(**LINEAR), here, table),
        "Heun": _heun(d.HeunDiscreteScheduler(), powers, noisy),
        "midpoint": _midpoint(d.KDPM2DiscreteScheduler(), powers[:-1], noisy),
    }
    return ways


def _levels() -> tuple[Tensor, Tensor, Tensor]:
    """Times on a table and on a flow, and k-diffusion's sigmas; all end at 0."""
    end = torch.zeros(1, dtype=torch.float64)
    table = (torch.linspace(999, 40, STEPS).round().double() + 1) / 1000
    sigmas = torch.logspace(1.5, -1, STEPS, dtype=torch.float64)
    return torch.cat([table, end]), torch.linspace(0.98, 0, STEPS + 1).double(), torch.cat([sigmas, end])


def _own(scheduler: Any, process: Process, step: Callable[[Iterator[Tensor]], Any], **options: Any) -> Way:
    """Theirs on its own timesteps, which are indices of a table."""
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "one"):
        scheduler.one = torch.tensor(1.0)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    return scheduler, times, process, step, options


def _put(
    scheduler: Any,
    times: Tensor,
    sigmas: Tensor,
    process: Process,
    step: Callable[[Iterator[Tensor]], Any],
    **options: Any,
) -> Way:
    """Theirs on given levels."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas, scheduler.timesteps = sigmas.float(), torch.arange(len(sigmas) - 1, dtype=torch.float32)
    scheduler.is_scale_input_called = True
    return scheduler, times, process, step, options


def _single(scheduler: Any, times: Tensor, process: Process) -> Way:
    """Theirs finds the middles of its steps among the levels."""
    coarse = torch.cat([times[:-1:2], times[-1:]])
    ratios = noise_ratio(process.path, coarse)
    middles = time_of_ratio(process.path, (ratios[:-2] * ratios[1:-1]).sqrt())
    every = torch.cat([coarse, middles]).sort(descending=True).values
    return _put(scheduler, coarse, noise_ratio(process.path, every), process, lambda noise: dpmpp_2s_step)


def _heun(scheduler: Any, sigmas: Tensor, process: Process) -> Way:
    """Theirs lists each level that two steps share twice."""
    twice = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    return _put(scheduler, sigmas / 50, twice, process, lambda noise: heun_step)


def _midpoint(scheduler: Any, sigmas: Tensor, process: Process) -> Way:
    """Theirs has its middles at the mean of log sigma."""
    middles = (sigmas[:-1] * sigmas[1:]).sqrt()
    ready = _put(
        scheduler,
        sigmas / 50,
        torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)]),
        process,
        lambda noise: partial(midpoint_step, middle=_geometric),
    )
    scheduler.sigmas_interpol = torch.cat([sigmas[:1], middles.repeat_interleave(2)]).float()
    return ready


def _geometric(t: Tensor, s: Tensor) -> Tensor:
    return (t * s).sqrt()
