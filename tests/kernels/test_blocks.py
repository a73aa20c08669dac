"""Norms by blocks of tokens on the CPU against float64: values, gradients of two orders, what is kept, refusals."""

import pytest
import torch
from torch import Tensor

from tubelet.kernels import _blocks, gate_residual, layer_norm, norm_modulate, norm_rope
from tubelet.layout import Rows

INDEX = {
    "one": None,
    "batch": None,
    "runs": torch.arange(120).div(40, rounding_mode="floor") - 3,
    "mixed": torch.arange(120).mul(7).remainder(10) - 5,
}
ROWS = {"one": 1, "batch": 2, "runs": 3, "mixed": 5}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks to every run, the last one smaller."""
    monkeypatch.setattr(_blocks, "_NUMBERS", 7 * 12 // torch.get_num_threads())


def leaves(affine: bool, rows: int, of_x: torch.dtype, of_rows: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    drawn = [(torch.randn(2, 60, 12) * 2 + 1).to(of_x), torch.randn(rows, 24).to(of_rows)]
    return drawn + [torch.randn(12) for _ in range(2 * affine)]


def run(inputs: list[Tensor], kind: str, norm: str, **more: object) -> Tensor:
    index = INDEX[kind]
    rows = Rows(inputs[1], None if index is None else index.view(2, 60))
    affine = {"weight": inputs[2], "bias": inputs[3]} if len(inputs) > 2 else {}
    return norm_modulate(inputs[0], *rows.chunk(2), norm=norm, **affine, **more)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("of_x", "of_rows"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_values_and_gradients_equal_float64(kind: str, norm: str, affine: bool, of_x: str, of_rows: str) -> None:
    inputs = leaves(affine, ROWS[kind], getattr(torch, of_x), getattr(torch, of_rows))
    grad = torch.linspace(-1, 1, inputs[0].numel()).view_as(inputs[0]).bfloat16()
    found = []
    for values, options in ((inputs, {"backend": "blocks"}), ([each.double() for each in inputs], {})):
        held = [each.detach().requires_grad_() for each in values]
        out = run(held, kind, norm, **options)
        found.append([out.detach(), *torch.autograd.grad(out, held, grad.to(out.dtype))])
    assert [each.dtype for each in found[0][1:]] == [each.dtype for each in inputs]
    assert found[0][0].dtype == torch.promote_types(getattr(torch, of_x), getattr(torch, of_rows))
    for got, expected in zip(*found, strict=True):
        rounding = 1e-6 if got.dtype == torch.float32 else 4e-3
        assert float((got - expected).norm() / expected.norm()) < rounding


def test_the_result_may_have_another_dtype_and_is_rounded_once() -> None:
    inputs = leaves(True, 3, torch.bfloat16, torch.float32)
    exact = run([each.double() for each in inputs], "runs", "layer")
    got = run(inputs, "runs", "layer", dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert float((got != exact.bfloat16()).double().mean()) < 0.005  # nearly halfway between two neighbours
    assert float((got - exact).norm()) < 1.001 * float((exact.bfloat16() - exact).norm())


@pytest.mark.parametrize("kind", ["one", "mixed"])
def test_second_derivatives_equal_float64(kind: str) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        held = [each.to(dtype).requires_grad_() for each in leaves(True, ROWS[kind], torch.float32, torch.float32)]
        first = torch.autograd.grad(run(held, kind, "rms").sin().sum(), held, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), held))
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("norm", "numbers"), [("layer", 2), ("rms", 1)])
def test_tokens_are_kept_as_they_are_and_rows_are_not_spread(norm: str, numbers: int) -> None:
    x, rows = torch.randn(120, 64).bfloat16().requires_grad_(), torch.randn(3, 128).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_modulate(x, *Rows(rows, INDEX["runs"]).chunk(2), norm=norm)
    assert sum(each.nbytes for each in kept) == x.nbytes + rows.nbytes + INDEX["runs"].nbytes + numbers * 4 * 120


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, rows = torch.randn(4, 8), torch.randn(1, 16, requires_grad=True)
    norm_modulate(x, *Rows(rows).chunk(2)).sum().backward()
    assert x.grad is None
    assert rows.grad is not None


def test_no_tokens() -> None:
    assert norm_modulate(torch.ones(0, 8), *Rows(torch.ones(1, 16)).chunk(2), backend="blocks").shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "message"), [(torch.ones(2, 8).double(), "float64"), (torch.ones(2, 8).half(), "float16")]
)
def test_what_cannot_be_served_is_said(x: Tensor, message: str) -> None:
    rows = Rows(torch.ones(1, 16)).chunk(2)
    with pytest.raises(ValueError, match=message):
        norm_modulate(x, *rows, backend="blocks")
    assert norm_modulate(x, *rows).shape == x.shape


def test_derivatives_of_functions_take_the_reference() -> None:
    shift, scale = Rows(torch.randn(1, 16)).chunk(2)
    x = torch.randn(3, 5, 8)
    per_sample = torch.func.vmap(torch.func.grad(lambda part: norm_modulate(part, shift, scale).square().sum()))(x)
    leaf = x.requires_grad_()
    (expected,) = torch.autograd.grad(norm_modulate(leaf, shift, scale).square().sum(), leaf)
    torch.testing.assert_close(per_sample, expected)


def gate(inputs: list[Tensor], kind: str, **more: object) -> Tensor:
    index = INDEX[kind]
    return gate_residual(*inputs[:2], Rows(inputs[2], None if index is None else index.view(2, 60)), **more)


def gate_leaves(kind: str, of_x: torch.dtype, of_gate: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [*torch.randn(2, 2, 60, 12).to(of_x), torch.randn(ROWS[kind], 12).to(of_gate)]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(("of_x", "of_gate"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_gate_and_residual_equal_float64(kind: str, of_x: str, of_gate: str) -> None:
    inputs = gate_leaves(kind, getattr(torch, of_x), getattr(torch, of_gate))
    found = []
    for values, options in ((inputs, {"backend": "blocks"}), ([each.double() for each in inputs], {})):
        held = [each.detach().requires_grad_() for each in values]
        out = gate(held, kind, **options)
        grad = torch.linspace(-1, 1, 1440).view(2, 60, 12).bfloat16().to(out.dtype)
        found.append([out.detach(), *torch.autograd.grad(out, held, grad)])
    assert [each.dtype for each in found[0]] == [inputs[0].dtype, *(each.dtype for each in inputs)]
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < (1e-6 if got.dtype == torch.float32 else 4e-3)


def test_second_derivatives_of_gate_and_residual_equal_float64() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        held = [each.to(dtype).requires_grad_() for each in gate_leaves("batch", torch.float32, torch.float32)]
        first = torch.autograd.grad(gate(held, "batch").sin().sum(), held, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), held))
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_a_gate_keeps_the_update_as_it_is() -> None:
    x, update, rows = (each.requires_grad_() for each in gate_leaves("runs", torch.bfloat16, torch.float32))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gate([x, update, rows], "runs")
    assert sum(each.nbytes for each in kept) == update.nbytes + rows.nbytes + INDEX["runs"].nbytes


COMPOSED = {
    "layer_norm": lambda a, b, c: layer_norm(layer_norm(a, c), c),
    "norm_rope": lambda a, b, c: norm_rope(norm_rope(a.unflatten(1, (2, 8)), weight=c), weight=c),
    "gate_residual": lambda a, b, c: gate_residual(b, gate_residual(a, b, Rows(c[None])), Rows(c[None])),
    "norm_modulate": lambda a, b, c: norm_modulate(norm_modulate(a, *[Rows(c[None])] * 2), *[Rows(c[None])] * 2),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_two_operations_that_share_a_tensor_have_gradients_of_both_orders(name: str) -> None:
    """What feeds two operations has a path through the first into what the second keeps."""
    torch.manual_seed(0)
    width = 16 if name != "norm_rope" else 8
    values = torch.randn(3, 16), torch.randn(3, 16), torch.randn(width)
    found = []
    for dtype in (torch.float32, torch.float64):
        held = [each.to(dtype, copy=True).requires_grad_() for each in values]
        loss = COMPOSED[name](*held).sin().sum()
        first = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True, materialize_grads=True)
        second = torch.autograd.grad(
            sum(each.square().sum() for each in first), held, allow_unused=True, materialize_grads=True
        )
        found.append([each.detach() for each in (*first, *second)])
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_residual_whose_gate_asks_for_nothing_has_gradients_of_both_orders() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    out = gate_residual(x, torch.randn(3, 8), Rows(torch.randn(1, 8)), backend="blocks")
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, torch.full_like(x, 2))
