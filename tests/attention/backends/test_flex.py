"""FlexAttention on the CPU: the translation of every request, by numbers against float64; its masks and refusals."""

import gc
from collections.abc import Callable

import drawn
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import HeadSplit, Joint, Neighborhood, RelativeBias, Spatial, Temporal, Window, attend, explain
from tubelet.attention.backends import flex
from tubelet.layout import Grid, TokenInfo, TokenLayout
from tubelet.protocols import AttentionRequest

MIXED = TokenLayout.packed([Grid(4, 2, 3), Grid(4, 2, 3), Grid(1, 1, 1), Grid(3, 3, 2)], [2, 2, 0, 1], capacity=80)


class EarlierHeads:
    """A user's own predicate that reads the head."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return k.coords[..., 0] + head >= q.coords[..., 0]


@pytest.mark.graph
@settings(max_examples=8)
@given(draw=drawn.patterns, make=drawn.layouts(), kv_heads=st.sampled_from([1, 4]))
def test_every_pattern_on_every_layout_equals_the_definition(
    draw: drawn.Made, make: Callable[[], TokenLayout], kv_heads: int
) -> None:
    pattern, layout = draw(), make()
    q, k, v = (torch.randn(*layout.shape, h, 8, dtype=torch.float64) for h in (4, kv_heads, kv_heads))
    if not q.numel():
        return
    how = {"pattern": pattern, "layout": layout.on("cpu"), "scale": 0.7}
    got, want = (attend(q, k, v, backend=name, **how) for name in ("flex", "reference"))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.graph
@pytest.mark.parametrize("pattern", [EarlierHeads(), HeadSplit((Spatial(), Window((1, 2, 2))), (2, 2))])
@pytest.mark.parametrize("layout", [MIXED, TokenLayout.dense(2, Grid(2, 2, 3), 1)])
def test_heads_may_differ(pattern: object, layout: TokenLayout) -> None:
    q, k, v = torch.randn(3, *layout.shape, 4, 8, dtype=torch.float64)
    got, want = (attend(q, k, v, pattern=pattern, layout=layout, backend=name) for name in ("flex", "reference"))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.graph
def test_a_block_may_be_empty_for_one_head_alone() -> None:
    layout, (q, k, v) = TokenLayout.packed([Grid(4, 8, 8)]), torch.randn(3, 256, 2, 8, dtype=torch.float64)
    got, want = (attend(q, k, v, pattern=EarlierHeads(), layout=layout, backend=name) for name in ("flex", "reference"))
    assert torch.allclose(got, want, atol=1e-12)
    shape = (256, 2, 8)
    for pattern, heads in ((EarlierHeads(), 2), (Temporal(), 1)):
        request = AttentionRequest(pattern, layout.on("cpu"), None, shape, shape, torch.float32, "cpu", 1.0, None)
        mask = flex._made(request)  # the CPU asks the predicate alone; CUDA's kernel skips by these counts
        counts = mask.kv_num_blocks + mask.full_kv_num_blocks
        assert counts.shape[1] == heads
        if heads == 2:
            assert counts[0, :, 1].tolist() == [1, 2]


@pytest.mark.graph
def test_cross_attention_in_any_form_and_queries_without_keys() -> None:
    forms = [TokenLayout.packed([None] * 3, [3, 0, 2], capacity=7), TokenLayout.padded([3, 0, 2], 4)]
    for layout in (
        TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 3), None], [0, 0, 2]),
        TokenLayout.padded([4, 3, 2], 5),
    ):
        for context in forms:
            q = torch.randn(*layout.shape, 2, 8, dtype=torch.float64)
            k, v = torch.randn(2, *context.shape, 2, 8, dtype=torch.float64)
            got, want = (
                attend(q, k, v, layout=layout, kv_layout=context, backend=name) for name in ("flex", "reference")
            )
            assert torch.allclose(got, want, atol=1e-12)
            assert not got[layout.on("cpu").sample == 1].any()


@pytest.mark.graph
@pytest.mark.parametrize("form", ["value", "table"])
def test_bias_in_every_form(form: str) -> None:
    context = TokenLayout.packed([None, None], [3, 1])
    table = torch.randn(2, 7, 5, 5, dtype=torch.float64)
    q, k, v = torch.randn(3, 80, 2, 8, dtype=torch.float64)
    cases = [((q, k, v), {"layout": MIXED}, (2, 80, 80)), ((q, k, v), {}, (80,))]
    rows = torch.randn(3, 2, 4, 2, 8, dtype=torch.float64)
    cases += [(tuple(rows), {"layout": TokenLayout.dense(2, Grid(1, 2, 2))}, (2, 1, 4, 4))]
    cases += [((rows[0], *torch.randn(2, 4, 2, 8).double()), {"kv_layout": context}, (2, 2, 4, 4))]
    for qkv, how, shape in cases:
        wide = torch.randn(2, 1, 1, 159, dtype=torch.float64)
        value = RelativeBias(wide if "layout" not in how else table)
        bias = value if form == "value" else torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():  # a value may hold parameters
            got, want = (attend(*qkv, bias=bias, backend=name, **how) for name in ("flex", "reference"))
        assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.graph
def test_what_stands_in_padding_reaches_nothing() -> None:
    valid = MIXED.on("cpu").valid[:, None, None]
    q, k, v = torch.randn(3, 80, 2, 8, dtype=torch.float64)
    dirty = (x.masked_fill(~valid, torch.nan) for x in (q, k, v))
    out = attend(*dirty, layout=MIXED, backend="flex")
    assert torch.equal(out, attend(q, k, v, layout=MIXED, backend="flex")) and not out[~valid[:, 0, 0]].any()


@pytest.mark.graph
def test_masks_are_remembered_and_die_with_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = flex._made
    monkeypatch.setattr(flex, "_made", lambda request: made.append(request.pattern) or original(request))
    index, q = MIXED.on("cpu"), torch.randn(80, 2, 8)
    for pattern in (Temporal(), Spatial(), Temporal()):
        attend(q, q, q, pattern=pattern, layout=index, backend="flex")
    assert made == [Temporal(), Spatial()] and index in flex._MASKS
    made.clear()
    held = len(flex._MASKS)
    del index
    gc.collect()
    assert len(flex._MASKS) < held


@pytest.mark.graph
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
def test_one_graph_serves_the_layouts_of_a_capacity() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    pattern = Neighborhood((2, 3, 3))

    def layer(q: Tensor, k: Tensor, v: Tensor, index: object) -> Tensor:
        return attend(q, k, v, pattern=pattern, layout=index, backend="flex")

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for grids in ([Grid(4, 2, 3), Grid(2, 2, 2)], [Grid(1, 1, 1)], [Grid(3, 3, 3), Grid(1, 4, 4)]):
        index = TokenLayout.packed(grids, [1] * len(grids), capacity=60).on("cpu")
        q, k, v = torch.randn(3, 60, 2, 8)
        assert torch.allclose(compiled(q, k, v, index), layer(q, k, v, index), atol=1e-6)
    assert len(graphs) == 1


def test_its_refusals_and_that_auto_leaves_it_on_the_cpu() -> None:
    x = torch.randn(4, 2, 8, requires_grad=True)
    with pytest.raises(ValueError, match="no backward on the CPU"):
        attend(x, x, x, backend="flex")
    with torch.no_grad():
        lines = explain(x, x, x, pattern=Joint()).splitlines()
    assert lines.index("flex       yes") > lines.index("reference  yes")
    empty = torch.randn(0, 2, 8)
    with pytest.raises(ValueError, match="at least one query and one key"):
        attend(empty, empty, empty, backend="flex")


@pytest.mark.gpu
@pytest.mark.graph
@pytest.mark.parametrize("pattern", [Joint(), Temporal(), Neighborhood((2, 3, 3))], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_the_compiled_kernels(pattern: object, biased: bool) -> None:
    index = MIXED.on("cuda")
    qkv = [torch.randn(80, h, 32, device="cuda", requires_grad=True) for h in (4, 2, 2)]
    table = torch.randn(4, 7, 5, 5, device="cuda", requires_grad=True)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    how = {"pattern": pattern, "layout": index, "bias": RelativeBias(table) if biased else None}
    out, want = attend(*qkv, backend="flex", **how), attend(*exact, backend="reference", **how)
    cotangent = torch.randn_like(out)
    leaves = [*qkv, table] if biased else qkv
    wide = [*exact, table] if biased else exact
    grads = zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(want, wide, cotangent.double()), strict=True
    )
    for g, w in ((out, want), *grads):
        assert (g.double() - w).norm() <= 1e-2 * w.norm()
