"""The tables of tiled attention against the predicates of patterns: pairs, boxes that are walked, and whole ones."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import FrameCausal, Joint, Neighborhood, SlidingTile, Spatial, Strided, Temporal, Window, attend
from tubelet.attention.boxes import axes_of, spanned, tiles_of
from tubelet.attention.patterns.spans import Span
from tubelet.attention.plan import table_of
from tubelet.kernels import Tiles, TileSizes
from tubelet.kernels._tiled.reference import pairs
from tubelet.kernels._tiled.table import FIELDS
from tubelet.layout import Grid, TokenLayout

NAMES = st.sampled_from(["neighborhood", "tiles", "causal", "window", "time", "space", "joint"])
TRIPLES = st.tuples(*[st.integers(1, 4)] * 3)


def made(name: str, size: tuple[int, int, int], more: tuple[int, int, int]) -> Any:
    """A pattern of a kind from drawn numbers."""
    if name == "tiles":
        return SlidingTile(tuple(a * b for a, b in zip(size, more, strict=True)), size)
    if name == "causal":
        return FrameCausal(size[0] if size[1] > 1 else None, more[0] - 1)
    kinds = {
        "neighborhood": Neighborhood(size, tuple(n > 2 for n in more)),
        "window": Window(size, tuple(n - 1 for n in more)),
        "time": Temporal(),
        "space": Spatial(),
        "joint": Joint(),
    }
    return kinds[name]


SIZES = st.sampled_from([TileSizes(8, 4, 4, 8, 4, 4), TileSizes(*[16] * 6), TileSizes(2, 2, 1, 1, 2, 4)])


def allowed(pattern: Any, layout: TokenLayout) -> Tensor:
    """Every pair that the definition lets attend."""
    n = layout.shape[0]
    zeros, values = torch.zeros(n, 1, 2, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[:, None]
    return attend(zeros, zeros, values, pattern=pattern, layout=layout, backend="reference")[:, 0] > 0


def walked(tiles: Tiles, table: Tensor, size: int, n: int) -> tuple[Tensor, Tensor]:
    """By own token and other token: how often it is walked, and whether as one of those that need no question."""
    count, whole = torch.zeros(n, n, dtype=torch.long), torch.zeros(n, n, dtype=torch.bool)
    for row in table.tolist():
        tile = dict(zip(FIELDS, row, strict=True))
        pitch = torch.tensor([tile["pitch_t"], tile["pitch_h"], 1])
        own = (
            tile["start"] + torch.cartesian_prod(*(torch.arange(tile[f"here_{a}"]) for a in "thw")).view(-1, 3) @ pitch
        )
        for line, length in ((tile["line"], tile["length"]), (tile["more"], tile["more_length"])):
            count[own[:, None], torch.arange(line, line + length)] += 1
            whole[own[:, None], torch.arange(line, line + length)] = True
        for step in range(tile["boxes"], tile["boxes"] + tile["count"]):
            assert tiles.boxes is not None
            first, *at = tiles.boxes[step].tolist()
            sides = [min(tile[f"box_{a}"], tile[f"length_{a}"] - at[i]) for i, a in enumerate("thw")]
            other = tile["grid"] + first // 2 + torch.cartesian_prod(*map(torch.arange, sides)).view(-1, 3) @ pitch
            assert not first % 2 or len(other) == size
            count[own[:, None], other] += 1
            whole[own[:, None], other] |= bool(first % 2)
    return count, whole


@settings(deadline=None, max_examples=25)
@given(
    name=NAMES,
    size=TRIPLES,
    more=TRIPLES,
    grids=st.lists(st.builds(Grid, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    texts=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    spare=st.integers(0, 3),
    sizes=SIZES,
)
def test_tables_name_the_pairs_of_the_predicate(
    name: str,
    size: tuple[int, int, int],
    more: tuple[int, int, int],
    grids: list[Grid],
    texts: list[int],
    spare: int,
    sizes: TileSizes,
) -> None:
    pattern = made(name, size, more)
    texts = texts[: len(grids)]
    n = sum(grid.tokens for grid in grids) + sum(texts) + spare
    layout = TokenLayout.packed(grids, texts, capacity=n)
    assert all(spanned(pattern, grid) for grid in grids)
    samples = table_of(layout.on("cpu").table.numpy().tobytes())
    tiles = tiles_of(None if isinstance(pattern, Joint) else pattern, samples, None, (n, n), [sizes, sizes])
    expected = allowed(pattern, layout)
    for table in (tiles.queries, tiles.back_queries):
        assert torch.equal(pairs(tiles._replace(queries=table), n, n), expected)
    for table, seen, (_, size) in zip(tiles[:3], (expected, expected, expected.T), sizes.pairs, strict=True):
        count, whole = walked(tiles, table, size, n)
        assert (count <= 1).all()
        assert (count[seen] == 1).all()
        assert seen[whole].all()
        here = FIELDS.index("here_t")
        assert int(table[:, here : here + 3].prod(1).sum()) == n  # each token in one tile


def test_what_is_no_span_is_said() -> None:
    assert not hasattr(Strided(2), "axes")
    back = [Span(0, 1, 1, 1), Span(1, 1, 0, 1)]
    holes = [Span(0, 1, 0, 3, ((True, False, True),)), Span(1, 2, 0, 3)]
    for side in (back, holes):
        n = sum(span.nq for span in side)
        assert axes_of(([Span(0, 1, 0, 1)], [Span(0, 1, 0, 1)], side), Grid(1, 1, n)) is None


def test_interior_boxes_of_a_large_grid_need_no_question_and_waste_is_bounded() -> None:
    """HunyuanVideo's 30 x 48 x 80 tokens in windows of 18 x 24 x 24: walked pairs stay near the pairs that count."""
    grid, window = Grid(30, 48, 80), (18, 24, 24)
    samples = table_of(TokenLayout.packed([grid]).on("cpu").table.numpy().tobytes())
    sizes = TileSizes(128, 32, 64, 32, 64, 32)
    tiles = tiles_of(Neighborhood(window), samples, None, (grid.tokens,) * 2, [sizes, sizes])
    assert tiles.boxes is not None
    steps = int(tiles.queries[:, FIELDS.index("count")].sum())
    pairs_walked, exact = steps * 128 * 32, grid.tokens * 18 * 24 * 24
    assert exact <= pairs_walked <= 1.6 * exact
    assert (tiles.boxes[:steps, 0] % 2).float().mean() > 0.35


@pytest.mark.parametrize("pattern", [FrameCausal(2, 1), Spatial()])
def test_long_frames_are_lines(pattern: Any) -> None:
    samples = table_of(TokenLayout.packed([Grid(6, 5, 8)], [3]).on("cpu").table.numpy().tobytes())
    tiles = tiles_of(pattern, samples, None, (243, 243), [TileSizes(*[16] * 6)] * 2)
    assert tiles.boxes is None
