"""Plans: the pairs of all runs are the pairs that the predicate allows, each once, and pieces keep them."""

from collections.abc import Callable

import drawn
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import (
    FrameCausal,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    Window,
    attend,
    plan,
)
from tubelet.attention.backends.reference import mask_of
from tubelet.attention.places import Affine
from tubelet.attention.plan import Plan, make_plan
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest, Pattern


def plan_of(pattern: Pattern, layout: TokenLayout, keys: TokenLayout | None = None, **how: object) -> Plan:
    index, kv = layout.on("cpu"), None if keys is None else keys.on("cpu")
    parts = (index.table, None if kv is None else kv.table, index.kept, None if kv is None else kv.kept)
    return make_plan(pattern, *(None if x is None else x.numpy().tobytes() for x in parts), **how)


def pairs_of(found: Plan, heads: int, n: int, m: int) -> Tensor:
    """How often each (head, query, key) stands in the plan."""
    count = torch.zeros(heads, n, m, dtype=torch.long)
    for run in found.runs:
        q, k = (side.index() if isinstance(side, Affine) else side.places for side in (run.q, run.k))
        for queries, keys in zip(q, k, strict=True):
            mask = torch.ones(1, len(queries), len(keys), dtype=torch.bool) if run.mask is None else run.mask
            count[:, queries[:, None], keys] += mask.long()
    return count


def allowed(pattern: Pattern, layout: TokenLayout, keys: TokenLayout | None, heads: int) -> Tensor:
    """The predicate's answer for every pair on the flattened axes."""
    kv = layout if keys is None else keys
    index, kv_index = layout.on("cpu"), None if keys is None else keys.on("cpu")
    n, m = index.sample.numel(), kv.on("cpu").sample.numel()
    shapes = ((*layout.shape, heads, 4), (*kv.shape, heads, 4))
    mask = mask_of(AttentionRequest(pattern, index, kv_index, *shapes, torch.float32, "cpu", 1.0, None))
    if mask.ndim == 3:
        return mask
    full = torch.zeros(heads, n, m, dtype=torch.bool)
    for i, row in enumerate(mask):
        full[:, i * row.shape[1] : (i + 1) * row.shape[1], i * row.shape[2] : (i + 1) * row.shape[2]] = row
    return full


@given(draw=drawn.patterns, make=drawn.layouts(), limit=st.sampled_from([1, 7, 1 << 30]), views=st.booleans())
def test_a_plan_holds_every_allowed_pair_once(
    draw: drawn.Made, make: Callable[[], TokenLayout], limit: int, views: bool
) -> None:
    pattern, layout = draw(), make()
    want = allowed(pattern, layout, None, 2)
    found = plan_of(pattern, layout, heads=2, limit=limit, views=views)
    assert torch.equal(pairs_of(found, 2, *want.shape[1:]), want.long())
    first = torch.cat([torch.zeros(0).long(), *(_queries(run) for run in found.runs if not run.merge)])
    assert first.unique().numel() == first.numel() == found.queries
    assert set(want.any(0).any(1).nonzero().flatten().tolist()) <= set(first.tolist())


def _queries(run: object) -> Tensor:
    return (run.q.index() if isinstance(run.q, Affine) else run.q.places).flatten()


