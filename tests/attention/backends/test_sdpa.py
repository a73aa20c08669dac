"""When PyTorch's attention serves, and that it is asked without copies."""

import pytest
import torch
import torch.nn.functional as F

from tubelet.attention import Joint, attend
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
