"""Drawn requests, most of them wrong: refused by ValueError, or right against float64; nothing else ever."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.attention import HeadSplit, Joint, RelativeBias, Temporal, Window, attend, explain
from tubelet.layout import Grid, TokenLayout

LAYOUTS = [
    None,
    TokenLayout.packed([Grid(1, 1, 2), None, Grid(2, 1, 1)], [1, 0, 0]),
    TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)], capacity=5),
    TokenLayout.padded([2, 0], 3),
    TokenLayout.padded([0, 0], 0),
    TokenLayout.dense(2, Grid(1, 1, 3)),
    TokenLayout.packed([None], [0]),
]
PATTERNS = [Joint(), Temporal(), Window((1, 1, 2)), HeadSplit((Joint(), Temporal()), (1, 1))]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WRONG = [torch.int64, torch.complex64, torch.bool, torch.float8_e5m2]
BACKENDS = ["auto", "auto", "sdpa", "reference", "chunked", "flash", "xformers", "natten", "nothing"]
LEADS = [(), (5,), (3,), (0,), (2, 3), (2, 0), (1, 5), (2, 2, 3)]


class Drawn(NamedTuple):
    """What is asked: shapes and dtypes of q, k and v, and the options."""

    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    layout: TokenLayout | None
    kv_layout: TokenLayout | None
    pattern: Any
    bias: Callable[[], Any]
    scale: float | None
    backend: str


@st.composite
def asked(draw: st.DrawFn) -> Drawn:
    """A request that is right but for one thing, or for none."""
    layout = draw(st.sampled_from(LAYOUTS))
    kv_layout = draw(st.sampled_from([None, None, *(x for x in LAYOUTS if samples(x) == samples(layout))]))
    lead = draw(st.sampled_from([(5,), (2, 3), (0,)])) if layout is None else layout.shape
    k_lead = lead if kv_layout is None else kv_layout.shape
    heads, kv_heads = draw(st.sampled_from([(2, 2), (2, 1)]))
    width = draw(st.sampled_from([4, 4, 1]))
    shapes = [(*lead, heads, width), (*k_lead, kv_heads, width), (*k_lead, kv_heads, draw(st.sampled_from([width, 3])))]
    dtypes = [draw(st.sampled_from(DTYPES))] * 3
    scale, backend = draw(st.sampled_from([None, 0.5])), draw(st.sampled_from(BACKENDS))
    table = (*draw(st.sampled_from([(), (2,), (1,)])), shapes[0][-3], shapes[1][-3])
    forms: list[Callable[[], Any]] = [
        lambda: None,
        lambda: torch.randn(table),
        lambda: RelativeBias(torch.randn(heads, 3, 1, 9)),
    ]
    bias = draw(st.sampled_from(forms))
    wrong = draw(st.sampled_from(["nothing", "nothing", "axis", "lead", "dtype", "layout", "bias", "scale"]))
    which = draw(st.integers(0, 2))
    if wrong == "axis":
        axis = draw(st.integers(-3, -1))
        shapes[which] = (
            *shapes[which][: len(shapes[which]) + axis],
            draw(st.integers(0, 5)),
            *shapes[which][axis:][1:],
        )
    if wrong == "lead":
        shapes[which] = (*draw(st.sampled_from(LEADS)), *shapes[which][-2:])
    if wrong == "dtype":
        dtypes[which] = draw(st.sampled_from(DTYPES + WRONG))
        dtypes = draw(st.sampled_from([dtypes, [dtypes[which]] * 3]))
    if wrong == "layout":
        layout, kv_layout = draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
    if wrong == "bias":
        sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5]), max_size=5))
        sides = (draw(st.integers(1, 3)), 1, 1, draw(st.sampled_from([1, 9])))
        bias = draw(st.sampled_from([lambda: torch.randn(sizes), lambda: RelativeBias(torch.randn(sides))]))
    if wrong == "scale":
        scale = draw(st.sampled_from([0.0, -1.0, math.nan, math.inf]))
    return Drawn(shapes, dtypes, layout, kv_layout, draw(st.sampled_from(PATTERNS)), bias, scale, backend)


def samples(layout: TokenLayout | None) -> int | None:
    return None if layout is None else len(layout.grids)


@pytest.mark.graph  # without the shape checker, as users run it
@settings(max_examples=400)
@given(drawn=asked())
def test_wrong_requests_are_refused_and_right_ones_are_right(drawn: Drawn) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape).to(dtype) for shape, dtype in zip(drawn.shapes, drawn.dtypes, strict=True))
    how = {
        "pattern": drawn.pattern,
        "layout": drawn.layout,
        "kv_layout": drawn.kv_layout,
        "scale": drawn.scale,
        "bias": drawn.bias(),
    }
    try:
        out = attend(q, k, v, backend=drawn.backend, **how)
    except ValueError:
        return
    assert out.shape == (*q.shape[:-1], v.shape[-1]) and out.dtype == q.dtype
    want = attend(*(x.double() for x in (q, k, v)), backend="reference", **how)
    assert want.isfinite().all()
    bound = 2e-6 if q.dtype in (torch.float32, torch.float64) else 2 * torch.finfo(q.dtype).eps
    assert (out.double() - want).norm() <= bound * max(1e-3, float(want.norm()))
    assert "yes" in explain(q, k, v, **how)


@pytest.mark.graph
@pytest.mark.parametrize("scale", [0.0, -0.5, math.nan, math.inf])
def test_a_scale_that_is_no_positive_number_is_named(scale: float) -> None:
    x = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        attend(x, x, x, scale=scale)


@pytest.mark.graph
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool])
def test_other_dtypes_are_named(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 2, 8).to(dtype)
    with pytest.raises(ValueError, match=rf"one of torch\.float16.*got {dtype}"):
        attend(x, x, x)


def test_no_heads_and_no_width_are_named() -> None:
    for shape in ((4, 0, 8), (4, 2, 0)):
        x = torch.zeros(shape)
        with pytest.raises(ValueError, match=r"at least one head and one number in each, got shape"):
            attend(x, x, x)


def test_an_index_of_another_device_is_named() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 4)])
    x, there = torch.zeros(4, 2, 8), torch.zeros(4, 2, 8, device="meta")
    with pytest.raises(ValueError, match="q is on cpu, but the index of layout is on meta"):
        attend(x, x, x, layout=layout.on("meta"))
    with pytest.raises(ValueError, match="q is on meta, but the index of kv_layout is on cpu"):
        attend(there, there, there, layout=layout, kv_layout=layout.on("cpu"))
    with pytest.raises(ValueError, match="q is on cpu, but bias is on meta"):
        attend(x, x, x, bias=torch.zeros(4, 4, device="meta"))


@pytest.mark.graph
def test_a_bias_that_is_neither_numbers_nor_a_value_is_named() -> None:
    x = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match="bias must be a tensor or have between"):
        attend(x, x, x, bias="alibi")
