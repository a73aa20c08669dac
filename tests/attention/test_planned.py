"""Planned attention: values and gradients against the definition, its operator, and the path of other devices."""

from collections.abc import Callable

import drawn
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import (
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    Window,
    attend,
    planned,
    runs,
)
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.attention.planned import Tables, planned_attention
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest, Pattern

ALL = [
    Joint(),
    Spatial(),
    Temporal(),
    Window((2, 2, 2), (1, 0, 1)),
    Strided(2, run=2),
    Neighborhood((2, 3, 3)),
    Neighborhood((2, 3, 3), (True, False, False)),
    SlidingTile((2, 4, 2), (1, 2, 2)),
    FrameCausal(window=2, sink=1),
    FrameCausal() & Window((2, 2, 2)),
]
MIXED = TokenLayout.packed([Grid(4, 2, 3), Grid(4, 2, 3), Grid(1, 1, 1), Grid(3, 3, 2)], [2, 2, 0, 1], capacity=80)


def tensors(layout: TokenLayout, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*layout.shape, h, 4, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)]


def results(qkv: list[Tensor], cotangent: Tensor, **how: object) -> list[Tensor]:
    out = attend(*qkv, **how)
    return [out, *torch.autograd.grad(out, qkv, cotangent.to(out.dtype))]


def assert_near(got: list[Tensor], want: list[Tensor], bound: float) -> None:
    """Errors relative to the largest norm: a softmax over one key has no gradient but rounding."""
    scale = max(float(w.detach().norm()) for w in want)
    for g, w in zip(got, want, strict=True):
        assert float((g.detach().double() - w.detach().double()).norm()) <= bound * scale


@given(
    draw=drawn.patterns | drawn.splits(4), make=drawn.layouts(), kv_heads=st.sampled_from([1, 2, 4]), wide=st.booleans()
)
def test_every_pattern_on_every_layout_equals_the_definition(
    draw: drawn.Made, make: Callable[[], TokenLayout], kv_heads: int, wide: bool
) -> None:
    pattern, layout = draw(), make()
    dtype, bound = (torch.float64, 1e-11) if wide else (torch.float32, 1e-5)
    qkv = tensors(layout, 4, kv_heads, dtype)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    cotangent = torch.randn(*layout.shape, 4, 4, dtype=torch.float64)
    how = {"pattern": pattern, "layout": layout.on("cpu")}
    want = results(exact, cotangent, backend="reference", **how)
    assert_near(results(qkv, cotangent, backend="sdpa", **how), want, bound)


@given(draw=drawn.patterns, make=drawn.layouts())
def test_without_gradients_the_output_is_the_same(draw: drawn.Made, make: Callable[[], TokenLayout]) -> None:
    """Inference takes another kernel where nothing needs the log-sum-exp."""
    pattern, layout = draw(), make()
    qkv = tensors(layout, 2, 2)
    out = attend(*qkv, pattern=pattern, layout=layout, backend="sdpa")
    with torch.no_grad():
        assert_near([attend(*qkv, pattern=pattern, layout=layout, backend="sdpa")], [out], 1e-12)


