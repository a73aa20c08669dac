"""Plans of decoding: what was predicted against what is measured, budgets, the order of plans, constant memory."""

from dataclasses import replace

import pytest
import small_vaes
import torch

from tests.support.vaes import causal, wan
from tubelet.bench.memory import peak_bytes
from tubelet.vae import decode_stream, plan_decode, predicted_peak
from tubelet.vae.plan import DecodePlan

CPU = torch.device("cpu")


def measured(plan: DecodePlan, vae: torch.nn.Module, z: torch.Tensor) -> int:
    with torch.no_grad():
        plan.decode(vae, z)  # what is set up once is not the plan's
        peak, _ = peak_bytes(lambda: plan.decode(vae, z), CPU)
    assert peak is not None
    return peak


@pytest.mark.parametrize(("make", "shape", "dtype"), [
    (causal, (1, 3, 4, 16, 24), torch.float32), (causal, (2, 3, 4, 16, 24), torch.bfloat16),
    pytest.param(wan, (1, 4, 3, 48, 4), torch.float32, marks=pytest.mark.slow),
    pytest.param(wan, (1, 4, 3, 48, 4), torch.float64, marks=pytest.mark.slow),
])  # fmt: skip
def test_no_plan_holds_more_than_predicted_or_much_less(make, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    vae, z = make(dtype), torch.randn(shape).to(dtype)
    with torch.no_grad():
        whole = vae.decode(z)
    budget, forms = 10**12, []
    for share in (0.9, 0.6, 0.6):
        try:
            plan = plan_decode(vae, shape, budget)
        except ValueError:
            break
        assert measured(plan, vae, z) <= plan.peak <= min(budget, 1.25 * measured(plan, vae, z))
        forms.append((plan.tile is not None, plan.chunk is not None))
        with torch.no_grad():
            error = (plan.decode(vae, z) - whole).norm() / whole.norm()
        assert error.item() <= {8: 1e-14, 4: 1e-5, 2: 5e-2}[whole.element_size()]
        budget = int(share * plan.peak)
    assert forms[0] == (False, False)
    assert forms[1] == (False, True) or make is wan  # of whose memory states are much: tiles may save more
    assert forms == sorted(forms)  # whole, then chunks, then tiles


def test_tiles_where_chunks_are_not_enough() -> None:
    vae, shape = causal(torch.float32), (1, 3, 2, 40, 40)
    z, small = torch.randn(shape), int(0.6 * plan_decode(vae, shape, 10**12).peak)
    for overlap in (None, 1):
        plan = plan_decode(vae, shape, small, overlap=overlap)
        assert plan.tile is not None
        assert measured(plan, vae, z) <= plan.peak <= min(small, 1.25 * measured(plan, vae, z))
    with pytest.raises(ValueError, match=r"budget 1000 is below the \d+ bytes that the smallest plan for"):
        plan_decode(vae, shape, 1000)
    for budget in (0, -1):
        with pytest.raises(ValueError, match=f"budget must be a positive number of bytes, not {budget}"):
            plan_decode(vae, shape, budget)
    for overlap in (-1, 21):
        with pytest.raises(ValueError, match=rf"overlap must be from 0 to half of a side of \(40, 40\), not {overlap}"):
            plan_decode(vae, shape, 1000, overlap=overlap)
    with pytest.raises(ValueError, match=r"shape must be \(b, 3, t, h, w\), got \(1, 4, 2, 8, 8\)"):
        plan_decode(vae, (1, 4, 2, 8, 8), 1000)


def test_a_decoder_that_sees_later_latents_goes_in_chunks() -> None:
    """Frames come late, all the same; nothing grows with the video but the video."""
    vae, extra = small_vaes.small("LTXAutoencoder").float().requires_grad_(False), []
    for frames in (40, 80):
        z = torch.randn(1, vae.config.latent_channels, frames, 2, 3)
        whole = plan_decode(vae, tuple(z.shape), 10**12)
        plan = plan_decode(vae, tuple(z.shape), int(0.75 * whole.peak))
        assert plan.chunk is not None
        assert plan.tile is None
        assert measured(plan, vae, z) <= plan.peak <= 1.25 * measured(plan, vae, z)
        video = plan.decode(vae, z)
        torch.testing.assert_close(video, vae.decode(z), rtol=0, atol=1e-5 * video.abs().max().item())
        extra.append(measured(replace(plan, chunk=4), vae, z) - video.nbytes)
    assert extra[0] == extra[1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_convolutions_with_their_working_memory(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        for batch, before, after, kernel in [(1, 8, 3, 3), (2, 8, 8, 3), (1, 16, 48, 3), (2, 24, 24, 3), (2, 40, 12, 1),
                                             (1, 3, 16, 3), (1, 24, 24, 1), (1, 64, 32, (1, 3, 3))]:  # fmt: skip
            conv = torch.nn.Conv3d(before, after, kernel, padding="same").to(dtype)
            x = torch.randn(batch, before, 5, 32, 32).to(dtype)
            with torch.no_grad():
                conv(x)
                peak, _ = peak_bytes(lambda conv=conv, x=x: conv(x), CPU)
            assert peak is not None
            assert peak <= predicted_peak(conv, conv, tuple(x.shape)) <= 1.25 * peak
    finally:
        torch.set_num_threads(1)


def stream_peak(frames: int, side: int) -> int:
    vae = causal(torch.float32, spatial=8)

    def run() -> None:
        latents = (torch.zeros(1, 3, 1, side // 8, side // 8) for _ in range(1 + frames // 4))
        with torch.no_grad():
            for video in decode_stream(vae, latents):
                del video

    return peak_bytes(run, CPU)[0] or 0


def test_memory_does_not_grow_with_frames() -> None:
    assert stream_peak(17, 32) == stream_peak(65, 32) > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_frames_at_full_length() -> None:
    assert stream_peak(17, 128) == stream_peak(129, 128) == stream_peak(1025, 128) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DCAutoencoder", "KLAutoencoder", "LTXAutoencoder", "TinyAutoencoder"])
def test_plans_of_other_families_at_odd_sides(name: str) -> None:
    """Whole, then in chunks or exact tiles of what half a budget holds."""
    vae = small_vaes.small(name).float()
    shape, budget = (1, vae.config.latent_channels, 3, 57, 41), 10**12
    for _ in range(2):
        plan = plan_decode(vae, shape, budget)
        peak = measured(plan, vae, torch.randn(shape))
        assert peak <= plan.peak <= min(budget, 1.05 * peak)
        budget = int(0.7 * plan.peak)
