"""A denoiser of one process used by another: perfect ones become perfect ones, and trajectories meet."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tubelet.diffusion import (
    EDM,
    VP,
    VPSDE,
    Normalized,
    Process,
    RectifiedFlow,
    coefficients,
    converted,
    heun_step,
    sample,
)
from tubelet.layout import Rows

MEAN, STD = 0.4, 0.6
PROCESSES = {
    "flow": Process(),
    "eps": Process(path=VP.linear(), prediction="eps"),
    "v": Process(path=VP.scaled_linear().zero_terminal_snr(), prediction="v"),
    "edm": Process(path=EDM(150.0), prediction="x0"),
    "sde": Process(path=VPSDE(), prediction="eps"),
    "cosmos": Process(path=Normalized(RectifiedFlow()), prediction="v"),
}


def gaussian(process: Process):
    """The best denoiser for normal data of mean MEAN and deviation STD."""

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        at = coefficients(process.path, t, x)
        error = x - at.alpha * MEAN
        variance = at.alpha**2 * STD**2 + at.sigma**2
        x0, eps = MEAN + at.alpha * STD**2 * error / variance, at.sigma * error / variance
        if process.prediction == "x0":
            return x0
        if process.prediction == "eps":
            return eps
        if process.prediction == "v":
            return at.alpha * eps - at.sigma * x0
        return at.alpha_dot * x0 + at.sigma_dot * eps

    return denoiser


@pytest.mark.parametrize(("own", "wanted"), list(itertools.permutations(PROCESSES, 2)))
def test_the_best_denoiser_becomes_the_best_denoiser(own: str, wanted: str) -> None:
    rows = Rows(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0]))
    x = torch.randn(5, 3, dtype=torch.float64) * 2
    got = converted(gaussian(PROCESSES[own]), PROCESSES[own], PROCESSES[wanted])(x, rows)
    torch.testing.assert_close(got, gaussian(PROCESSES[wanted])(x, rows), rtol=1e-8, atol=1e-8)


def test_a_model_of_noise_on_a_table_samples_along_the_straight_path() -> None:
    trained, noise = PROCESSES["v"], torch.randn(500, 1, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    flow = converted(gaussian(trained), trained, Process())
    times = Process().times(20, dtype=torch.float64)
    made = sample(flow, noise, times, process=Process(), step=heun_step)
    assert abs(float(made.mean()) - MEAN) < 1e-3
    assert abs(float(made.std()) - STD) < 1e-2


def test_pure_noise_beyond_a_tables_end_is_its_last_index() -> None:
    seen: list[Tensor] = []

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        seen.append(t.values)
        return 0.5 * x

    flow = converted(denoiser, PROCESSES["eps"], Process())
    out = flow(torch.ones(2, 1), Rows(torch.ones(1)))
    assert seen[0].tolist() == [1.0]
    assert bool(out.isfinite().all())


def test_the_dtype_of_the_state_is_kept() -> None:
    flow = converted(lambda x, t: x, PROCESSES["v"], Process())
    assert flow(torch.ones(2, 1, dtype=torch.bfloat16), Rows(torch.tensor([0.3]))).dtype == torch.bfloat16


COMPILED = """
import torch
from tubelet.diffusion import VP, Process, converted
from tubelet.layout import Rows

trained, wanted = Process(path=VP.scaled_linear().zero_terminal_snr(), prediction="v"), Process()
run = lambda x, t, index: converted(lambda x, t: torch.sin(x), trained, wanted)(x, Rows(t, index))
arguments = torch.randn(4, 2).double(), torch.tensor([0.2, 0.7]).double(), torch.tensor([0, 1, 1, 0])
torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(*arguments), run(*arguments))
"""


@pytest.mark.graph
def test_a_converted_denoiser_compiles_whole() -> None:
    # a fresh process: tracing cannot rebuild the shape hook's wrappers
    done = subprocess.run([sys.executable, "-c", COMPILED], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