@pytest.mark.parametrize("pattern", ALL, ids=str)
@pytest.mark.parametrize("block", [1 << 24, 1])
def test_the_path_of_other_devices_equals_the_kernels(
    monkeypatch: pytest.MonkeyPatch, pattern: Pattern, block: int
) -> None:
    """The definition in blocks, and PyTorch's attention with recomputed statistics, forced onto the CPU."""
    qkv, cotangent = tensors(MIXED, 4, 2), torch.randn(80, 4, 4, dtype=torch.float64)
    how = {"pattern": pattern, "layout": MIXED, "backend": "sdpa"}
    want = results(qkv, cotangent, **how)
    monkeypatch.setattr(runs, "fused", lambda q, v: False)
    monkeypatch.setattr(runs, "_BLOCK", block)
    assert_near(results(qkv, cotangent, **how), want, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_half_precisions_are_rounded_once(dtype: torch.dtype, pattern: Pattern) -> None:
    qkv, cotangent = tensors(MIXED, 4, 2, dtype), torch.randn(80, 4, 4).to(dtype)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    got = results(qkv, cotangent, pattern=pattern, layout=MIXED, backend="sdpa")
    want = results(exact, cotangent.double(), pattern=pattern, layout=MIXED, backend="reference")
    assert all(g.dtype == dtype for g in got)
    bound = torch.finfo(dtype).eps
    assert_near(got[:1], want[:1], bound)
    assert_near(got, want, 2 * bound)


def test_a_query_that_no_head_lets_see_is_zero() -> None:
    class Nothing:
        def attends(self, q, k, head):
            return (k.coords[..., 2] > q.coords[..., 2]) & (head < 1)

    layout = TokenLayout.packed([Grid(1, 1, 3), Grid(1, 1, 1)])
    qkv = tensors(layout, 2, 2)
    out = attend(*qkv, pattern=Nothing(), layout=layout, backend="sdpa")
    assert not out[2:].any() and not out[:, 1].any() and out[:2, 0].any()
    cotangent = torch.randn_like(out)
    want = results(qkv, cotangent, pattern=Nothing(), layout=layout, backend="reference")
    assert_near(results(qkv, cotangent, pattern=Nothing(), layout=layout, backend="sdpa"), want, 1e-12)


def arguments(pattern: Pattern, kept: bool = False) -> tuple[object, ...]:
    layout = MIXED.keep([*range(0, 40, 3), *range(40, 54)]) if kept else MIXED
    index = layout.on("cpu")
    return *tensors(layout, 4, 2), index.table, None, index.kept, None, pattern.spec, 0.5, "fused"


@pytest.mark.graph
@pytest.mark.parametrize("pattern", [Joint(), Temporal(), FrameCausal(window=2, sink=1)], ids=str)
@pytest.mark.parametrize("kept", [False, True])
def test_the_operator_is_well_registered(pattern: Pattern, kept: bool) -> None:
    result = torch.library.opcheck(planned._op, arguments(pattern, kept))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.graph
@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_the_operator_equals_the_eager_call(pattern: Pattern) -> None:
    q, k, v, table, *_ = arguments(pattern)
    eager = planned_attention(q, k, v, pattern, Tables(table), 0.5)
    out, _ = planned._op(q, k, v, table, None, None, None, pattern.spec, 0.5, "fused")
    cotangent = torch.randn_like(out)
    assert torch.equal(out, eager)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), cotangent) for x in (out, eager)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("pattern", [Joint(), Temporal(), Neighborhood((2, 3, 3))], ids=str)
def test_gradients_are_those_of_finite_differences(pattern: Pattern) -> None:
    layout = TokenLayout.packed([Grid(2, 2, 1), Grid(1, 1, 2)], [1, 0])
    tables = Tables(layout.on("cpu").table)
    assert torch.autograd.gradcheck(lambda *x: planned_attention(*x, pattern, tables, 0.7), tensors(layout, 2, 1))


@pytest.mark.graph
@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_one_graph_serves_the_layouts_of_a_capacity(pattern: Pattern) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def layer(q: Tensor, k: Tensor, v: Tensor, index: object) -> Tensor:
        return attend(q, k, v, pattern=pattern, layout=index, backend="sdpa")

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for grids in ([Grid(4, 2, 3), Grid(2, 2, 2)], [Grid(1, 1, 1)], [Grid(3, 3, 3), Grid(1, 4, 4), Grid(1, 2, 2)]):
        index = TokenLayout.packed(grids, [1] * len(grids), capacity=60).on("cpu")
        qkv = [torch.randn(60, 2, 4) for _ in range(3)]
        assert torch.equal(compiled(*qkv, index), layer(*qkv, index))
    assert len(graphs) == 1


def test_fake_and_meta_tensors_give_shapes_and_dtypes() -> None:
    table = MIXED.on("cpu").table
    meta = [torch.empty(80, h, 8, dtype=torch.bfloat16, device="meta") for h in (4, 2, 2)]
    out = planned_attention(*meta, Window((1, 2, 2)), Tables(table), 1.0)
    assert out.is_meta and out.shape == (80, 4, 8) and out.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, on first use
def test_forward_mode_is_refused_and_auto_serves_it() -> None:
    """A zero tangent would be a silent wrong answer."""
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 1)])
    x, tangent = torch.randn(2, 5, 1, 4, dtype=torch.float64)
    _, got = torch.func.jvp(lambda q: attend(q, x, x, layout=layout), (x,), (tangent,))
    step = 1e-6
    there, back = (attend(x + s * tangent, x, x, layout=layout) for s in (step, -step))
    assert torch.allclose(got, (there - back) / (2 * step), atol=1e-8)
    with pytest.raises(ValueError, match="no forward-mode derivative"):
        torch.func.jvp(lambda q: attend(q, x, x, layout=layout, backend="sdpa"), (x,), (tangent,))


