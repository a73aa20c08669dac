"""Layer norm of two precisions against float64: values, gradients, second derivatives, refusals, what it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.kernels import layer_norm
from tubelet.kernels._layer_norm.reference import reference


def tensors(seed: int, lead: tuple[int, ...], d: int, affine: tuple[bool, bool]) -> list[Tensor | None]:
    torch.manual_seed(seed)
    drawn = (torch.randn(*lead, d) * 3 + 1, torch.randn(d), torch.randn(d))
    return [value if kept else None for value, kept in zip(drawn, (True, *affine), strict=True)]


def cast(values: list[Tensor | None], *dtypes: torch.dtype) -> list[Tensor | None]:
    return [None if value is None else value.to(dtype) for value, dtype in zip(values, dtypes, strict=True)]


PRECISIONS = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=40)
@given(
    st.integers(0, 99),
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.integers(2, 70),
    st.tuples(st.booleans(), st.booleans()),
    PRECISIONS,
    PRECISIONS,
    PRECISIONS,
)
def test_values_and_gradients_equal_float64(seed, lead, d, affine, of_x, of_weight, of_bias) -> None:
    given_ = cast(tensors(seed, tuple(lead), d, affine), of_x, of_weight, of_bias)
    found = []
    for values, backend in ((given_, "native"), (cast(given_, *[torch.float64] * 3), "reference")):
        leaves = [None if value is None else value.detach().requires_grad_() for value in values]
        out = layer_norm(*leaves, eps=1e-3, backend=backend)
        held = [leaf for leaf in leaves if leaf is not None]
        # a linear loss: rounding of the result does not enter its gradients
        grads = torch.autograd.grad(out, held, torch.linspace(-1, 1, out.numel()).to(of_x).view_as(out).to(out))
        found.append((out, grads))
    (out, grads), (expected, exact) = found
    assert out.dtype == of_x
    assert out.shape == (*lead, d)
    tolerance = 1e-5 if of_x == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for got, wanted, leaf in zip(grads, exact, [value for value in given_ if value is not None], strict=True):
        assert got.dtype == leaf.dtype
        rounding = 1e-5 if leaf.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got.double(), wanted, rtol=rounding, atol=rounding * (1 + float(wanted.norm())))


def test_gradients_of_the_affine_part_are_summed_in_float32() -> None:
    x, weight, bias = cast(tensors(0, (4096,), 8, (True, True)), torch.bfloat16, torch.float32, torch.float32)
    grads = []
    for values, backend in (((x, weight, bias), "native"), ((x.double(), weight.double(), bias.double()), "reference")):
        leaves = [value.detach().requires_grad_() for value in values]
        grads.append(torch.autograd.grad(layer_norm(*leaves, backend=backend).sum(), leaves[1:]))
    for got, expected in zip(*grads, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("affine", [(True, True), (False, False)])
def test_second_derivatives_equal_float64(affine: tuple[bool, bool]) -> None:
    found = []
    for values, backend in ((tensors(0, (2, 7), 12, affine), "native"), (tensors(0, (2, 7), 12, affine), "reference")):
        dtype = torch.float32 if backend == "native" else torch.float64
        leaves = [value.detach().to(dtype).requires_grad_() for value in values if value is not None]
        out = layer_norm(*leaves, backend=backend)
        first = torch.autograd.grad((out.sin() * out).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), leaves)
        found.append([each.detach() for each in (*first, *second)])
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, weight, bias = tensors(0, (3,), 4, (True, True))
    assert weight is not None
    weight.requires_grad_()
    layer_norm(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert x is not None
    assert x.grad is None


def test_tokens_are_kept_as_they_are() -> None:
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer_norm(x, torch.ones(32), torch.zeros(32), backend="native")
    assert sum(t.nbytes for t in kept) == x.nbytes + 2 * 32 * 4 + 2 * 64 * 4


def test_strided_tokens() -> None:
    x = torch.randn(4, 3, 16).transpose(0, 1)[:, :, ::2]
    torch.testing.assert_close(layer_norm(x, backend="native"), reference(x))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(2, 3).double(), {}, "float64"),
        (torch.ones(2, 3, device="meta"), {}, "meta"),
        (torch.ones(2, 3), {"weight": torch.ones(3).half()}, "float16"),
    ],
)
def test_what_cannot_be_served_is_said(x: Tensor, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_norm(x, **options, backend="native")
    assert layer_norm(x, **options).shape == x.shape  # auto takes the reference


@pytest.mark.graph  # shapes and names are refused by their types elsewhere
def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"weight must be \(3,\), got \(2,\)"):
        layer_norm(torch.ones(4, 3), torch.ones(2))
    with pytest.raises(ValueError, match="backend must be one of auto, reference, native, got 'triton'"):
        layer_norm(torch.ones(4, 3), backend="triton")


def test_per_sample_gradients() -> None:
    x, weight = torch.randn(5, 4, 8), torch.randn(8)
    grads = torch.func.vmap(torch.func.grad(lambda part: layer_norm(part, weight).square().sum()))(x)
    leaf = x.requires_grad_()
    (expected,) = torch.autograd.grad(layer_norm(leaf, weight).square().sum(), leaf)
    torch.testing.assert_close(grads, expected)
