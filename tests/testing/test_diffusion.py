"""The kit's checks of paths, denoisers and sampler steps."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet.diffusion import (
    VP,
    Process,
    RectifiedFlow,
    UniPC,
    ddim_step,
    deis,
    dpmpp_2m,
    dpmpp_2s_step,
    euler_step,
    heun_step,
    lift,
    midpoint_step,
    rk4_step,
)
from tubelet.layout import Rows
from tubelet.testing import check_denoiser, check_path, check_sampler_step, check_solver


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear(), VP.cosine()])
def test_our_paths_pass(path: object) -> None:
    check_path(path)


class Path:
    """Rectified flow with one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def alpha(self, t: Tensor) -> Tensor:
        return 0.9 - 0.9 * t if self.fault == "scale" else 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        if self.fault == "order":
            return t * (1 - t)  # with alpha = 1 - t: the ratio is t, then constant below
        return t.double() if self.fault == "dtype" else t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1.0 if self.fault == "sign" else -1.0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("scale", r"alpha\(0\)"), ("order", "sigma_dot"), ("sign", "alpha_dot differs"), ("dtype", "float32 times gave")],
)
def test_bad_paths_are_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_path(Path(fault))


@pytest.mark.parametrize("step", [euler_step, heun_step, midpoint_step, rk4_step, ddim_step, dpmpp_2s_step])
def test_our_steps_pass(step: Any) -> None:
    check_sampler_step(step)


def test_ddim_passes_on_a_curved_path() -> None:
    check_sampler_step(ddim_step, Process(path=VP.cosine(), prediction="eps"))


def test_bad_steps_are_named() -> None:
    def backwards(denoiser: Any, x: Tensor, t: Rows, s: Rows, process: Process) -> Tensor:
        return x + (t.expand() - s.expand())[:, None] * denoiser(x, t)

    def careless(denoiser: Any, x: Tensor, t: Rows, s: Rows, process: Process) -> Tensor:
        step = (s.expand() - t.expand())[:, None]
        return x + step * denoiser(x, t) + 1e-9 * denoiser(x, t).clamp(min=100)

    def widening(denoiser: Any, x: Tensor, t: Rows, s: Rows, process: Process) -> Tensor:
        return euler_step(denoiser, x.double(), t, s, process)

    def mixing(denoiser: Any, x: Tensor, t: Rows, s: Rows, process: Process) -> Tensor:
        exact = x.shape[0] == 6 and x.dtype == torch.float32
        return euler_step(denoiser, x, t, s, process) + (0.001 * x.mean() if exact else 0)

    with pytest.raises(AssertionError, match="a float32 state became torch.float64"):
        check_sampler_step(widening)
    with pytest.raises(AssertionError, match="row 0 stepped alone differs"):
        check_sampler_step(mixing)
    with pytest.raises(AssertionError, match="the state after a perfect prediction differs"):
        check_sampler_step(backwards)
    with pytest.raises(AssertionError, match="differs"):
        check_sampler_step(careless)


@pytest.mark.parametrize("solver", [dpmpp_2m(), deis(), UniPC(3), lift(ddim_step)])
def test_our_solvers_pass(solver: Any) -> None:
    check_solver(solver)
    check_solver(solver, Process(path=VP.cosine(), prediction="eps"))


@dataclass
class Faulty:
    """Euler's method with a flaw in how it remembers."""

    fault: str
    hidden: Any = None

    def step(self, denoiser: Any, x: Tensor, t: Rows, s: Rows, process: Process, history: Any = None) -> Any:
        new = euler_step(denoiser, x, t, s, process)
        if self.fault == "hides":
            self.hidden = 0 if history is None else (self.hidden or 0) + 1
            return new + 1e-6 * self.hidden * (new != x), True
        if self.fault == "mixes" and history is not None:
            return new + 1e-3 * x.mean() * (new != x), True
        if self.fault == "drifts" and history is not None:
            return new + 1e-6 * (new != x), True
        if self.fault == "moves" and history is not None:
            return new + 1e-9, True
        return new, True


def test_bad_solvers_are_named() -> None:
    messages = {
        "hides": "the rest of a run that was pickled differs",
        "mixes": "row 0 of a run alone differs|row 1 of a run alone differs",
        "drifts": "the end of a run with perfect predictions differs",
        "moves": "rows whose noise level does not change differs",
    }
    for fault, message in messages.items():
        with pytest.raises(AssertionError, match=message):
            check_solver(Faulty(fault))


def test_denoisers() -> None:
    check_denoiser(lambda x, t: x - t.expand()[..., None], channels=2)
    faults = {
        "sample 0 beside other samples": lambda x, t: x - x.mean(),
        "a second call": lambda x, t: torch.randn_like(x),
        r"patches \(3, 5, 2\) gave \(3, 5, 1\)": lambda x, t: x[..., :1],
        "gave torch.float64": lambda x, t: x.double(),
        "one noise level for all": lambda x, t: x * t.values.shape[0],
    }
    for message, denoiser in faults.items():
        with pytest.raises(AssertionError, match=message):
            check_denoiser(denoiser, channels=2)
