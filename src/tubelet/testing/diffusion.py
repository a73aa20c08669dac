"""Checks of noise paths, denoisers and sampler steps. Shapes: patches ``(*lead, c)``, times in [0, 1] with 0 = data."""

import pickle
from itertools import pairwise

import torch

from tubelet.diffusion import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path, SamplerStep, Solver
from tubelet.testing.mixtures import check_module, same

__all__ = ["check_denoiser", "check_path", "check_sampler_step", "check_solver"]


def check_path(path: Path, *, interior: int = 7) -> None:
    """Check a noise path.

    At t = 0 there is data alone; the noise-to-data ratio grows; the derivatives are those of central differences in
    float64 at ``interior`` times between the ends; dtype and shape are kept.

    Raises:
        AssertionError: what differs, and at which time.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> check_path(RectifiedFlow())
    """
    zero = torch.zeros((), dtype=torch.float64)
    same("alpha(0)", path.alpha(zero), torch.ones_like(zero), 1e-6)
    assert path.sigma(zero).abs() <= 1e-3, f"sigma(0) is {path.sigma(zero).item():.3e}, not 0"
    t = torch.linspace(0.05, 0.95, interior, dtype=torch.float64) + 1.7e-4
    angle = torch.atan2(path.sigma(t), path.alpha(t))
    assert (angle.diff() > 0).all(), f"noise over data does not grow with time: {angle.tan().tolist()}"
    step = 1e-6
    for name, value, derivative in (("alpha", path.alpha, path.alpha_dot), ("sigma", path.sigma, path.sigma_dot)):
        same(f"{name}_dot", derivative(t), (value(t + step) - value(t - step)) / (2 * step), 1e-5)
        for function in (value, derivative):
            out = function(t.float().view(1, -1))
            assert out.dtype == torch.float32, f"{name}: float32 times gave {out.dtype}"
            assert out.shape == (1, interior), f"{name}: times (1, {interior}) gave {tuple(out.shape)}"


def check_denoiser(denoiser: Denoiser, channels: int, *, batch: int = 3, tokens: int = 5) -> None:
    """Check a denoiser on dense patches ``(batch, tokens, channels)``.

    Shape and dtype are kept, equal calls give equal results, other samples change no bit of a sample, and one noise
    level for all is the same as that level in each row.

    Raises:
        AssertionError: what differs.

    Example:
        >>> check_denoiser(lambda x, t: x * t.expand()[..., None], channels=4)
    """
    x, levels = torch.randn(batch, tokens, channels), torch.linspace(0.1, 0.9, batch)
    with torch.no_grad():
        out = denoiser(x, Rows(levels))
        assert out.shape == x.shape, f"patches {tuple(x.shape)} gave {tuple(out.shape)}"
        assert out.dtype == x.dtype, f"patches in {x.dtype} gave {out.dtype}"
        same("a second call", denoiser(x, Rows(levels)), out, 0.0)
        changed = torch.cat([x[:1], torch.randn_like(x[1:])])
        same("sample 0 beside other samples", denoiser(changed, Rows(levels))[:1], out[:1], 0.0)
        shared = denoiser(x, Rows(levels[:1]))
        same("one noise level for all", shared, denoiser(x, Rows(levels[:1].expand(batch))), 1e-5)
    check_module("the denoiser", denoiser)


def check_sampler_step(step: SamplerStep, process: Process | None = None) -> None:
    """Check a sampler step.

    With a perfect denoiser of one point it lands where the path goes (so that any consistent step passes on a straight
    path); rows whose level does not change keep their values bit for bit, whatever the denoiser says there; the dtype
    is kept, and each row is stepped as it is alone.

    Args:
        step: yours, deterministic.
        process: the process it serves; None for rectified flow.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet.diffusion import euler_step
        >>> check_sampler_step(euler_step)
    """
    process = Process() if process is None else process
    x0, noise = torch.randn(2, 6, 3, dtype=torch.float64)
    index = torch.tensor([0, 0, 1, 1, 1, 0])
    t, s = (Rows(torch.tensor(level, dtype=torch.float64), index) for level in ([0.8, 0.5], [0.6, 0.1]))
    got = step(lambda x, at: process.target(x0, noise, at), process.noise(x0, noise, t), t, s, process)
    same("the state after a perfect prediction", got, process.noise(x0, noise, s), 1e-9)
    known = Rows(torch.tensor([0.0, 0.5], dtype=torch.float64), index)
    later = Rows(torch.tensor([0.0, 0.3], dtype=torch.float64), index)
    state = process.noise(x0, noise, known)
    moved = step(lambda x, at: torch.full_like(x, 1e3), state, known, later, process)
    held = moved[index == 0]
    same("rows whose noise level does not change", held, state[index == 0], 0.0)
    narrow = Rows(t.values.float(), index), Rows(s.values.float(), index)
    single = step(lambda x, at: x.sin(), x0.float(), *narrow, process)
    assert single.dtype == torch.float32, f"a float32 state became {single.dtype}"
    for row, at in enumerate(index.tolist()):
        here, there = (Rows(y.values[at : at + 1]) for y in narrow)
        lone = step(lambda x, at: x.sin(), x0[row : row + 1].float(), here, there, process)
        same(f"row {row} stepped alone", single[row : row + 1], lone, 1e-5)


def check_solver(solver: Solver, process: Process | None = None, *, steps: int = 5) -> None:
    """Check a solver that remembers.

    Its first step passes :func:`check_sampler_step`. Then a run on levels of its own for each row: rows whose level
    does not change keep their values bit for bit, each row goes the way it goes alone, with a perfect denoiser of one
    point to where the path goes, and a history that is pickled after the first step leads on to the same bits.

    Args:
        solver: yours, deterministic.
        process: the process it serves; None for rectified flow.
        steps: of the run, at least 2.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet.diffusion import UniPC
        >>> check_solver(UniPC())
    """
    process = Process() if process is None else process
    check_sampler_step(lambda denoiser, x, t, s, process: solver.step(denoiser, x, t, s, process, None)[0], process)
    x0, noise = torch.randn(2, 6, 3, dtype=torch.float64)
    index = torch.tensor([0, 1, 2, 2, 1, 0])
    way = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    levels = [Rows(torch.stack([torch.full_like(t, 0.4), t, t / 2]), index) for t in way]
    start = process.noise(x0, noise, levels[0])
    after, history = solver.step(_wave, start, levels[0], levels[1], process, None)
    kept = pickle.dumps((after, history))
    done = _follow(solver, _wave, after, levels[1:], process, history)
    same("rows whose noise level does not change", done[index == 0], start[index == 0], 0.0)
    after, history = pickle.loads(kept)
    resumed = _follow(solver, _wave, after, levels[1:], process, history)
    same("the rest of a run that was pickled", resumed, done, 0.0)
    for row in range(3):
        lone = [Rows(each.values[row : row + 1]) for each in levels]
        alone = _follow(solver, _wave, start[index == row], lone, process, None)
        same(f"row {row} of a run alone", alone, done[index == row], 1e-11)
    exact = _follow(solver, lambda x, at: process.target(x0, noise, at), start, levels, process, None)
    same("the end of a run with perfect predictions", exact, process.noise(x0, noise, levels[-1]), 1e-9)


def _wave(x: torch.Tensor, t: Rows) -> torch.Tensor:
    return torch.sin(2 * x)


def _follow(
    solver: Solver, denoiser: Denoiser, x: torch.Tensor, levels: list[Rows], process: Process, history: object
) -> torch.Tensor:
    for t, s in pairwise(levels):
        x, history = solver.step(denoiser, x, t, s, process, history)
    return x
