"""Tiled attention, interpreted, against the definition in float64: segments, boxes, strides, mixtures, refusals."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import GRADIENT, HALF, TOLERANCE, near
from strides import place
from torch import Tensor

from tubelet import attend
from tubelet.attention import FrameCausal, Joint, Neighborhood, SlidingTile, Spatial, Temporal, Window
from tubelet.kernels import TileSizes, segment_tiles, tiled_attention, varlen_attention
from tubelet.layout import Grid, TokenLayout


class Segments(NamedTuple):
    """One drawn call: segments of queries and of keys, and what lies behind them."""

    lengths: list[tuple[int, int]]
    spare: tuple[int, int]
    heads: tuple[int, int]
    widths: tuple[int, int]
    memory: str
    scale: float | None
    seed: int


segments = st.builds(
    Segments,
    lengths=st.lists(st.sampled_from([(1, 1), (5, 17), (18, 3), (0, 2), (2, 0), (16, 16)]), min_size=1, max_size=3),
    spare=st.sampled_from([(0, 0), (3, 1)]),
    heads=st.sampled_from([(1, 1), (4, 2)]),
    widths=st.sampled_from([(8, 8), (72, 16), (80, 80), (96, 40)]),
    memory=st.sampled_from(["dense", "packed qkv", "heads first", "features apart"]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 99),
)


@given(segments)
def test_segments_equal_the_definition(case: Segments) -> None:
    compare_segments(case)


def compare_segments(case: Segments) -> None:
    torch.manual_seed(case.seed)
    cu_q, cu_k = (torch.tensor([0, *side]).cumsum(0) for side in zip(*case.lengths, strict=True))
    n, m = int(cu_q[-1]) + case.spare[0], int(cu_k[-1]) + case.spare[1]
    leaves = [place(n, case.heads[0], case.widths[0], case.memory)]
    leaves += [place(m, case.heads[1], width, case.memory) for width in case.widths]
    for leaf, cu in zip(leaves, (cu_q, cu_k, cu_k), strict=True):
        leaf[cu[-1] :] = torch.nan
    ours = [leaf.detach().requires_grad_() for leaf in leaves]
    exact = [leaf.double().detach().nan_to_num().requires_grad_() for leaf in leaves]
    got = varlen_attention(*ours, cu_q, cu_k, scale=case.scale, backend="triton")
    parts = []
    for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        q, k, v = exact[0][a:b], *(x[c:d].repeat_interleave(case.heads[0] // case.heads[1], 1) for x in exact[1:])
        scores = torch.einsum("mhd,nhd->hmn", q, k) * (case.scale or case.widths[0] ** -0.5)
        parts.append(torch.einsum("hmn,nhe->mhe", scores.softmax(-1), v))
    expected = torch.cat([*parts, torch.zeros_like(got[cu_q[-1] :], dtype=torch.float64)])
    near(got, expected, "output", TOLERANCE)
    grad = place(n, case.heads[0], case.widths[1], case.memory)
    grads = torch.autograd.grad(got, ours, grad)
    zeros = [torch.zeros_like(x) for x in exact]
    wanted = torch.autograd.grad(expected, exact, grad.double(), allow_unused=True) if expected.requires_grad else zeros
    for name, a, b, zero in zip("qkv", grads, wanted, zeros, strict=True):
        near(a, zero if b is None else b, f"gradient of {name}", GRADIENT)


def test_whole_steps_of_lines_by_descriptor(descriptors: list[Any]) -> None:
    """Segments of several tiles, shorter than one, and empty; NaN behind the last reaches none of them."""
    case = Segments([(20, 36), (18, 3), (0, 2), (16, 32)], (3, 1), (2, 1), (20, 8), "packed qkv", None, 0)
    compare_segments(case)
    assert len(descriptors) == 6
    assert None not in descriptors


def test_what_the_hardware_cannot_count_is_read_by_pointers(descriptors: list[Any]) -> None:
    compare_segments(Segments([(20, 36)], (0, 0), (1, 1), (6, 6), "packed qkv", None, 0))  # rows of 72 bytes
    assert descriptors
    assert set(descriptors) == {None}


class Case(NamedTuple):
    """One drawn pattern on a mixture."""

    pattern: Any
    grids: list[Grid]
    texts: list[int]
    spare: int
    heads: tuple[int, int]
    memory: str
    seed: int


cases = st.builds(
    Case,
    pattern=st.sampled_from(
        [
            Neighborhood((3, 3, 3)),
            Neighborhood((2, 3, 2), causal=(True, False, False)),
            SlidingTile((3, 2, 4), (1, 2, 2)),
            FrameCausal(2),
            FrameCausal(1, sink=2),
            Temporal(),
            Window((2, 2, 2), shift=(1, 0, 1)),
            Spatial(),
            Joint(),
        ]
    ),
    grids=st.lists(
        st.sampled_from([Grid(1, 1, 1), Grid(4, 3, 2), Grid(1, 4, 5), Grid(5, 1, 8)]), min_size=1, max_size=2
    ),
    texts=st.lists(st.sampled_from([0, 1, 3]), min_size=2, max_size=2),
    spare=st.sampled_from([0, 5]),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    memory=st.sampled_from(["dense", "packed qkv"]),
    seed=st.integers(0, 99),
)


@given(cases)
def test_patterns_on_mixtures_equal_the_definition(case: Case) -> None:
    torch.manual_seed(case.seed)
    texts = case.texts[: len(case.grids)]
    used = sum(grid.tokens for grid in case.grids) + sum(texts)
    n, (heads, kv_heads) = used + case.spare, case.heads
    layout = TokenLayout.packed(case.grids, texts, capacity=n)
    leaves = [place(n, each, 8, case.memory) for each in (heads, kv_heads, kv_heads)]
    for leaf in leaves:
        leaf[used:] = torch.nan
    ours = [leaf.detach().requires_grad_() for leaf in leaves]
    exact = [leaf.double().detach().nan_to_num().requires_grad_() for leaf in leaves]
    grad = torch.randn(n, heads, 8)
    results = []
    for inputs, backend in ((ours, "triton"), (exact, "reference")):
        out = attend(*inputs, pattern=case.pattern, layout=layout, backend=backend)
        results.append((out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))))
    for name, got, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        near(got, expected, name, TOLERANCE)
        assert torch.equal(got[used:], torch.zeros_like(got[used:]))


@pytest.mark.parametrize(
    ("pattern", "grid", "text"),
    [
        (Joint(), Grid(1, 1, 131), 0),
        (Neighborhood((3, 5, 3)), Grid(4, 6, 6), 1),
        (FrameCausal(1, 1), Grid(3, 4, 20), 2),
    ],
)
def test_half_precision_in_tiles_of_its_own_size(pattern: Any, grid: Grid, text: int) -> None:
    """Several tiles of lines, of boxes, and frames with sinks, in float16."""
    torch.manual_seed(0)
    layout = TokenLayout.packed([grid], [text])
    leaves = [x.requires_grad_() for x in torch.randn(3, *layout.shape, 1, 16).half()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    grad = torch.randn_like(exact[0]).half()
    results = []
    for inputs, backend in ((leaves, "triton"), (exact, "reference")):
        out = attend(*inputs, pattern=pattern, layout=layout, backend=backend)
        results.append((out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))))
    for name, got, expected in zip(("output", "q", "k", "v"), *results, strict=True):
        near(got, expected, name, HALF["output" if name == "output" else "gradient"])


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_scores_far_below_zero_stay_finite() -> None:
    """What overflows are rows of a tile that are not there, and are not written."""
    q = torch.full((20, 1, 8), 30.0, requires_grad=True)
    k = -q.detach().clone()
    k[3] *= 1.01
    out = varlen_attention(q, k, k, torch.tensor([0, 20]), backend="triton")
    torch.testing.assert_close(out, torch.full_like(out, -30.0), atol=0.1, rtol=0)
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


def test_what_cannot_be_served_says_why() -> None:
    x, cu = torch.randn(6, 2, 8), torch.tensor([0, 6])

    def refused(x: Tensor, match: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=match):
            varlen_attention(x, x, x, cu, backend="triton", **more)

    refused(x.bfloat16(), "interpreter computes bfloat16 wrongly")
    refused(x.double(), "float32, and a tensor is torch.float64")
    refused(torch.randn(6, 1, 264), "at most 256 features")
    refused(x, "scale is above 0, got -1", scale=-1.0)
    refused(x, "scale is above 0, got 0", scale=0.0)  # 0 times the -inf of a masked pair
    with pytest.raises(ValueError, match="as long as each other"):
        varlen_attention(x, x, x, cu, torch.tensor([0, 3, 6]))


@pytest.mark.graph
def test_the_operators_are_sound() -> None:
    cu = torch.tensor([0, 4, 7])
    tiles = segment_tiles(cu, cu, 7, 7, TileSizes(*[16] * 6))
    q, k = torch.randn(7, 2, 8, requires_grad=True), torch.randn(7, 1, 8, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    inputs = (q, k, k, *tiles[:5], 0.3, list(tiles.sizes))
    torch.library.opcheck(torch.ops.tubelet.tiled_attention.default, inputs, test_utils=tests)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    def run(qkv: Tensor, cu: Tensor) -> Tensor:
        return varlen_attention(*qkv.unbind(1), cu, backend="triton") * 2

    qkv = torch.randn(9, 3, 1, 8, requires_grad=True)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for cu in (torch.tensor([0, 4, 9]), torch.tensor([0, 1, 8])):
        results = [(out := each(qkv, cu), *torch.autograd.grad(out.sum(), [qkv])) for each in (compiled, run)]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)


def test_no_tokens() -> None:
    empty = torch.randn(0, 2, 8, requires_grad=True)
    tiles = segment_tiles(torch.zeros(1).long(), torch.zeros(1).long(), 0, 0, TileSizes(*[16] * 6))
    tiled_attention(empty, empty, empty, tiles, backend="triton").sum().backward()
    assert empty.grad.shape == empty.shape
