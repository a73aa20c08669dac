"""The causal autoencoder: chunk = whole, an image is frame 0, causality both ways, sizes, scaling, errors."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.layout import Grid
from tubelet.protocols import Autoencoder
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, digits, encode_stream, kl_loss, reconstruction_loss

F64 = torch.float64
SMALL = CausalAutoencoderConfig(in_channels=2, latent_channels=3, widths=(6, 8), depths=(2, 1), temporal=4, spatial=4)


def make(config: CausalAutoencoderConfig = SMALL, dtype: torch.dtype = F64) -> CausalAutoencoder:
    """An autoencoder all of whose weights are random, the ones that start at zero as well."""
    vae, generator = CausalAutoencoder(config, dtype=dtype), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in vae.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64) / fan**0.5)
    return vae


def video(frames: int, dtype: torch.dtype = F64, height: int = 8, width: int = 4) -> torch.Tensor:
    return torch.randn(2, 2, frames, height, width, dtype=F64, generator=torch.Generator().manual_seed(frames)).to(
        dtype
    )


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-11), (torch.float32, 1e-5)])
@settings(max_examples=25)
@given(plan=st.lists(st.integers(0, 3), min_size=1, max_size=4), temporal=st.sampled_from([1, 2, 4]))
def test_any_chunk_plan_equals_the_whole(dtype: torch.dtype, bound: float, plan: list[int], temporal: int) -> None:
    vae = make(CausalAutoencoderConfig(in_channels=2, latent_channels=3, widths=(6, 8), depths=(2, 1),
                                       temporal=temporal, spatial=4), dtype)  # fmt: skip
    plan = [plan[0], *(k or 1 for k in plan[1:])]
    x = video(1 + temporal * sum(plan), dtype)
    whole = vae.encode(x)
    state, means, logvars = None, [], []
    for chunk in x.split([1 + temporal * plan[0], *(temporal * k for k in plan[1:])], 2):
        posterior, state = vae.encode_chunk(chunk, state)
        means.append(posterior.mean)
        logvars.append(posterior.logvar)
    assert error(torch.cat(means, 2), whole.mean) <= bound
    assert error(torch.cat(logvars, 2), whole.logvar) <= bound
    state, frames = None, []
    for chunk in whole.mean.split([1 + plan[0], *plan[1:]], 2):
        part, state = vae.decode_chunk(chunk, state)
        frames.append(part)
    assert error(torch.cat(frames, 2), vae.decode(whole.mean)) <= bound


def test_state_has_constant_size_and_survives_pickling() -> None:
    vae, x = make(), video(13)
    _, short = vae.encode_chunk(x[:, :, :1])
    _, long = vae.encode_chunk(x[:, :, :9])
    assert [s.shape for s in short] == [s.shape for s in long]
    assert len(short) == 3
    assert len(pickle.dumps(long)) == len(pickle.dumps(short))
    stream = pickle.loads(pickle.dumps(long))
    assert error(vae.encode_chunk(x[:, :, 9:], stream)[0].mean, vae.encode(x).mean[:, :, 3:]) <= 1e-11


def test_two_streams_share_one_model() -> None:
    vae, a, b = make(), video(9), video(9).flip(0)
    (_, state_a), (_, state_b) = vae.encode_chunk(a[:, :, :5]), vae.encode_chunk(b[:, :, :5])
    tail_b, tail_a = vae.encode_chunk(b[:, :, 5:], state_b)[0], vae.encode_chunk(a[:, :, 5:], state_a)[0]
    assert error(tail_a.mean, vae.encode(a).mean[:, :, 2:]) <= 1e-11
    assert error(tail_b.mean, vae.encode(b).mean[:, :, 2:]) <= 1e-11


def test_first_latent_is_the_image_of_the_first_frame() -> None:
    vae, x = make(), video(9)
    whole, image = vae.encode(x), vae.encode(x[:, :, :1])
    torch.testing.assert_close(whole.mean[:, :, :1], image.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole.logvar[:, :, :1], image.logvar, rtol=1e-13, atol=1e-13)
    assert vae.decode(image.mean).shape == x[:, :, :1].shape


@pytest.mark.parametrize("frame", range(9))
def test_a_frame_changes_its_own_latent_and_none_before(frame: int) -> None:
    vae, x = make(), video(9)
    changed = x.clone()
    changed[:, :, frame] += 1
    difference = (vae.encode(changed).mean - vae.encode(x).mean).abs().amax((0, 1, 3, 4))
    own = math.ceil(frame / 4)
    assert (difference[:own] < 1e-13).all()
    assert difference[own] > 1e-4


@pytest.mark.parametrize("k", [1, 2, 3])
def test_first_latents_decode_to_the_prefix(k: int) -> None:
    vae = make()
    z = vae.encode(video(13)).mean
    whole, prefix = vae.decode(z), vae.decode(z[:, :, :k])
    torch.testing.assert_close(prefix, whole[:, :, : 1 + 4 * (k - 1)], rtol=1e-12, atol=1e-12)
    bumped = z.clone()
    bumped[:, :, k - 1] += 1
    assert (vae.decode(bumped) - whole)[:, :, 1 + 4 * (k - 1) - 1].abs().max() > 1e-4


def test_gradients_of_chunks_equal_the_whole() -> None:
    vae, x = make(), video(9)
    whole = torch.autograd.grad(vae.encode(x).mean.sin().sum(), list(vae.encoder.parameters()))
    head, state = vae.encode_chunk(x[:, :, :5])
    tail, _ = vae.encode_chunk(x[:, :, 5:], state)
    parts = torch.autograd.grad(head.mean.sin().sum() + tail.mean.sin().sum(), list(vae.encoder.parameters()))
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 8, 8), (5, 16, 24), (17, 8, 16)])
def test_sizes(size: tuple[int, int, int]) -> None:
    vae = CausalAutoencoder(digits())
    grid = vae.latent_grid(*size)
    posterior = vae.encode(torch.zeros(1, 1, *size))
    assert posterior.mode().shape == (1, 16, grid.t, grid.h, grid.w)
    assert vae(torch.zeros(1, 1, *size)).shape == (1, 1, *size)
    assert vae.video_size(grid) == size
    assert grid == Grid(1 + (size[0] - 1) // 4, size[1] // 8, size[2] // 8)


def test_forward_decodes_the_mode() -> None:
    vae, x = make(), video(5)
    assert torch.equal(vae(x), vae.decode(vae.encode(x).mean))


def test_scaling_is_exact_and_inverts() -> None:
    vae, z = make(), torch.randn(2, 3, 2, 2, 1, dtype=F64)
    assert torch.equal(vae.scale(z), z)
    assert torch.equal(vae.unscale(z), z)
    vae.set_latent_stats(torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([0.5, 1.0, 4.0], dtype=F64))
    for channel, (mean, std) in enumerate(((1, 0.5), (2, 1), (3, 4))):
        torch.testing.assert_close(vae.scale(z)[:, channel], (z[:, channel] - mean) / std, rtol=1e-15, atol=0)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z, rtol=1e-14, atol=1e-14)
    copy = make()
    copy.load_state_dict(vae.state_dict())
    assert torch.equal(copy.scale(z), vae.scale(z))


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_input_is_named() -> None:
    vae = make()
    _, state = vae.encode_chunk(video(1))
    for frames in (2, 4, 8):
        with pytest.raises(ValueError, match=rf"frames must be 1 \+ 4·k, not {frames}"):
            vae.encode(video(frames))
    for frames in (1, 5):
        with pytest.raises(ValueError, match=rf"frames must be 4·k, not {frames}"):
            vae.encode_chunk(video(frames), state)
    with pytest.raises(ValueError, match="height must be a multiple of the spatial factor 4, not 6"):
        vae.encode(video(1, height=6))
    with pytest.raises(ValueError, match="width must be a multiple of the spatial factor 4, not 3"):
        vae.latent_grid(5, 8, 3)
    with pytest.raises(ValueError, match="video must have 2 channels, not 3"):
        vae.encode(torch.zeros(1, 3, 1, 8, 8, dtype=F64))
    with pytest.raises(ValueError, match="video must be floating point, got torch.uint8"):
        vae.encode(video(1).byte())
    with pytest.raises(ValueError, match=r"not empty, got shape \(2, 2, 0, 8, 4\)"):
        vae.config.factors.padded(video(1)[:, :, :0])
    with pytest.raises(ValueError, match=r"of one size, but one of \(1, 2, 4, 8, 12\) follows \(2, 2, 3, 8, 4\)"):
        [*encode_stream(vae, [video(4), torch.zeros(1, 2, 4, 8, 12, dtype=F64)])]
    with pytest.raises(ValueError, match="z must have 3 channels, not 2"):
        vae.decode(torch.zeros(1, 2, 1, 8, 8, dtype=F64))
    with pytest.raises(ValueError, match="z must have at least one frame, not 0"):
        vae.decode(torch.zeros(1, 3, 0, 8, 8, dtype=F64))
    with pytest.raises(ValueError, match=r"z must have at least one sample, got shape \(0, 3, 1, 8, 8\)"):
        vae.decode(torch.zeros(0, 3, 1, 8, 8, dtype=F64))
    with pytest.raises(ValueError, match="state must hold 3 tensors, not 2"):
        vae.encode_chunk(video(4), state[:2])
    with pytest.raises(ValueError, match=r"std must be positive, not 0\.0"):
        vae.set_latent_stats(torch.zeros(3, dtype=F64), torch.tensor([1.0, 0.0, 2.0], dtype=F64))
    one, bad = torch.ones(3, dtype=F64), torch.tensor([1.0, torch.nan, torch.inf], dtype=F64)
    for name, stats in (("mean", (bad, one)), ("std", (one, bad))):
        with pytest.raises(ValueError, match=rf"{name} must be finite, got \[1\.0, nan, inf\]"):
            vae.set_latent_stats(*stats)
    for name, stats in (("mean", (one[:1], one)), ("std", (one, one[:1]))):
        with pytest.raises(ValueError, match=rf"{name} has shape \(1,\), but there are 3 channels"):
            vae.set_latent_stats(*stats)
    assert torch.equal(vae.latent_mean, torch.zeros(3, dtype=F64))
    assert torch.equal(vae.latent_std, one)


def test_is_an_autoencoder_and_constructs_on_meta() -> None:
    vae = CausalAutoencoder(SMALL, device="meta", dtype=torch.bfloat16)
    assert isinstance(vae, Autoencoder)
    tensors = list(vae.state_dict().values())
    assert all(t.is_meta and t.dtype == torch.bfloat16 for t in tensors)
    vae, fresh = vae.to_empty(device="cpu"), CausalAutoencoder(SMALL, dtype=torch.bfloat16)
    for each in (vae, fresh):
        torch.manual_seed(0)
        each.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert torch.equal(vae.latent_std, torch.ones(3, dtype=torch.bfloat16))


@pytest.mark.graph
def test_traces_without_graph_breaks() -> None:
    vae, x = make(), video(9)
    compiled = torch.compile(lambda v: vae.decode(vae.encode(v).mode()), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), vae(x))


def test_learns_a_moving_square() -> None:
    torch.manual_seed(0)
    config = CausalAutoencoderConfig(latent_channels=8, widths=(24, 32), depths=(1, 1))
    vae = CausalAutoencoder(config)
    clips = -torch.ones(16, 1, 5, 16, 16)
    for i in range(16):
        for t in range(5):
            clips[i, :, t, i % 4 + t : i % 4 + t + 5, i // 4 + t : i // 4 + t + 5] = 1
    optimiser = torch.optim.AdamW(vae.parameters(), lr=5e-3)
    for _ in range(100):
        posterior = vae.encode(clips)
        loss = reconstruction_loss(vae.decode(posterior.sample()), clips) + 1e-4 * kl_loss(posterior)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        mse = (vae(clips) - clips).square().mean().item()
    assert 10 * math.log10(4 / mse) > 15


@pytest.mark.graph  # run-time shape checks off, as for users
def test_latents_that_only_broadcast_are_refused() -> None:
    vae = make()
    for fn in (vae.scale, vae.unscale, vae.decode):
        with pytest.raises(ValueError, match="z must have 3 channels, not 1"):
            fn(torch.zeros(1, 1, 1, 2, 2, dtype=F64))
        with pytest.raises(ValueError, match=r"z must be \(b, c, t, h, w\), got shape \(3, 1, 2, 2\)"):
            fn(torch.zeros(3, 1, 2, 2, dtype=F64))
    with pytest.raises(ValueError, match=r"video must be \(b, c, t, h, w\), got shape \(2, 1, 8, 8\)"):
        vae.encode(torch.zeros(2, 1, 8, 8, dtype=F64))


@pytest.mark.graph
def test_a_stream_of_another_size_does_not_go_on() -> None:
    vae = make()
    _, state = vae.encode_chunk(torch.zeros(1, 2, 1, 8, 8, dtype=F64))
    _, after = vae.decode_chunk(torch.zeros(1, 3, 1, 2, 2, dtype=F64))
    for batch, side in ((2, 8), (1, 16)):
        with pytest.raises(ValueError, match=r"state has shape \(1, .*\), which does not go on to x of"):
            vae.encode_chunk(torch.zeros(batch, 2, 4, side, side, dtype=F64), state)
        with pytest.raises(ValueError, match=r"state has shape \(1, .*\), which does not go on to x of"):
            vae.decode_chunk(torch.zeros(batch, 3, 1, side // 4, side // 4, dtype=F64), after)
