"""NATTEN: its arguments, read by a float64 stand-in with NATTEN's bounds, give the right numbers; real ones on CUDA."""

from typing import Any

import fakes
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import Joint, Neighborhood, attend
from tubelet.attention.backends import natten
from tubelet.layout import Grid, TokenLayout

side = st.integers(1, 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    package = fakes.natten(seen)
    monkeypatch.setattr(natten, "_on_cuda", lambda device: True)
    monkeypatch.setattr(natten, "_package", lambda: package)
    return seen


def tensors(shape: tuple[int, ...], heads: tuple[int, int] = (2, 1)) -> list[Tensor]:
    return [torch.randn(*shape, h, 8, requires_grad=True) for h in (*heads, heads[1])]


def assert_equal_to_the_definition(qkv: list[Tensor], **how: Any) -> None:
    exact = [x.detach().double().requires_grad_() for x in qkv]
    out, want = attend(*qkv, backend="natten", **how), attend(*exact, backend="reference", **how)
    cotangent = torch.randn(out.shape)
    got = torch.autograd.grad(out, qkv, cotangent)
    parts = [(out, want), *zip(got, torch.autograd.grad(want, exact, cotangent.double()), strict=True)]
    scale = max(float(w.detach().norm()) for _, w in parts)
    assert all(float((g.detach().double() - w.detach()).norm()) <= 1e-5 * scale for g, w in parts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.tuples(side, side, side),
    causal=st.tuples(*[st.booleans()] * 3),
    grids=st.lists(st.tuples(side, side, side), min_size=1, max_size=3),
    spare=st.integers(0, 2),
)
def test_packed_grids_equal_the_definition(
    asked: list[tuple[Any, ...]], window: Any, causal: Any, grids: list[tuple[int, int, int]], spare: int
) -> None:
    sizes = [Grid(*sides) for sides in [*grids, grids[-1]]]
    layout = TokenLayout.packed(sizes, capacity=sum(grid.tokens for grid in sizes) + spare)
    if any(min(w, s) > 1 for sides in grids for w, s in zip(window, sides, strict=True)):
        pattern = Neighborhood(window, causal)
        assert_equal_to_the_definition(tensors(layout.shape), pattern=pattern, layout=layout, scale=0.4)


def test_equal_grids_are_one_batch_and_axes_of_one_join_it(asked: list[tuple[Any, ...]]) -> None:
    dense = TokenLayout.dense(2, Grid(3, 4, 5))
    assert_equal_to_the_definition(tensors(dense.shape), pattern=Neighborhood((1, 3, 9)), layout=dense)
    assert asked.pop() == (2, (6, 4, 5, 2, 8), (3, 5), (False, False))
    packed = TokenLayout.packed([Grid(2, 2, 2), Grid(2, 2, 2), Grid(1, 1, 6)])
    pattern = Neighborhood((2, 2, 2), (True, False, False))
    assert_equal_to_the_definition(tensors(packed.shape), pattern=pattern, layout=packed)
    assert asked == [
        (3, (2, 2, 2, 2, 2, 8), (2, 2, 2), (True, False, False)),
        (1, (1, 6, 2, 8), (2,), (False,)),
    ]


def test_rows_with_padding_between_them(asked: list[tuple[Any, ...]]) -> None:
    layout = TokenLayout((Grid(1, 1, 3),) * 2, (0, 0), 5, batched=True)
    assert_equal_to_the_definition(tensors(layout.shape), pattern=Neighborhood((1, 1, 2)), layout=layout)
    assert len(asked) == 2


def test_plain_rows_are_lines(asked: list[tuple[Any, ...]]) -> None:
    assert_equal_to_the_definition(
        tensors((2, 7)), pattern=Neighborhood((1, 1, 4)), layout=TokenLayout.dense(2, Grid(1, 1, 7))
    )
    assert asked == [(1, (2, 7, 2, 8), (4,), (False,))]


@pytest.mark.parametrize(
    ("layout", "pattern", "reason"),
    [
        (TokenLayout.packed([Grid(1, 3, 3)], [2]), Neighborhood((1, 3, 3)), "without text"),
        (TokenLayout.packed([Grid(1, 3, 3)]).keep([0, 4]), Neighborhood((1, 3, 3)), "tokens were dropped"),
        (TokenLayout.packed([Grid(1, 3, 3)]), Joint(), "not Joint"),
        (TokenLayout.packed([Grid(4, 1, 1)]), Neighborhood((1, 3, 3)), "themselves alone"),
    ],
)
def test_refusals(asked: list[tuple[Any, ...]], layout: TokenLayout, pattern: Any, reason: str) -> None:
    q, k, v = tensors(layout.shape)
    with pytest.raises(ValueError, match=reason):
        attend(q, k, v, layout=layout, pattern=pattern, backend="natten")


def test_it_says_where_to_get_it(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natten, "_package", lambda: None)
    with pytest.raises(ValueError, match=r"not installed; its wheels are listed at https://natten\.org"):
        layout = TokenLayout.packed([Grid(1, 1, 5)])
        attend(*tensors((5,)), pattern=Neighborhood((1, 1, 3)), layout=layout, backend="natten")


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_the_real_kernels(causal: bool) -> None:
    pytest.importorskip("natten")
    layout = TokenLayout.packed([Grid(4, 8, 8), Grid(4, 8, 8), Grid(1, 8, 12)])
    qkv = [torch.randn(*layout.shape, 4, 64, device="cuda").bfloat16() for _ in range(3)]
    pattern = Neighborhood((3, 5, 4), (causal, False, False))
    how = {"pattern": pattern, "layout": layout.on("cuda")}
    out = attend(*qkv, backend="natten", **how)
    want = attend(*(x.double() for x in qkv), backend="reference", **how)
    assert (out.double() - want).norm() <= 4 * torch.finfo(torch.bfloat16).eps * want.norm()
