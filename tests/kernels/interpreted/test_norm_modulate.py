"""Norm + modulate, interpreted, against its definition in float64: values, gradients, strides, rows, compilation."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import near
from torch import Tensor

from tubelet.kernels import norm_modulate
from tubelet.kernels._modulation.launches import Given, backward
from tubelet.layout import Grid, Rows, TokenLayout

TOLERANCE = 2e-6


class Case(NamedTuple):
    """One drawn call: ``rows`` None means one row a batch element."""

    batch: int
    tokens: int
    width: int
    norm: Any
    affine: bool
    rows: int | None
    strided: bool
    enough: int
    seed: int


cases = st.builds(
    Case,
    batch=st.integers(1, 2),
    tokens=st.sampled_from([1, 2, 11]),
    width=st.sampled_from([1, 7, 33, 72, 96]),
    norm=st.sampled_from(["layer", "rms"]),
    affine=st.booleans(),
    rows=st.sampled_from([None, 1, 3, 50]),
    strided=st.booleans(),
    enough=st.sampled_from([1, 1024]),  # programs wanted: few walk longer chunks
    seed=st.integers(0, 99),
)


def definition(x: Tensor, shift: Tensor, scale: Tensor, norm: str, weight: Any, bias: Any, eps: float) -> Tensor:
    """Written out in float64, one row of shift and scale a token."""
    centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        normed = normed * weight + bias
    return normed * (1 + scale) + shift


def inputs(case: Case) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
    """Leaves in float32, the index, and the gradient of the result."""
    torch.manual_seed(case.seed)
    shape = (case.batch, case.tokens, case.width)
    rows = case.batch if case.rows is None else case.rows
    leaves = {"x": torch.randn(shape), "rows": torch.randn(rows, 3 * case.width)}
    if case.strided:  # neither the tokens nor the features lie dense, nor does the gradient
        leaves["x"] = torch.randn(case.tokens, case.width, 2 * case.batch).permute(2, 0, 1)[::2]
    if case.affine:
        leaves |= {"weight": torch.randn(case.width), "bias": torch.randn(case.width)}
    index = None if case.rows in (None, 1) else torch.randint(-rows, rows, shape[:2])
    grad = torch.randn(case.width, *shape[:2]).permute(1, 2, 0) if case.strided else torch.randn(shape)
    return leaves, index, grad


@given(cases)
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    with patch("tubelet.kernels._rows.sums.ENOUGH", case.enough):
        compare(case)


def compare(case: Case) -> None:
    leaves, index, grad = inputs(case)
    eps = 0.3 if case.width == 1 else 1e-5  # one feature: its own norm, whose gradient all but vanishes with eps
    ours = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    exact = {name: leaf.double().detach().requires_grad_() for name, leaf in leaves.items()}
    shift, scale = Rows(ours["rows"], index).chunk(3)[:2]
    affine = {"weight": ours.get("weight"), "bias": ours.get("bias")}
    got = norm_modulate(ours["x"], shift, scale, norm=case.norm, **affine, eps=eps, backend="triton")
    places = torch.arange(case.batch)[:, None] if index is None else index
    each = exact["rows"][places % len(exact["rows"])]  # (batch, tokens or 1, 3·width)
    parts = each.chunk(3, dim=-1)[:2]
    expected = definition(exact["x"], *parts, case.norm, exact.get("weight"), exact.get("bias"), eps)
    near(got, expected, "values", TOLERANCE)
    got.backward(grad)
    expected.backward(grad.double())
    for name, leaf in exact.items():
        near(ours[name].grad, leaf.grad, f"gradient of {name}", TOLERANCE)


def test_packed_tokens_of_a_layout_with_padding() -> None:
    index = TokenLayout.packed([Grid(2, 2, 3), Grid(1, 1, 5)], [2, 0], capacity=32).on("cpu")
    for level in ("sample", "frame", "token"):
        values = torch.randn(index.row_counts(level)[0], 2 * 24)
        x, leaf = torch.randn(32, 24), values.clone().requires_grad_()
        shift, scale = index.rows(leaf, level).chunk(2)
        got = norm_modulate(x, shift, scale, backend="triton")
        exact = values.double().requires_grad_()
        a, b = (rows.expand() for rows in index.rows(exact, level).chunk(2))
        expected = definition(x.double(), a, b, "layer", None, None, 1e-6)
        near(got, expected, level, TOLERANCE)
        got.sum().backward()
        expected.sum().backward()
        near(leaf.grad, exact.grad, f"rows by {level}", TOLERANCE)


def test_rows_longer_than_a_chunk_and_rows_without_tokens() -> None:
    """400 tokens make 50 chunks; row 1 is empty, row 2 has one token, row 3 all the rest."""
    x, index = torch.randn(400, 4), torch.full((400,), 3)
    index[:100], index[277] = 0, 2
    leaf = torch.randn(4, 8, requires_grad=True)
    norm_modulate(x, *Rows(leaf, index).chunk(2), backend="triton").square().sum().backward()
    exact = leaf.detach().double().requires_grad_()
    a, b = exact[index].chunk(2, -1)
    definition(x.double(), a, b, "layer", None, None, 1e-6).square().sum().backward()
    near(leaf.grad, exact.grad, "rows", TOLERANCE)
    assert torch.equal(leaf.grad[1], torch.zeros(8))


def test_sums_repeat_to_the_bit_and_hardly_depend_on_the_order_of_tokens() -> None:
    x, index, leaf = torch.randn(90, 16), torch.randint(0, 7, (90,)), torch.randn(7, 32)

    def gradient(order: Tensor) -> Tensor:
        own = leaf.clone().requires_grad_()
        norm_modulate(x[order], *Rows(own, index[order]).chunk(2), backend="triton").square().sum().backward()
        return own.grad

    straight = torch.arange(90)
    assert torch.equal(gradient(straight), gradient(straight))
    near(gradient(torch.randperm(90)), gradient(straight).double(), "permuted tokens", TOLERANCE)


def test_no_tokens() -> None:
    x, leaf = torch.randn(0, 8, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    out = norm_modulate(x, *Rows(leaf, torch.zeros(0, dtype=torch.int64)).chunk(2), backend="triton")
    out.sum().backward()
    assert out.shape == x.grad.shape == (0, 8)
    assert torch.equal(leaf.grad, torch.zeros(2, 16))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 3, 0)])
def test_no_samples_and_no_width(shape: tuple[int, ...]) -> None:
    x, rows = (torch.ones(each, requires_grad=True) for each in (shape, (shape[0], shape[2])))
    out = norm_modulate(x, Rows(rows), Rows(rows), backend="triton")
    grads = torch.autograd.grad(out.sum(), [x, rows])
    assert (out.shape, grads[1].shape) == (x.shape, rows.shape)


def test_half_precision_is_rounded_once() -> None:
    x, rows = torch.randn(5, 40).half(), torch.randn(1, 80).half()
    got = norm_modulate(x, *Rows(rows).chunk(2), backend="triton")
    a, b = rows.double().chunk(2, -1)
    expected = definition(x.double(), a, b, "layer", None, None, 1e-6)
    assert got.dtype == torch.float16
    assert (got.double() - expected).norm() < 3e-4 * expected.norm()
    mixed = norm_modulate(x, *Rows(rows.float()).chunk(2), backend="triton")
    assert mixed.dtype == torch.float32


def test_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        norm_modulate(torch.ones(2, 4).bfloat16(), *Rows(torch.ones(1, 8)).chunk(2), backend="triton")


@pytest.mark.graph
@pytest.mark.parametrize("affine", [False, True])
def test_the_operators_are_sound(affine: bool) -> None:
    x, shift, scale = (torch.randn(n, 8, requires_grad=True) for n in (6, 2, 2))
    weight = torch.randn(8, requires_grad=True) if affine else None
    index = torch.tensor([0, 1, 1, 0, 1, 1])
    arguments = (x, shift, scale, index, weight, weight, 6, False, 1e-6)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tubelet.norm_modulate.default, arguments, test_utils=tests)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    index = torch.tensor([[0, 1, 1], [0, 0, 1]])

    def run(x: Tensor, rows: Tensor) -> Tensor:
        return norm_modulate(x, *Rows(rows, index).chunk(2), backend="triton") ** 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 16, requires_grad=True)]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("n", "chunk"), [(1, 64), (9, 8), (64, 8)])
def test_every_chunk_length_gives_the_same_sums(n: int, chunk: int) -> None:
    from tubelet.kernels._launching import Sizes

    x, row = torch.randn(n, 8), torch.randn(1, 8)
    stats = torch.stack([torch.ones(n), torch.zeros(n)])
    _, sums = backward(x, Given(x, row, None, None, n, False, 1e-6), stats, None, None, sizes=Sizes(chunk, 1))
    near(sums[0, 0], x.double().sum(0), "sum of the gradient", TOLERANCE)
    near(sums[1, 0], x.double().square().sum(0), "sum of gradient times x", TOLERANCE)
