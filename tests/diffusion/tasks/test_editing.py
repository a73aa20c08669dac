"""SDEdit's times and start, and inversion: nothing at strength 0, all at 1, and a way back of the step's order."""

import pytest
import torch

from tubelet.diffusion import Process, ddim_step, euler_step, heun_step, sample, shift_warp
from tubelet.diffusion.tasks import edit_start, edit_times, invert
from tubelet.layout import Rows

WIDE = torch.float64


@pytest.mark.parametrize("process", [Process(), Process(warp=shift_warp(3.0))])
def test_times_begin_where_the_strength_says(process: Process) -> None:
    assert torch.equal(edit_times(process, 10, 1.0), process.times(10))
    assert edit_times(process, 10, 0.0).tolist() == [0.0]
    assert edit_times(process, 10, 0.31).shape == (5,)
    torch.testing.assert_close(edit_times(process, 10, 0.6)[0], process.warp(torch.tensor(0.6)))
    torch.testing.assert_close(edit_times(process, 10, 0.6), process.times(10)[4:])


def test_at_strength_0_the_start_is_the_video_bit_for_bit() -> None:
    x0, noise, process = torch.randn(3, 2), torch.randn(3, 2), Process()
    assert torch.equal(edit_start(x0, noise, edit_times(process, 10, 0.0), process), x0)
    assert torch.equal(edit_start(x0, noise, edit_times(process, 10, 1.0), process), noise)
    half = edit_start(x0, noise, edit_times(process, 10, 0.5), process)
    torch.testing.assert_close(half, 0.5 * x0 + 0.5 * noise)


def curved(x: torch.Tensor, t: Rows) -> torch.Tensor:
    """A smooth velocity without a closed form."""
    return (x + 2 * t.values).sin() + 0.3 * x


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2), (ddim_step, 1)])
def test_inverted_data_are_sampled_again_to_the_order_of_the_step(step, order: int) -> None:
    x0, process, errors = torch.linspace(-2, 2, 9, dtype=WIDE)[:, None], Process(), []
    for steps in (40, 80):
        times = process.times(steps, dtype=WIDE)
        start = invert(curved, x0, times, process=process, step=step)
        assert (start - x0).abs().max() > 0.1
        errors.append(float((sample(curved, start, times, process=process, step=step) - x0).abs().max()))
    assert 2 ** (order - 0.3) < errors[0] / errors[1] < 2 ** (order + 1.3)


def test_inversion_leads_to_the_noise_that_sampling_came_from() -> None:
    """Gaussian data of deviation 2 by a flow: the noise is half the data."""
    process = Process()

    def denoiser(x: torch.Tensor, t: Rows) -> torch.Tensor:
        t = t.values
        return (t - 4 * (1 - t)) / (4 * (1 - t) ** 2 + t**2) * x

    x0 = torch.linspace(-2, 2, 5, dtype=WIDE)[:, None]
    start = invert(denoiser, x0, process.times(400, dtype=WIDE), process=process, step=heun_step)
    torch.testing.assert_close(start, x0 / 2, rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        edit_times(Process(), 0, 0.5)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"strength must lie in \\[0, 1\\], got {strength}"):
            edit_times(Process(), 5, strength)