def test_functional_gradients_work_and_second_ones_are_refused() -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 1)])
    x = torch.randn(5, 1, 4, dtype=torch.float64)
    got = torch.func.grad(lambda q: attend(q, x, x, layout=layout, backend="sdpa").sin().sum())(x)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(attend(leaf, x, x, layout=layout, backend="reference").sin().sum(), leaf)
    assert torch.allclose(got, want, atol=1e-12)
    out = attend(leaf, x, x, layout=layout, backend="sdpa").sin().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out, leaf, create_graph=True)


@pytest.mark.graph  # run-time checks read no vmapped tensor
@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, None), (None, 0, 2)])
@pytest.mark.parametrize(
    "pattern", [Joint(), Temporal(), Spatial() | Temporal(), FrameCausal(window=1, sink=1)], ids=str
)
def test_vmap_and_gradients_in_either_order(pattern: Pattern, axes: tuple[int | None, ...]) -> None:
    """Each element of a vmapped axis as by itself."""
    index = TokenLayout.packed([Grid(3, 1, 2), Grid(1, 1, 2)], [1, 0]).on("cpu")
    qkv = torch.randn(3, 9, 2, 4, dtype=torch.float64).unbind(0)
    many = [x if axis is None else torch.stack([x, -x, 2 * x], axis) for x, axis in zip(qkv, axes, strict=True)]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, pattern=pattern, layout=index, backend="sdpa").sin().sum()

    def alone(i: int) -> list[Tensor]:
        return [x if axis is None else x.select(axis, i) for x, axis in zip(many, axes, strict=True)]

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    want = [torch.stack(each) for each in zip(*(gradient(*alone(i)) for i in range(3)), strict=True)]
    inside = torch.func.vmap(gradient, in_dims=axes)(*many)
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(inside, want, strict=True))
    outside = torch.func.grad(lambda *x: torch.func.vmap(loss, in_dims=axes)(*x).sum(), argnums=(0, 1, 2))(*many)
    leaves = [x.clone().requires_grad_() for x in many]
    plain = torch.autograd.grad(torch.func.vmap(loss, in_dims=axes)(*leaves).sum(), leaves)
    for got in (outside, plain):
        for x, each, axis in zip(got, want, axes, strict=True):
            assert torch.allclose(
                x if axis is None else x.movedim(axis, 0), each.sum(0) if axis is None else each, atol=1e-13
            )


def test_vmap_of_a_pattern_without_a_spec_takes_the_definition() -> None:
    class Own(Temporal):
        def attends(self, q, k, head):
            return super().attends(q, k, head)

    layout, x = TokenLayout.packed([Grid(2, 1, 2)]), torch.randn(3, 4, 1, 4)
    got = torch.func.vmap(lambda x: attend(x, x, x, pattern=Own(), layout=layout))(x)
    assert torch.allclose(got, torch.stack([attend(y, y, y, pattern=Temporal(), layout=layout) for y in x]), atol=1e-6)
    with pytest.raises(ValueError, match="vmapped code holds a pattern by its spec"):
        torch.func.vmap(lambda x: attend(x, x, x, pattern=Own(), layout=layout, backend="sdpa"))(x)


def test_nested_gradients_take_the_definition() -> None:
    """A gradient of a gradient that looked constant would be a silent wrong answer."""
    layout = TokenLayout.packed([Grid(1, 1, 3)] * 2)
    q, k, v = torch.randn(3, 6, 1, 4, dtype=torch.float64)

    def twice(backend: str) -> Tensor:
        first = torch.func.grad(lambda x: attend(x, k, v, layout=layout, backend=backend).sum())
        return torch.func.grad(lambda x: first(x).square().sum())(q)

    assert twice("reference").norm() > 0.01 and torch.allclose(twice("auto"), twice("reference"))
    with pytest.raises(ValueError, match="no second derivative"):
        twice("sdpa")


def test_a_pattern_that_is_no_value_is_refused() -> None:
    class Mutable:
        __hash__ = None

        def attends(self, q, k, head):
            return q.sample == k.sample

    x = torch.randn(4, 1, 2)
    with pytest.raises(ValueError, match="hashable value"):
        attend(x, x, x, pattern=Mutable(), layout=TokenLayout.packed([Grid(1, 2, 2)]), backend="sdpa")
    assert attend(x, x, x, pattern=Mutable(), layout=TokenLayout.packed([Grid(1, 2, 2)])).shape == x.shape


