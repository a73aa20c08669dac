"""A linear map and its activation by oneDNN against float64: values, gradients, second derivatives, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tubelet.kernels import linear
from tubelet.kernels._linear.reference import ACTIVATIONS, reference

ACTS = (None, *ACTIVATIONS)


def tensors(seed: int, lead: tuple[int, ...], d: int, e: int, bias: bool) -> list[Tensor | None]:
    torch.manual_seed(seed)
    return [torch.randn(*lead, d), torch.randn(e, d) / d**0.5, torch.randn(e) if bias else None]


def wide(values: list[Tensor | None]) -> list[Tensor | None]:
    return [None if value is None else value.double() for value in values]


@settings(max_examples=40)
@given(
    st.integers(0, 99),
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.integers(1, 17),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(ACTS),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_values_equal_float64(seed, lead, d, e, bias, act, dtype) -> None:
    given_ = [None if value is None else value.to(dtype) for value in tensors(seed, tuple(lead), d, e, bias)]
    expected = reference(*wide(given_), act)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    got = linear(*given_, act=act, backend="onednn")
    assert got.dtype == dtype
    assert got.shape == (*lead, e)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_both_orders_equal_float64(act, bias: bool) -> None:
    given_ = tensors(0, (2, 7), 12, 5, bias)
    found = []
    for values, backend in ((given_, "onednn"), (wide(given_), "reference")):
        leaves = [value.detach().requires_grad_() for value in values if value is not None]
        out = linear(*leaves, *([] if bias else [None]), act=act, backend=backend)
        first = torch.autograd.grad((out.sin() * out).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), leaves)
        found.append([each.detach() for each in (*first, *second)])
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_have_a_gradient_of_zeros(dtype: torch.dtype) -> None:
    weight = torch.ones(6, 8, dtype=dtype, requires_grad=True)
    linear(torch.ones(0, 8, dtype=dtype, requires_grad=True), weight, backend="onednn").sum().backward()
    assert weight.grad is not None
    assert weight.grad.shape == (6, 8)
    assert not weight.grad.any()


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, weight, bias = tensors(0, (3,), 4, 2, True)
    learned = nn.Parameter(weight)
    linear(x, learned, bias, backend="onednn").sum().backward()
    torch.testing.assert_close(learned.grad, x.sum(0).expand(2, 4))
    frozen = linear(x.requires_grad_(), weight, bias, backend="onednn")
    (got,) = torch.autograd.grad(frozen.sum(), [x])
    torch.testing.assert_close(got, weight.sum(0).expand(3, 4))


def test_views_and_transposed_weights() -> None:
    x, weight = torch.randn(3, 8, 5).transpose(1, 2), torch.randn(8, 6).t()
    torch.testing.assert_close(linear(x, weight, backend="onednn"), x @ weight.t())
    torch.testing.assert_close(linear(x[:, ::2], weight, backend="onednn"), x[:, ::2] @ weight.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strides", [(2, 1), (1, 3), (0, 1), (1, 0), (0, 0), (64, 4)])
def test_rows_that_overlap_or_lie_apart(strides: tuple[int, int], dtype: torch.dtype) -> None:
    numbers, dense = torch.randn(2000).to(dtype), torch.randn(6, 8).to(dtype)
    view = numbers.as_strided((4, 8), strides)
    for x, weight in ((view, dense), (dense, view)):
        torch.testing.assert_close(linear(x, weight, backend="onednn"), nn.functional.linear(x.clone(), weight.clone()))


def test_what_it_cannot_serve_is_refused_by_name_and_served_otherwise() -> None:
    x, weight, _ = tensors(0, (3,), 4, 2, False)
    with pytest.raises(ValueError, match="float32 or bfloat16, all alike, and a tensor is torch.float64"):
        linear(x.double(), weight.double(), backend="onednn")
    with pytest.raises(ValueError, match="lies on meta"):
        linear(x.to("meta"), weight.to("meta"), backend="onednn")
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.to("meta"), weight.to("meta")).shape == (3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="autocast"):
            linear(x, weight, backend="onednn")
    mapped = torch.func.vmap(torch.func.grad(lambda row: linear(row, weight).sum()))(x)
    torch.testing.assert_close(mapped, weight.sum(0).expand(3, 4))


def test_wrong_input_is_refused() -> None:
    x, weight, bias = tensors(0, (3,), 4, 2, True)
    with pytest.raises(ValueError, match=r"x has shape \(3, 3\), but weight has \(2, 4\)"):
        linear(x[:, :3], weight)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\), but weight has \(2, 4\)"):
        linear(x, weight, bias[:1])


@pytest.mark.graph  # the names are refused by their types elsewhere
def test_unknown_names_are_refused() -> None:
    x, weight, _ = tensors(0, (3,), 4, 2, False)
    with pytest.raises(ValueError, match="act must be None or one of .*, got 'tanh'"):
        linear(x, weight, act="tanh")
    with pytest.raises(ValueError, match="backend must be one of .*, got 'mkl'"):
        linear(x, weight, backend="mkl")


@pytest.mark.graph
def test_one_graph() -> None:
    x, weight, bias = tensors(0, (3,), 4, 2, True)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias, act="silu"), linear(x, weight, bias, act="silu"))
