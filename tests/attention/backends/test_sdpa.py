"""When PyTorch's attention serves, and that it is asked without copies."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from tubelet.attention import Joint, attend
from tubelet.attention.backends import sdpa
from tubelet.attention.backends.sdpa import SdpaBackend
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest

DENSE, PADDED = TokenLayout.dense(2, Grid(1, 1, 3)), TokenLayout.padded([3, 1], 3)
PACKED = TokenLayout.packed([Grid(1, 1, 3), Grid(1, 1, 3)])


def request(layout: TokenLayout, kv_layout: TokenLayout, bias: torch.Tensor | None) -> AttentionRequest:
    shapes = ((*x.shape, 2, 4) for x in (layout, kv_layout))
    return AttentionRequest(Joint(), layout.on("cpu"), kv_layout.on("cpu"), *shapes, torch.float32, "cpu", 1.0, bias)


@pytest.mark.parametrize("layout", [DENSE, PADDED, PACKED])
@pytest.mark.parametrize("kv_layout", [DENSE, PADDED, PACKED])
def test_a_bias_is_refused_unless_both_sides_are_dense(layout: TokenLayout, kv_layout: TokenLayout) -> None:
    bias = torch.zeros(1)
    assert SdpaBackend().supports(request(layout, kv_layout, None))
    assert bool(SdpaBackend().supports(request(layout, kv_layout, bias))) == (layout is DENSE and kv_layout is DENSE)


def test_the_refusal_says_what_would_help() -> None:
    with pytest.raises(ValueError, match="backend='reference' serves it on any request"):
        attend(*torch.randn(3, *PACKED.shape, 2, 4), layout=PACKED, bias=torch.zeros(1, 6, 6), backend="sdpa")


def test_dense_layouts_take_the_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(q: torch.Tensor, *others: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(q.data_ptr())
        return original(q, *others, **options)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    q, k, v = torch.randn(3, *DENSE.shape, 2, 4)
    got = attend(q, k, v, layout=DENSE, backend="sdpa")
    assert seen == [q.data_ptr()]  # a view of the input, and no segments
    assert torch.equal(got, attend(q, k, v, backend="sdpa"))


def test_one_sample_is_a_batch_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fused kernels take four axes; with three it takes an unfused path without a word."""
    shapes = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *rest, **how: shapes.append(q.shape) or original(q, *rest, **how)
    )
    q, k, v = torch.randn(3, 5, 2, 4)
    got = attend(q, k, v, backend="sdpa")
    assert shapes == [(1, 2, 5, 4)] and got.shape == (5, 2, 4)
    assert torch.allclose(got, attend(q, k, v, backend="reference"), atol=1e-6)


@pytest.mark.parametrize(
    ("device", "major", "first"),
    [("cuda:0", 9, SDPBackend.CUDNN_ATTENTION), ("cuda:0", 8, None), ("cuda:0", 10, None), ("cpu", 9, None)],
)
def test_hopper_takes_cudnn_first(
    monkeypatch: pytest.MonkeyPatch, device: str, major: int, first: SDPBackend | None
) -> None:
    asked = []

    def spy(order: list[SDPBackend], set_priority: bool) -> nullcontext[None]:
        asked.append((order[0], set_priority))
        return nullcontext()

    monkeypatch.setattr(sdpa, "_major", lambda device: major)
    monkeypatch.setattr(sdpa, "sdpa_kernel", spy)
    with sdpa._kernels(device):
        pass
    assert asked == ([] if first is None else [(first, True)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_rows_on_cuda(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 256, 4, 64, device="cuda").to(dtype)
    got, want = attend(q, k, v, backend="sdpa"), attend(*(x.double() for x in (q, k, v)), backend="reference")
    assert (got.double() - want).norm() <= 4 * max(torch.finfo(dtype).eps, 1e-3) * want.norm()
