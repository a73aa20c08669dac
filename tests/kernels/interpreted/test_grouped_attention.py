"""Grouped attention, interpreted, against the definition in float64: values, gradients, strides, mixtures, refusals."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import GRADIENT, HALF, TOLERANCE, near
from strides import place
from torch import Tensor

from tubelet import attend
from tubelet.attention import FrameCausal, Joint, Spatial, Strided, Temporal, Window, explain
from tubelet.attention.in_place import groups
from tubelet.attention.places import Affine
from tubelet.attention.plan import make_plan
from tubelet.attention.tiles import Run
from tubelet.kernels import grouped_attention
from tubelet.kernels._grouped.places import pairs
from tubelet.layout import Grid, TokenLayout


class Case(NamedTuple):
    """One drawn call."""

    pattern: Any
    grids: list[Grid]
    texts: list[int]
    spare: int
    heads: tuple[int, int]
    widths: tuple[int, int]
    memory: str
    seed: int


cases = st.builds(
    Case,
    pattern=st.sampled_from(
        [
            Temporal(),
            Spatial(),
            Window((2, 2, 2)),
            Window((1, 3, 1), shift=(0, 1, 0)),
            Joint(),
            Strided(2),
            Strided(3, 1),
        ]
    ),
    grids=st.lists(
        st.sampled_from([Grid(1, 1, 1), Grid(5, 3, 2), Grid(3, 1, 5), Grid(1, 3, 6), Grid(17, 1, 2)]),
        min_size=1,
        max_size=2,
    ),
    texts=st.lists(st.sampled_from([0, 1, 3, 17]), min_size=2, max_size=2),
    spare=st.sampled_from([0, 5]),
    heads=st.sampled_from([(1, 1), (4, 2), (2, 2)]),
    widths=st.sampled_from([(8, 8), (16, 40), (72, 72)]),
    memory=st.sampled_from(["dense", "packed qkv", "heads first", "features apart"]),
    seed=st.integers(0, 99),
)


def in_groups(q: Tensor, k: Tensor, v: Tensor, pattern: Any, layout: TokenLayout) -> Tensor:
    """Attention by the groups of a plan, whatever else would serve it."""
    table = layout.on("cpu").table.numpy().tobytes()
    runs: Any = groups(pattern, table, None, None, None, heads=q.shape[1]).runs
    return grouped_attention(q, k, v, runs, backend="triton")


@given(cases)
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    torch.manual_seed(case.seed)
    texts = case.texts[: len(case.grids)]
    used = sum(grid.tokens for grid in case.grids) + sum(texts)
    layout = TokenLayout.packed(case.grids, texts, capacity=used + case.spare)
    n, (heads, kv_heads), (width, v_width) = used + case.spare, case.heads, case.widths
    leaves = [place(n, heads, width, case.memory), place(n, kv_heads, width, case.memory)]
    leaves.append(place(n, kv_heads, v_width, case.memory))
    for leaf in leaves:
        leaf[used:] = torch.nan
    ours = [leaf.detach().requires_grad_() for leaf in leaves]
    exact = [leaf.double().detach().nan_to_num().requires_grad_() for leaf in leaves]
    got = in_groups(*ours, case.pattern, layout)
    expected = attend(*exact, pattern=case.pattern, layout=layout, backend="reference")
    near(got, expected, "output", TOLERANCE)
    assert got.is_contiguous()
    assert torch.equal(got[used:], torch.zeros_like(got[used:]))
    grad = place(n, heads, v_width, case.memory)
    grads = torch.autograd.grad(got, ours, grad)
    for name, a, b in zip("qkv", grads, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        near(a, b, f"gradient of {name}", GRADIENT)
        assert torch.equal(a[used:], torch.zeros_like(a[used:]))


@pytest.mark.parametrize(("t", "text"), [(1, 2), (5, 0), (5, 2), (21, 0), (33, 0), (130, 0)])
def test_half_precision_in_tiles_of_its_own_size(t: int, text: int) -> None:
    """Short groups together, one group a tile, groups of several tiles, and text, in float16."""
    torch.manual_seed(t)
    layout = TokenLayout.packed([Grid(t, 1, 2)], [text])
    leaves = [x.requires_grad_() for x in torch.randn(3, 2 * t + text, 1, 16).half()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    grad = torch.randn_like(exact[0]).half()
    results = []
    for inputs in (leaves, exact):
        ours = inputs is leaves
        out = (
            in_groups(*inputs, Temporal(), layout)
            if ours
            else attend(*inputs, pattern=Temporal(), layout=layout, backend="reference")
        )
        results.append((out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))))
    for name, got, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        assert got.dtype == torch.float16
        near(got, expected, name, HALF["output" if name == "output" else "gradient"])


@pytest.mark.parametrize("length", [5, 21, 130])
@pytest.mark.parametrize("fault", ["a scale off by a fiftieth", "one pair missing", "one key missing"])
def test_the_widest_tolerance_still_sees(fault: str, length: int) -> None:
    torch.manual_seed(length)
    q, k, v, grad = torch.randn(4, length, 16, dtype=torch.float64)
    results = []
    for wrong in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        scores = leaves[0] @ leaves[1].T / 4 * (1.02 if wrong and "scale" in fault else 1)
        missing = torch.zeros(length, length, dtype=torch.bool)
        missing[length // 2 if "pair" in fault else slice(None), -1] = wrong and "missing" in fault
        out = scores.masked_fill(missing, -torch.inf).softmax(-1) @ leaves[2]
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for name, right, got in zip(("output", "q", "k", "v"), *results, strict=True):
        with pytest.raises(AssertionError, match="error"):
            near(got, right, name, HALF["output" if name == "output" else "gradient"])


@pytest.mark.parametrize(
    ("pattern", "grids", "text"),
    [
        (Spatial(), [Grid(3, 4, 5), Grid(3, 4, 5)], 0),  # frames of 20 tokens of two samples: two axes of groups
        (Temporal(), [Grid(18, 1, 2)], 3),  # items apart, and text behind
    ],
    ids=str,
)
def test_tiles_by_descriptor(pattern: Any, grids: list[Grid], text: int, descriptors: list[Any]) -> None:
    """What Hopper loads: nothing beyond a group or a head, whatever lies there, and the same results."""
    torch.manual_seed(0)
    layout = TokenLayout.packed(grids, [text] * len(grids), capacity=180)
    used = sum(grid.tokens + text for grid in grids)
    leaves = [place(180, heads, width, "packed qkv") for heads, width in ((2, 20), (1, 20), (1, 8))]
    for leaf in leaves:
        leaf[used:] = torch.nan
    ours = [leaf.detach().requires_grad_() for leaf in leaves]
    exact = [leaf.double().detach().nan_to_num().requires_grad_() for leaf in leaves]
    grad = torch.randn(180, 2, 8)
    got, expected = in_groups(*ours, pattern, layout), attend(*exact, pattern=pattern, layout=layout)
    near(got, expected, "output", TOLERANCE)
    grads = torch.autograd.grad(got, ours, grad), torch.autograd.grad(expected, exact, grad.double())
    for name, a, b in zip("qkv", *grads, strict=True):
        near(a, b, f"gradient of {name}", GRADIENT)
    assert len(descriptors) >= 6
    assert None not in descriptors


def test_cross_attention_and_dense_batches() -> None:
    torch.manual_seed(0)
    layout, texts = TokenLayout.packed([Grid(2, 3, 3), Grid(1, 1, 1)]), TokenLayout.packed([None, None], [20, 2])
    q, k, v = torch.randn(19, 2, 8), torch.randn(22, 1, 8), torch.randn(22, 1, 8)
    got = attend(q, k, v, layout=layout, kv_layout=texts, backend="triton")
    expected = attend(*(x.double() for x in (q, k, v)), layout=layout, kv_layout=texts, backend="reference")
    near(got, expected, "cross-attention", TOLERANCE)
    dense = TokenLayout.dense(2, Grid(3, 2, 2), text_length=1)
    q, k, v = torch.randn(2, 13, 3, 1, 8).unbind(2)
    got = attend(q, k, v, pattern=Temporal(), layout=dense, backend="triton")
    wide = [x.double() for x in (q, k, v)]
    near(got, attend(*wide, pattern=Temporal(), layout=dense, backend="reference"), "dense", TOLERANCE)


@pytest.mark.parametrize("items", [((4, 3), (6, 2)), ((2, 2, 3), (12, 6, 2))])
def test_strided_groups_and_groups_of_several_axes(items: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    places = Affine(1, (3, 2), (24, 1), *items)
    leaves = [torch.randn(73, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    results = []
    for inputs, backend in ((leaves, "triton"), (exact, "reference")):
        out = grouped_attention(*inputs, [Run(places, places)], scale=0.7, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for name, got, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        near(got, expected, name, TOLERANCE)


@pytest.mark.parametrize("case", ["runs of tokens", "every other frame kept"])
def test_lists_of_tokens_that_lie_at_equal_distances(case: str) -> None:
    torch.manual_seed(0)
    layout = TokenLayout.packed([Grid(4, 2, 3)])
    layout = layout if case == "runs of tokens" else layout.keep([*range(6), *range(12, 18)])
    pattern = Strided(2, run=3) if case == "runs of tokens" else Temporal()
    leaves = [torch.randn(*layout.shape, 1, 8, requires_grad=True) for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    results = []
    for inputs, backend in ((leaves, "triton"), (exact, "reference")):
        out = attend(*inputs, pattern=pattern, layout=layout, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for name, got, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        near(got, expected, name, TOLERANCE)


def test_no_tokens() -> None:
    empty = torch.randn(0, 2, 8, requires_grad=True)
    grouped_attention(empty, empty, empty, [], backend="triton").sum().backward()
    assert empty.grad.shape == empty.shape


def test_keys_of_several_groups_have_no_gradient_here() -> None:
    overlapping = Run(Affine(0, (3,), (2,), (2,), (1,)), Affine(0, (3,), (1,), (4,), (1,)))
    q = torch.randn(6, 2, 8)
    got = grouped_attention(q, q, q, [overlapping], backend="triton")
    near(got, grouped_attention(*[q.double()] * 3, [overlapping]), "overlapping keys", TOLERANCE)
    with pytest.raises(ValueError, match="a key stands in several groups"):
        grouped_attention(q.requires_grad_(), q, q, [overlapping], backend="triton")


def test_what_cannot_be_served_says_why() -> None:
    layout = TokenLayout.packed([Grid(3, 4, 4)])
    x = torch.randn(48, 2, 8)

    def refused(x: Tensor, match: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=match):
            attend(x, x, x, layout=more.pop("layout", layout), backend="triton", **more)

    refused(x.bfloat16(), "interpreter computes bfloat16 wrongly")
    refused(x.double(), "not torch.float64")
    refused(x, "takes no bias", bias=torch.zeros(48, 48))
    refused(torch.randn(48, 1, 136), "at most 128 features", pattern=Strided(2))
    refused(torch.randn(48, 1, 264), "at most 256 features")
    kept = TokenLayout.packed([Grid(3, 4, 4)]).keep(torch.tensor([0, 1, 5, 17, 33]))
    refused(x[:5], "lists of tokens.*backend='sdpa' or 'flex' serves it", layout=kept, pattern=Temporal())
    refused(x, "lists of tokens.*backend='sdpa' or 'flex' serves it", pattern=Strided(3, run=5))
    refused(x, "pairs inside groups are masked.*serves it", pattern=Temporal() | Spatial())
    assert "triton     yes" in explain(x, x, x, layout=layout, pattern=FrameCausal())


def runs_of(layout: TokenLayout) -> tuple[Run, ...]:
    return tuple(make_plan(Temporal(), layout.on("cpu").table.numpy().tobytes(), views=False).runs)


@pytest.mark.graph
def test_the_operators_are_sound() -> None:
    layout = TokenLayout.packed([Grid(3, 1, 2)], [1])
    numbers = [number for pair in pairs(runs_of(layout)) for number in pair.numbers()]
    q, k = torch.randn(7, 2, 8, requires_grad=True), torch.randn(7, 1, 8, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tubelet.grouped_attention.default, (q, k, k, 0.3, numbers), test_utils=tests)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    layouts = [TokenLayout.packed([grid], [1], capacity=9).on("cpu") for grid in (Grid(3, 1, 2), Grid(2, 1, 2))]

    def run(qkv: Tensor, layout: Any) -> Tensor:
        return attend(*qkv.unbind(1), pattern=Temporal(), layout=layout, backend="triton") * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    qkv = torch.randn(9, 3, 1, 8, requires_grad=True)
    for layout in layouts:
        results = [(out := each(qkv, layout), *torch.autograd.grad(out.sum(), [qkv])) for each in (compiled, run)]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
