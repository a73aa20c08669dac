"""Causal convolution against its formula in float64 and against diffusers with the same weights."""

import io

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from hypothesis import given
from hypothesis import strategies as st

from tubelet.vae import CausalConv3d

F64 = torch.float64


def definition(conv: CausalConv3d, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """``y[i] = Σ_j w[j] · x[i - (kt - 1) + j] + b`` over time, and the same centred over space, one tap at a time."""
    weight, bias = conv.conv.weight, conv.conv.bias
    kt, kh, kw = weight.shape[2:]
    (b, _, t, h, w), frames = x.shape, torch.cat([before, x], 2)
    y = torch.zeros(b, weight.shape[0], t, h, w, dtype=x.dtype)
    for i in range(t):
        for j in range(kt):
            for row in range(h):
                for column in range(w):
                    for u in range(kh):
                        for v in range(kw):
                            r, c = row + u - kh // 2, column + v - kw // 2
                            if 0 <= r < h and 0 <= c < w:
                                y[:, :, i, row, column] += frames[:, :, i + j, r, c] @ weight[:, :, j, u, v].T
    return y if bias is None else y + bias.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (2, 1, 3), (4, 5, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_the_formula(kernel: tuple[int, int, int], bias: bool) -> None:
    conv = CausalConv3d(2, 3, kernel, bias=bias, dtype=F64)
    x = torch.randn(2, 2, 4, 3, 2, dtype=F64)
    start = x[:, :, :1].repeat(1, 1, kernel[0] - 1, 1, 1)
    y, state = conv(x)
    torch.testing.assert_close(y, definition(conv, x, start), rtol=1e-11, atol=1e-11)
    past = torch.randn_like(start)
    torch.testing.assert_close(conv(x, past)[0], definition(conv, x, past), rtol=1e-11, atol=1e-11)
    assert torch.equal(state, torch.cat([start, x], 2)[:, :, 4:])


def test_start_is_cogvideox_and_zero_state_is_wan() -> None:
    conv = CausalConv3d(4, 5)
    cog, wan = CogVideoXCausalConv3d(4, 5, 3, pad_mode="constant"), WanCausalConv3d(4, 5, 3, padding=1)
    cog.conv.load_state_dict(conv.conv.state_dict())
    wan.load_state_dict(conv.conv.state_dict())
    x = torch.randn(2, 4, 5, 6, 4)
    torch.testing.assert_close(conv(x)[0], cog(x)[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conv(x, torch.zeros(2, 4, 2, 6, 4))[0], wan(x), rtol=1e-5, atol=1e-6)


@given(kt=st.integers(1, 5), chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_chunks_equal_the_whole(kt: int, chunks: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    conv = CausalConv3d(2, 2, (kt, 3, 1), dtype=F64)
    x = torch.randn(1, 2, sum(chunks), 3, 2, dtype=F64)
    whole, last = conv(x)
    state, parts = None, []
    for chunk in x.split(chunks, 2):
        part, state = conv(chunk, state)
        assert state.shape == (1, 2, kt - 1, 3, 2)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-11, atol=1e-12)
    assert torch.equal(state, last)


def test_state_owns_no_more_than_it_holds() -> None:
    _, state = CausalConv3d(2, 2)(torch.randn(1, 2, 100, 8, 8))
    torch.save(state, saved := io.BytesIO())
    assert saved.tell() < 4 * state.numel() + 4096
    assert state.untyped_storage().nbytes() == 4 * state.numel()


def test_gradients_flow_through_the_state() -> None:
    conv = CausalConv3d(1, 1, (3, 1, 1), dtype=F64)
    x = torch.randn(1, 1, 5, 2, 2, dtype=F64, requires_grad=True)
    head, state = conv(x[:, :, :2])
    tail, _ = conv(x[:, :, 2:], state)
    (parts,) = torch.autograd.grad(torch.cat([head, tail], 2).sin().sum(), x)
    (whole,) = torch.autograd.grad(conv(x)[0].sin().sum(), x)
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"kernel .*\(3, 2, 3\)"):
        CausalConv3d(1, 1, (3, 2, 3))
    with pytest.raises(ValueError, match=r"kernel .*\(0, 1, 1\)"):
        CausalConv3d(1, 1, (0, 1, 1))
    with pytest.raises(ValueError, match="2 frames, not 1"):
        CausalConv3d(1, 1)(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2))


def test_meta_and_reset() -> None:
    assert CausalConv3d(2, 3, device="meta").conv.weight.is_meta
    conv = CausalConv3d(2, 3)
    torch.nn.init.zeros_(conv.conv.weight)
    conv.reset_parameters()
    assert conv.conv.weight.abs().max() > 0
