"""Gate + residual, alone and with norm + modulate, interpreted, against the definition in float64."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rounding import near
from torch import Tensor

from tubelet.kernels import gate_residual, residual_norm_modulate
from tubelet.layout import Rows

TOLERANCE = 2e-6
EPS = 1e-2


class Case(NamedTuple):
    """One drawn call: ``parts`` says what there is of gate, shift, scale and affine; ``rows`` None: one a sample."""

    batch: int
    tokens: int
    width: int
    norm: Any
    parts: tuple[bool, bool, bool, bool]
    rows: int | None
    strided: bool
    used: str
    enough: int
    together: int
    seed: int


EVERY = (True, True, True, True)
cases = st.builds(
    Case,
    batch=st.integers(1, 2),
    tokens=st.sampled_from([1, 2, 11]),
    width=st.sampled_from([1, 7, 33, 72]),
    norm=st.sampled_from(["layer", "rms"]),
    parts=st.tuples(*[st.booleans()] * 4) | st.just(EVERY),
    rows=st.sampled_from([None, 1, 3, 50]),
    strided=st.booleans(),
    used=st.sampled_from(["both", "both", "sum", "normed"]),
    enough=st.sampled_from([1, 1024]),  # programs wanted: few walk longer chunks
    together=st.sampled_from([0, 4096]),  # the widest row of one launch; wider ones take two
    seed=st.integers(0, 99),
)


def definition(leaves: dict[str, Tensor], places: Tensor, norm: str) -> list[Tensor]:
    """Written out in float64; ``places`` is the row of each token."""
    row = {name: leaves[name][places] if name in leaves else 0.0 for name in ("shift", "scale")}
    gate = leaves["gate"][places] if "gate" in leaves else 1.0
    y = leaves["x"] + gate * leaves["update"]
    centred = y - y.mean(-1, keepdim=True) if norm == "layer" else y
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    if "weight" in leaves:
        normed = normed * leaves["weight"] + leaves["bias"]
    return [y, normed * (1 + row["scale"]) + row["shift"]]


def inputs(case: Case) -> tuple[dict[str, Tensor], Tensor | None, list[Tensor]]:
    """Leaves in float32, the index, and the gradients of both results."""
    torch.manual_seed(case.seed)
    shape = (case.batch, case.tokens, case.width)
    rows = case.batch if case.rows is None else case.rows

    def tokens() -> Tensor:
        if case.strided:  # neither the tokens nor the features lie dense
            return torch.randn(case.tokens, case.width, 2 * case.batch).permute(2, 0, 1)[::2]
        return torch.randn(shape)

    leaves = {"x": tokens(), "update": tokens()}
    for name, there in zip(("gate", "shift", "scale"), case.parts, strict=False):
        if there:
            leaves[name] = torch.randn(rows, 2 * case.width)[:, : case.width]
    if case.parts[3]:
        leaves |= {"weight": torch.randn(case.width), "bias": torch.randn(case.width)}
    index = None if case.rows in (None, 1) else torch.randint(-rows, rows, shape[:2])
    return leaves, index, [tokens(), tokens()]


def both(case: Case) -> None:
    leaves, index, grads = inputs(case)
    ours, exact = (
        {name: leaf.to(dtype).detach().requires_grad_() for name, leaf in leaves.items()}
        for dtype in (torch.float32, torch.float64)
    )
    rows = [Rows(ours[name], index) if name in ours else None for name in ("gate", "shift", "scale")]
    affine = {name: ours.get(name) for name in ("weight", "bias")}
    got = residual_norm_modulate(ours["x"], ours["update"], *rows, norm=case.norm, **affine, eps=EPS, backend="triton")
    count = case.batch if case.rows is None else case.rows
    places = torch.arange(case.batch)[:, None] % count if index is None else index
    expected = definition(exact, places, case.norm)
    for a, b, name in zip(got, expected, ("sum", "normed"), strict=True):
        near(a, b, name, TOLERANCE)
    used = {"both": (0, 1), "sum": (0,), "normed": (1,)}[case.used]
    torch.autograd.backward([got[i] for i in used], [grads[i] for i in used])
    torch.autograd.backward([expected[i] for i in used], [grads[i].double() for i in used])
    for name, leaf in exact.items():
        wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        near(ours[name].grad, wanted, f"gradient of {name}", TOLERANCE)
    if rows[0] is not None:
        alone = gate_residual(ours["x"], ours["update"], rows[0], backend="triton")
        near(alone, expected[0], "sum alone", TOLERANCE)
        leaves = [ours[name] for name in ("x", "update", "gate")]
        found = torch.autograd.grad(alone, leaves, grads[0])
        y = definition(exact, places, case.norm)[0]
        wanted = torch.autograd.grad(y, [exact[name] for name in ("x", "update", "gate")], grads[0].double())
        for a, b, name in zip(found, wanted, ("x", "update", "gate"), strict=True):
            near(a, b, f"gradient of {name}, alone", TOLERANCE)


@given(cases)
@example(Case(2, 11, 33, "layer", EVERY, 3, False, "both", 1, 0, 0))
@example(Case(2, 9, 7, "rms", (False, False, False, True), None, True, "both", 1024, 4096, 1))
@example(Case(1, 2, 7, "layer", (False, False, False, False), None, False, "sum", 1024, 4096, 2))
@example(Case(2, 11, 33, "layer", (True, False, False, False), 3, False, "both", 1, 0, 3))
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    together = patch("tubelet.kernels._residual.launches._TOGETHER", case.together)
    with patch("tubelet.kernels._rows.sums.ENOUGH", case.enough), together:
        both(case)


def test_no_tokens() -> None:
    x, gate = torch.randn(0, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    rows = Rows(gate, torch.zeros(0, dtype=torch.int64))
    for results in (
        residual_norm_modulate(x, x, rows, rows, rows, backend="triton"),
        [gate_residual(x, x, rows, backend="triton")],
    ):
        grads = torch.autograd.grad([out.sum() for out in results], [x, gate])
        assert results[0].shape == grads[0].shape == (0, 8)
        assert torch.equal(grads[1], torch.zeros(2, 8))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 3, 0)])
def test_no_samples_and_no_width(shape: tuple[int, ...]) -> None:
    x, values = (torch.ones(each, requires_grad=True) for each in (shape, (shape[0], shape[2])))
    rows = Rows(values)
    out = [gate_residual(x, x, rows, backend="triton"), *residual_norm_modulate(x, x, *[rows] * 3, backend="triton")]
    grads = torch.autograd.grad(sum(each.sum() for each in out), [x, values])
    assert all(each.shape == x.shape for each in out)
    assert grads[1].shape == values.shape


def test_the_norm_is_that_of_the_rounded_sum() -> None:
    """In half precision both results are rounded once, and a residual in float32 takes an update in float16."""
    x, update, row = torch.randn(5, 40).half(), torch.randn(5, 40).half(), torch.randn(1, 40)
    y, out = residual_norm_modulate(x, update, *[Rows(row.half())] * 3, backend="triton")
    assert torch.equal(y, (x.float() + row.half().float() * update.float()).half())
    wide = {name: tensor.double() for name, tensor in (("x", y), ("update", 0 * x), ("shift", row.half()))}
    leaves = {**wide, "scale": wide["shift"]}
    exact = definition(leaves, torch.zeros(5, dtype=torch.int64), "layer")[1]
    (again,) = residual_norm_modulate(x, update, *[Rows(row.half())] * 3, eps=EPS, backend="triton")[1:]
    assert out.dtype == torch.float16
    assert (again.double() - exact).norm() < 3e-4 * exact.norm()
    mixed = x.float().requires_grad_(), update.requires_grad_(), row.requires_grad_()
    y, out = residual_norm_modulate(*mixed[:2], *[Rows(mixed[2])] * 3, backend="triton")
    assert y.dtype == out.dtype == torch.float32
    (y.sum() + out.square().sum()).backward()
    assert [leaf.grad.dtype for leaf in mixed] == [torch.float32, torch.float16, torch.float32]


def test_bfloat16_is_refused() -> None:
    x, row = torch.ones(2, 4).bfloat16(), Rows(torch.ones(1, 4))
    for call in (lambda: gate_residual(x, x, row, backend="triton"),
                 lambda: residual_norm_modulate(x, x, row, row, row, backend="triton")):  # fmt: skip
        with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
            call()


def test_sums_repeat_to_the_bit() -> None:
    x, index, leaf = torch.randn(2, 90, 16), torch.randint(0, 7, (90,)), torch.randn(7, 48)

    def gradient() -> Tensor:
        own = leaf.clone().requires_grad_()
        found = residual_norm_modulate(*x, *Rows(own, index).chunk(3), backend="triton")
        (found[0].square().sum() + found[1].square().sum()).backward()
        return own.grad

    assert torch.equal(gradient(), gradient())


@pytest.mark.graph
@pytest.mark.parametrize("gated", [False, True])
def test_the_operators_are_sound(gated: bool) -> None:
    x, update, row, weight = (torch.randn(*shape, requires_grad=True) for shape in ((6, 8), (6, 8), (2, 8), (8,)))
    index = torch.tensor([0, 1, 1, 0, 1, 1])
    rest = (index, weight, weight, 6, False, 1e-6) if gated else (None, weight, weight, 6, True, 1e-6)
    arguments = (x, update, *([row] * 3 if gated else [None] * 3), *rest)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tubelet.residual_norm.default, arguments, test_utils=tests)
    if gated:
        arguments = (x, update, row, index, 6)
        torch.library.opcheck(torch.ops.tubelet.gate_residual.default, arguments, test_utils=tests)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    index = torch.tensor([[0, 1, 1], [0, 0, 1]])

    def run(x: Tensor, rows: Tensor) -> Tensor:
        parts = Rows(rows, index).chunk(3)
        y, out = residual_norm_modulate(x, x.sin(), *parts, backend="triton")
        return gate_residual(y, out, parts[0], backend="triton") ** 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 24, requires_grad=True)]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