@pytest.mark.graph
def test_compiled_code_traces_a_users_predicate() -> None:
    """Without a spec the graph cannot hold the pattern; ``auto`` takes the definition."""

    class Near:
        def attends(self, q, k, head):
            return (q.coords[..., 2] - k.coords[..., 2]).abs() <= 1

    pattern, q, index = Near(), torch.randn(6, 2, 4), TokenLayout.packed([Grid(1, 1, 6)]).on("cpu")
    layer = torch.compile(lambda x: attend(x, x, x, pattern=pattern, layout=index), fullgraph=True, backend="eager")
    assert torch.allclose(layer(q), attend(q, q, q, pattern=pattern, layout=index), atol=1e-6)


def test_rows_of_one_line_are_local_attention() -> None:
    """A line of tokens is a grid of one row; without a layout nothing says what a frame is, and nothing is guessed."""
    x, layout = torch.randn(2, 8, 1, 4, dtype=torch.float64), TokenLayout.dense(2, Grid(1, 1, 8))
    local = attend(x, x, x, pattern=Window((1, 1, 4)), layout=layout)
    halves = [attend(part, part, part) for part in x.split(4, dim=1)]
    assert torch.allclose(local, torch.cat(halves, 1), atol=1e-12)
    with pytest.raises(ValueError, match=r"pattern=FrameCausal.*layout=None"):
        attend(x, x, x, pattern=FrameCausal())


@pytest.mark.graph  # without type checks, as users run it
@pytest.mark.parametrize("pattern", ["spatial", Spatial, lambda q, k, head: True, None])
def test_what_is_no_pattern_is_named(pattern: object) -> None:
    x = torch.randn(4, 1, 2)
    with pytest.raises(ValueError, match=r"pattern must be a value with attends"):
        attend(x, x, x, pattern=pattern, layout=TokenLayout.packed([Grid(1, 2, 2)]))


def test_an_object_that_changes_is_planned_anew() -> None:
    """Only patterns that are values are remembered, alone and inside others."""

    class Near:
        reach = 0

        def attends(self, q, k, head):
            return (q.coords[..., 2] - k.coords[..., 2]).abs() <= self.reach

    near, layout = Near(), TokenLayout.packed([Grid(1, 1, 6)])
    qkv = tensors(layout, 1, 1)
    for pattern in (near, Spatial() & near):
        for near.reach in (0, 2, 1):
            got, want = (attend(*qkv, pattern=pattern, layout=layout, backend=b) for b in ("sdpa", "reference"))
            assert_near([got], [want], 1e-12)


class Rows(Spatial):
    def attends(self, q, k, head):
        return super().attends(q, k, head) & (q.coords[..., 1] == k.coords[..., 1])


def test_a_subclass_with_its_own_predicate_inherits_no_plan() -> None:
    layout = TokenLayout.packed([Grid(2, 3, 2), Grid(1, 2, 2)])
    qkv, cotangent = tensors(layout, 2, 2), torch.randn(16, 2, 4, dtype=torch.float64)
    how = {"pattern": Rows(), "layout": layout}
    assert Rows().spec == ""
    want = results(qkv, cotangent, backend="reference", **how)
    assert_near(results(qkv, cotangent, backend="sdpa", **how), want, 1e-12)


def test_patterns_join_from_either_side() -> None:
    class Near:
        def attends(self, q, k, head):
            return q.coords[..., 2] == k.coords[..., 2]

    near, layout = Near(), TokenLayout.packed([Grid(2, 1, 3)])
    x = torch.randn(6, 1, 4, dtype=torch.float64)
    for left, right in ((near | Spatial(), Spatial() | near), (near & Spatial(), Spatial() & near)):
        assert torch.equal(*(attend(x, x, x, pattern=p, layout=layout) for p in (left, right)))
    with pytest.raises(TypeError):
        Spatial() | 3


class Even:
    """A user's pattern that reads the sample's number."""

    def attends(self, q, k, head):
        return (q.sample % 2 == 0) | (q.coords[..., 0] == k.coords[..., 0])


class Far:
    """A user's pattern that reads the head's number."""

    def attends(self, q, k, head):
        return (q.coords[..., 2] - k.coords[..., 2]).abs() >= head * (q.coords[..., 2] != k.coords[..., 2])


