"""Memory formats that are kept, and convolutions of few positions as products."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tubelet.vae.columns import convolved
from tubelet.vae.formats import layout_of, rearranged

FORMS = ["b (c pt ph pw) t h w -> b c (t pt) (h ph) (w pw)", "b (pt ph pw c) t h w -> b c (t pt) (h ph) (w pw)"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_rearranged_video_keeps_its_format(form: str, layout: torch.memory_format) -> None:
    sides = {"pt": 3, "ph": 2, "pw": 2}
    x = torch.randn(2, 24, 2, 3, 5).to(memory_format=layout)
    y = rearranged(x, form, **sides)
    assert torch.equal(y, rearrange(x, form, **sides))
    assert layout_of(y) == layout
    back = " -> ".join(reversed(form.split(" -> ")))
    assert torch.equal(rearranged(y, back, **sides), x)


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 5)])
@pytest.mark.parametrize("stride", [1, (1, 2, 2), (2, 1, 3)])
@pytest.mark.parametrize("edges", ["zeros", "replicate"])
@pytest.mark.parametrize(("channels", "enough"), [(64, 512), (64, 32), (64, 64), (31, 512)])
def test_few_positions_are_products(
    layout: torch.memory_format, kernel, stride, edges: str, channels: int, enough: int, monkeypatch
) -> None:
    monkeypatch.setattr("tubelet.vae.columns._ENOUGH", enough)  # one product, one for each frame, one for two
    padding = (0, kernel[1] // 2, kernel[2] // 2)
    bias = stride != 1
    conv = nn.Conv3d(3, channels, kernel, stride, padding, padding_mode=edges, bias=bias, dtype=torch.float64)
    conv = conv.requires_grad_(False).to(memory_format=layout)
    x = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64).to(memory_format=layout)
    with torch.no_grad(), _Seen() as seen:
        y = convolved(conv, x)
    exact = conv(x)
    torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-12)
    few = 2 * exact[0, 0, :2].numel() <= channels
    assert layout_of(y) == layout or not few  # as PyTorch's own convolutions leave it
    assert any("convolution" in name for name in seen.names) != few


@pytest.mark.parametrize("channels", [8, 256])
@pytest.mark.parametrize("frames", [4, 6])
@pytest.mark.parametrize("side", [5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_inputs_that_no_library_convolves_are_products(
    channels: int, frames: int, side: int, dtype: torch.dtype
) -> None:
    conv = nn.Conv3d(channels, 4, 3, padding=(0, 1, 1), dtype=dtype).requires_grad_(False)
    x = torch.randn(1, channels, frames, side, side, dtype=dtype)
    settings = conv.stride, conv.padding, conv.dilation, False, [0, 0, 0], 1
    native = "Slow" in torch._C._select_conv_backend(x, conv.weight, conv.bias, *settings).name
    with _Seen() as seen:
        y = convolved(conv, x)
    assert any("convolution" in name for name in seen.names) != native
    exact = conv.double()(x.double())
    assert (y.double() - exact).norm() < (1e-6 if dtype == torch.float32 else 4e-3) * exact.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_frames_of_one_position_share_their_columns(layout: torch.memory_format) -> None:
    """Taps of frames after each other overlap in memory."""
    conv = nn.Conv3d(8, 64, (3, 1, 1)).requires_grad_(False).to(memory_format=layout)
    x = torch.randn(1, 8, 6, 1, 1).to(memory_format=layout)
    torch.testing.assert_close(convolved(conv, x), conv(x))


def test_what_learns_or_has_hooks_is_called_itself() -> None:
    conv, x = nn.Conv3d(2, 64, 3, padding=(0, 1, 1)), torch.randn(1, 2, 3, 4, 4)
    convolved(conv, x).sum().backward()
    assert conv.weight.grad is not None
    calls: list[int] = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        convolved(conv, x)
    assert calls == [1]


@pytest.mark.parametrize(
    "settings", [{"dilation": (1, 1, 2)}, {"groups": 2}, {"padding": (1, 0, 0)}, {"padding": "same"}]
)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_what_has_no_columns_is_called_itself(settings: dict[str, Any], mode: str) -> None:
    conv, x = nn.Conv3d(2, 64, 3, padding_mode=mode, **settings), torch.randn(1, 2, 5, 5, 5)
    with torch.no_grad():
        assert torch.equal(convolved(conv, x), conv(x))


def test_too_few_frames_are_the_convolution_s_error() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="[Kk]ernel size"):
        convolved(nn.Conv3d(2, 64, 3, padding=(0, 1, 1)), torch.randn(1, 2, 2, 4, 4))