@given(draw=drawn.patterns, make=drawn.layouts(), lengths=st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_cross_attention_to_text(draw: drawn.Made, make: Callable[[], TokenLayout], lengths: list[int]) -> None:
    pattern, layout = draw(), make()
    keys = TokenLayout.packed([None] * len(layout.grids), lengths[: len(layout.grids)])
    want = allowed(pattern, layout, keys, 1)
    assert torch.equal(pairs_of(plan_of(pattern, layout, keys), 1, *want.shape[1:]), want.long())


@given(draw=drawn.patterns, make=drawn.layouts(), sides=st.tuples(drawn.small, drawn.small, drawn.small))
def test_cross_attention_to_other_grids(draw: drawn.Made, make: Callable[[], TokenLayout], sides: tuple) -> None:
    pattern, layout = draw(), make()
    keys = TokenLayout.packed([Grid(*sides)] * len(layout.grids))
    want = allowed(pattern, layout, keys, 1)
    assert torch.equal(pairs_of(plan_of(pattern, layout, keys), 1, *want.shape[1:]), want.long())


@pytest.mark.parametrize("text", [0, 2])
@pytest.mark.parametrize(
    "pattern",
    [
        Window((2, 3, 3), (1, 1, 2)),
        Neighborhood((3, 3, 5)),
        Neighborhood((3, 3, 5), (True, False, False)),
        SlidingTile((3, 4, 6), (1, 2, 2)),
        FrameCausal(window=2, sink=1),
        Strided(3, run=2),
    ],
    ids=str,
)
def test_longer_axes(pattern: Pattern, text: int) -> None:
    """Borders on both sides, and an inside between them, on every axis; samples apart from their like."""
    grids = [Grid(6, 1, 8), Grid(1, 7, 8), Grid(1, 1, 1), Grid(6, 7, 1), Grid(6, 7, 1)]
    layout = TokenLayout.packed(grids, [text, 0, 1, text, text])
    want = allowed(pattern, layout, None, 1)
    assert torch.equal(pairs_of(plan_of(pattern, layout), 1, *want.shape[1:]), want.long())


@pytest.mark.parametrize(
    ("pattern", "make"),
    [
        (Spatial(), lambda: TokenLayout.padded([3, 0, 3, 3], 3)),  # equal samples around an empty one
        (
            Window((2, 9, 9)),
            lambda: TokenLayout.packed([Grid(3, 2, 2)], [2]),
        ),  # stretches inside the grid
        (Window((1, 2, 2), (0, 1, 1)), lambda: TokenLayout.packed([Grid(1, 5, 5)]).keep([0, 4, 6, 9, 14, 20, 21, 24])),
    ],
)
def test_what_once_went_unseen(pattern: Pattern, make: Callable[[], TokenLayout]) -> None:
    layout = make()
    want = allowed(pattern, layout, None, 1)
    assert torch.equal(pairs_of(plan_of(pattern, layout), 1, *want.shape[1:]), want.long())


def test_segments_at_unequal_distances_are_not_one_run() -> None:
    layout = TokenLayout.packed([None] * 4, [2, 2, 0, 2])
    keys = TokenLayout.packed([None] * 4, [3, 3, 5, 3])
    for queries, other in ((layout, keys), (keys, layout)):
        want = allowed(Joint(), queries, other, 1)
        assert torch.equal(pairs_of(plan_of(Joint(), queries, other), 1, *want.shape[1:]), want.long())


class HeadOdd:
    """A user's pattern that reads the head and leaves some queries without keys."""

    def attends(self, q, k, head):
        return (q.coords[..., 2] + head) % 2 > k.coords[..., 2] % 2


@given(make=drawn.layouts())
def test_a_users_predicate_may_read_the_head_and_leave_rows_empty(make: Callable[[], TokenLayout]) -> None:
    layout = make()
    want = allowed(HeadOdd(), layout, None, 2)
    assert torch.equal(pairs_of(plan_of(HeadOdd(), layout, heads=2), 2, *want.shape[1:]), want.long())


@pytest.mark.parametrize(
    ("pattern", "grid", "text", "runs"),
    [
        (Joint(), Grid(4, 3, 5), 2, 1),
        (Spatial(), Grid(4, 3, 5), 0, 1),
        (Temporal(), Grid(4, 3, 5), 0, 1),
        (Temporal(), Grid(4, 3, 5), 2, 3),  # the text's own, the columns, and every token with the text
        (Window((2, 2, 5)), Grid(4, 4, 5), 0, 1),
        (Window((2, 2, 2)), Grid(4, 4, 5), 0, 2),  # and the ragged column
        (FrameCausal(), Grid(4, 3, 5), 2, 5),  # the text precedes the frames: one stretch of keys
        (FrameCausal(window=2), Grid(9, 3, 5), 0, 2),  # the first frame, and all others at once
        (FrameCausal(window=2, sink=1), Grid(9, 3, 5), 0, 5),  # three whole prefixes, windows, sinks
        (Neighborhood((1, 3, 3)), Grid(4, 64, 64), 0, 9),  # corners, edges, and the inside at once
    ],
)
def test_equal_groups_are_few_runs(pattern: Pattern, grid: Grid, text: int, runs: int) -> None:
    found = plan_of(pattern, TokenLayout.dense(3, grid, text), views=False)
    assert len(found.runs) == runs
    assert all(isinstance(run.q, Affine) and isinstance(run.k, Affine) for run in found.runs)


def test_long_layouts_are_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that would fill the memory are not kept; results and gradients are the same."""
    layout, pattern = TokenLayout.packed([Grid(3, 9, 7), Grid(1, 2, 2)], [2, 0]), Spatial() | Temporal()
    q, k, v = (torch.randn(*layout.shape, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    results = []
    for most in (1 << 25, 0):
        monkeypatch.setattr(plan, "_REMEMBERED", most)
        plan.PLANS.clear()
        assert isinstance(plan_of(pattern, layout).runs, tuple) is bool(most)
        out = attend(q, k, v, pattern=pattern, layout=layout, backend="sdpa")
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    plan.PLANS.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_long_sliding_windows_are_planned_at_once() -> None:
    """Tiles that are alike share one mask, however many there are."""
    spans = Neighborhood((1, 1, 1000)).axes(Grid(1, 1, 65_536))[2]
    masks = {id(span.mask): span.mask for span in spans if span.mask is not None}
    assert len(spans) == 1024
    assert len(masks) <= 4


@pytest.mark.parametrize("pattern", [Spatial() | Temporal(), Window((1, 2, 2)) & FrameCausal()], ids=str)
@pytest.mark.parametrize("keys", [False, True])
def test_equal_samples_are_asked_about_once(pattern: Pattern, keys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = [Grid(2, 2, 3), Grid(1, 1, 2), Grid(2, 2, 3), Grid(2, 2, 3)]
    layout, cross = TokenLayout.packed(grids, [2, 0, 2, 1]), TokenLayout.packed(grids, [0, 3, 0, 2]) if keys else None
    asked, attends = [], type(pattern).attends
    monkeypatch.setattr(type(pattern), "attends", lambda self, q, k, head: asked.append(q) or attends(self, q, k, head))
    plan.PLANS.clear()
    found = plan_of(pattern, layout, cross)
    assert len(asked) == 3
    monkeypatch.undo()
    want = allowed(pattern, layout, cross, 1)
    assert torch.equal(pairs_of(found, 1, *want.shape[1:]), want.long())


class OddSamples(Temporal):
    """Reads the number of the sample, and offers nothing."""

    def attends(self, q, k, head):
        return super().attends(q, k, head) & ((q.sample % 2 == 1) | (q.coords == k.coords).all(-1))


def test_samples_that_a_predicate_tells_apart_are_asked_about_each() -> None:
    layout = TokenLayout.packed([Grid(2, 1, 2)] * 3)
    for pattern in (OddSamples(), OddSamples() | Spatial()):
        want = allowed(pattern, layout, None, 1)
        assert torch.equal(pairs_of(plan_of(pattern, layout), 1, *want.shape[1:]), want.long())


def test_remembered_plans_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan.PLANS.clear()
    layouts = [TokenLayout.packed([Grid(2, 4, side)]) for side in range(3, 9)]
    plans = [plan_of(Spatial() | Temporal(), layout) for layout in layouts]
    for found in plans:
        held = sum(x.nbytes for run in found.runs for x in (run.mask, run.k.places) if x is not None)
        assert held < found.nbytes <= held + 2048 * len(found.runs)
    assert plan.PLANS.nbytes == sum(found.nbytes for found in plans)
    monkeypatch.setattr(plan.PLANS, "limit", plans[-1].nbytes + plans[-2].nbytes)
    assert plan_of(Spatial(), layouts[0]).nbytes <= plan.PLANS.nbytes <= plan.PLANS.limit
    assert plan_of(Spatial() | Temporal(), layouts[-1]) is plans[-1]
    assert plan_of(Spatial() | Temporal(), layouts[0]) is not plans[0]
    monkeypatch.setattr(plan.PLANS, "limit", 10)
    assert plan_of(Joint(), layouts[0]) is not plan_of(Joint(), layouts[0])
    assert plan.PLANS.nbytes == 0


def test_plans_are_remembered() -> None:
    layout = TokenLayout.packed([Grid(2, 3, 4), Grid(1, 2, 2)])
    assert plan_of(Window((1, 2, 2)), layout) is plan_of(Window((1, 2, 2)), layout)
    assert plan_of(Window((1, 2, 2)), layout) is not plan_of(Window((2, 2, 2)), layout)