@pytest.mark.parametrize("pattern", [Even(), Even() & Temporal(), HeadSplit((Joint(), Far()), (1, 3))])
def test_predicates_see_samples_and_heads_by_number(pattern: Pattern) -> None:
    layout = TokenLayout.packed([Grid(2, 2, 3)] * 3, [1, 0, 2])
    qkv, cotangent = tensors(layout, 4, 2), torch.randn(*layout.shape, 4, 4, dtype=torch.float64)
    how = {"pattern": pattern, "layout": layout}
    want = results(qkv, cotangent, backend="reference", **how)
    assert_near(results(qkv, cotangent, backend="sdpa", **how), want, 1e-12)
    index = layout.on("cpu")
    request = AttentionRequest(pattern, index, None, *[(*layout.shape, 4, 4)] * 2, torch.float64, "cpu", 0.5, None)
    whole = ReferenceBackend().run(*(x.repeat_interleave(4 // x.shape[1], 1) for x in qkv), request)
    assert_near(want[:1], [whole], 1e-12)


def test_columns_meet_across_widths() -> None:
    """Temporal attention from one grid to another is by row and column, not by a number that depends on the width."""
    layout, keys = TokenLayout.packed([Grid(1, 2, 4)]), TokenLayout.packed([Grid(1, 2, 8)])
    q, k, v = torch.randn(8, 1, 4), torch.randn(16, 1, 4), torch.randn(16, 1, 4)
    out = attend(q, k, v, pattern=Temporal(), layout=layout, kv_layout=keys)
    assert torch.allclose(out, v.view(2, 8, 1, 4)[:, :4].reshape(8, 1, 4))


def test_values_of_another_width_need_no_square_of_memory() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 4000)])
    q, k, v = torch.randn(4000, 1, 8), torch.randn(4000, 1, 8), torch.randn(4000, 1, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        attend(q, k, v, layout=layout, backend="sdpa")
    assert max(event.self_cpu_memory_usage for event in seen.key_averages()) <= 4 * (1 << 24) * 2


@pytest.mark.graph
@pytest.mark.parametrize("gives", [lambda q: True, lambda q: (q.coords[..., 0] >= 0).int()])
def test_what_a_predicate_gives(gives: Callable[..., object]) -> None:
    class Odd:
        def attends(self, q, k, head):
            return gives(q)

    x, layout = torch.randn(4, 1, 2), TokenLayout.packed([Grid(1, 2, 2)])
    if gives(layout.on("cpu").info()) is True:
        assert torch.allclose(attend(x, x, x, pattern=Odd(), layout=layout), attend(x, x, x), atol=1e-6)
    else:
        with pytest.raises(ValueError, match=r"booleans, got torch\.int32"):
            attend(x, x, x, pattern=Odd(), layout=layout, backend="sdpa")


def test_a_default_device_changes_no_plan() -> None:
    layout = TokenLayout.packed([Grid(2, 5, 5)])
    x = torch.randn(50, 1, 4)
    with torch.device("meta"):
        moved = attend(x, x, x, pattern=Neighborhood((1, 3, 3)), layout=layout)
    assert torch.equal(moved, attend(x, x, x, pattern=Neighborhood((1, 3, 3)), layout=layout))


@pytest.mark.graph
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wide_bias_is_not_rounded(dtype: torch.dtype) -> None:
    """Dense rows under a float32 bias: PyTorch's attention would take it in half precision."""
    q, k, v = (torch.randn(1, 64, 2, 8).to(dtype) for _ in range(3))
    bias = 150 - 0.37 * (torch.arange(64)[:, None] - torch.arange(64)).abs().float()
    wide = attend(*(x.double() for x in (q, k, v)), bias=bias.double(), backend="reference")
    assert_near([attend(q, k, v, bias=bias)], [wide], torch.finfo(dtype).eps)
    with pytest.raises(ValueError, match="would round a bias"):
        attend(q, k, v, bias=bias, backend="sdpa")


def test_rows_that_a_bias_closes_have_finite_gradients() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 3), Grid(1, 1, 2)])
    qkv = tensors(layout, 1, 1, torch.float32)
    bias = torch.zeros(5, 5).index_fill(0, torch.tensor([2]), -torch.inf).requires_grad_()
    out = attend(*qkv, layout=layout, bias=bias)
    assert not out[2].any()
    assert all(g.isfinite().all() for g in torch.autograd.grad((1e3 * out).square().sum(), [*qkv, bias]))


def test_a_split_inside_a_composition_must_have_all_heads() -> None:
    layout, x = TokenLayout.packed([Grid(1, 2, 2)]), torch.randn(4, 6, 2)
    with pytest.raises(ValueError, match="6 heads, but pattern splits 4"):
        attend(x, x, x, pattern=HeadSplit((Joint(), Spatial()), (2, 2)) & Joint(), layout=layout)
