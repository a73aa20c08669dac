"""Memory formats that are kept, and convolutions of few positions as products."""

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
@pytest.mark.parametrize("edges", ["zeros", "replicate"])
@pytest.mark.parametrize("bias", [True, False])
def test_few_positions_are_one_product(layout: torch.memory_format, kernel, edges: str, bias: bool) -> None:
    padding = (0, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(3, 160, kernel, padding=padding, padding_mode=edges, bias=bias, dtype=torch.float64)
    conv = conv.requires_grad_(False).to(memory_format=layout)
    x = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64).to(memory_format=layout)
    with torch.no_grad(), _Seen() as seen:
        y = convolved(conv, x)
    torch.testing.assert_close(y, conv(x), rtol=1e-12, atol=1e-12)
    few = 2 * (5 - kernel[0] + 1) * 16 < 160
    assert layout_of(y) == layout or not few  # as PyTorch's own convolutions leave it
    assert any("convolution" in name for name in seen.names) != few


def test_what_learns_strides_or_has_hooks_is_called_itself() -> None:
    conv, x = nn.Conv3d(2, 64, 3, padding=(0, 1, 1)), torch.randn(1, 2, 3, 4, 4)
    convolved(conv, x).sum().backward()
    assert conv.weight.grad is not None
    calls: list[int] = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    strided = nn.Conv3d(2, 64, 3, stride=(1, 2, 2), padding=(0, 1, 1))
    with torch.no_grad():
        convolved(conv, x)
        assert torch.equal(convolved(strided, x), strided(x))
    assert calls == [1]


def test_too_few_frames_are_the_convolution_s_error() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="[Kk]ernel size"):
        convolved(nn.Conv3d(2, 64, 3, padding=(0, 1, 1)), torch.randn(1, 2, 2, 4, 4))
