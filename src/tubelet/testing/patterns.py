"""The check of attention patterns: the predicate itself, and whatever a pattern offers beside it for speed.

Pairs are (head, query, key) of one sample; messages name a token by its kind and coordinates.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.backends.reference import mask_of
from tubelet.attention.patterns import from_spec
from tubelet.attention.places import Affine, Listed
from tubelet.attention.plan import Plan, make_plan
from tubelet.layout import Grid, Kind, LayoutIndex, TokenLayout
from tubelet.protocols import AttentionRequest, Pattern
from tubelet.testing.mixtures import alone, mixtures, pieces

__all__ = ["check_pattern"]


def check_pattern(pattern: Pattern, heads: int = 2) -> None:
    """Check an attention pattern.

    It gives booleans that broadcast; every grid token attends itself (no row of a softmax is empty); what a sample's
    tokens attend does not depend on its place in a pack; equal patterns are equal values. Where the pattern offers
    them, ``group`` and ``axes`` (with ``more_axes``) name exactly the pairs of grid tokens that the predicate allows,
    ``text_sees_grid`` is what text does, every query attends the text, and ``spec`` gives an equal pattern back.

    Args:
        pattern: yours.
        heads: how many heads to ask about; those of a split.

    Raises:
        AssertionError: what is violated, on which layout, and for which pair.

    Example:
        >>> from tubelet.attention import Window
        >>> check_pattern(Window((2, 2, 2), shift=(1, 0, 1)))
    """
    assert hash(pattern) == hash(pattern) and pattern == pattern, f"{pattern} is not a hashable value"
    _check_spec(pattern)
    for name, layout in {**mixtures(), **_larger()}.items():
        mask = _mask(pattern, layout, heads)
        assert mask.dtype == torch.bool, f"{name}: the predicate gives {mask.dtype}, not torch.bool"
        for i, where in pieces(layout):
            one, row = alone(layout, i), mask[:, i] if layout.batched else mask
            if layout.batched:
                where = slice(0, layout.lengths[i])
            _check_sample(f"layout {name!r}, sample {i}", pattern, one, row[:, where, where], heads)


def _larger() -> dict[str, TokenLayout]:
    """Grids that windows and strides cut into several unequal parts."""
    packed = TokenLayout.packed([Grid(4, 3, 5), Grid(1, 5, 2), Grid(2, 1, 7)], [2, 0, 3])
    return {"larger": packed, "larger, dropped": packed.keep(range(0, packed.width, 2))}


def _check_sample(name: str, pattern: Pattern, one: TokenLayout, packed: Tensor, heads: int) -> None:
    index = one.on("cpu")
    mask = _mask(pattern, one, heads)
    grid = index.kind == Kind.GRID
    itself = mask.diagonal(dim1=1, dim2=2)[:, grid]
    assert itself.all(), f"{name}: a grid token does not attend itself: {_token(index, _which(grid, ~itself.all(0)))}"
    _agree(f"{name}: attends otherwise than alone", index, packed.int(), mask)
    if hasattr(pattern, "text_sees_grid"):
        _check_text(name, pattern, index, mask)
    if hasattr(pattern, "group"):
        number = pattern.group(index.info())
        between = grid[:, None] & grid
        same = ((number[:, None] == number) & between).expand_as(mask)
        _agree(f"{name}: group() is not the predicate", index, same.int(), mask & between)
    if hasattr(pattern, "axes") and index.kept is None and one.grids[0] is not None:
        found = hasattr(pattern, "text_sees_grid")
        assert found, f"{pattern} offers axes, but not text_sees_grid, which says what text attends"
        _agree(f"{name}: axes() is not the predicate", index, _planned_pairs(pattern, index, heads), mask)


def _check_text(name: str, pattern: Any, index: LayoutIndex, mask: Bool[Tensor, "h n n"]) -> None:
    """Every query attends the text; text attends the grid or does not."""
    text, grid = index.kind == Kind.TEXT, index.kind == Kind.GRID
    to_text = text.expand_as(mask)
    _agree(f"{name}: text_sees_grid promises that every query attends the text", index, to_text.int(), mask & to_text)
    from_text = (text[:, None] & grid).expand_as(mask)
    promised = from_text.int() * int(pattern.text_sees_grid)
    _agree(f"{name}: text_sees_grid is {pattern.text_sees_grid}", index, promised, mask & from_text)


def _check_spec(pattern: Pattern) -> None:
    text = getattr(pattern, "spec", "")
    assert isinstance(text, str), f"spec of {pattern} is {text!r}, not a text"
    if text:
        back = from_spec(text)
        assert back == pattern, f"spec {text!r} of {pattern} gives {back} back"


def _agree(what: str, index: LayoutIndex, got: Int[Tensor, "h n n"], allowed: Bool[Tensor, "h n n"]) -> None:
    """Every allowed pair once, and no other; else the first pair that differs."""
    wrong = (got != allowed.int()).nonzero()
    if len(wrong):
        head, q, k = wrong[0].tolist()
        times, says = int(got[head, q, k]), bool(allowed[head, q, k])
        pair = f"query {_token(index, q)}, key {_token(index, k)}, head {head}"
        raise AssertionError(f"{what}: {pair}: {times} times, where the predicate alone says {says}")


def _planned_pairs(pattern: Any, index: LayoutIndex, heads: int) -> Int[Tensor, "h n n"]:
    """How often each pair stands in the plan that the library makes from ``axes``."""
    plan: Plan = make_plan(pattern, index.table.numpy().tobytes(), heads=heads)
    count = torch.zeros(heads, index.sample.numel(), index.sample.numel(), dtype=torch.int)
    for run in plan.runs:
        q, k = (_listed(side) for side in (run.q, run.k))
        for queries, keys in zip(q, k, strict=True):
            mask = torch.ones(1, 1, 1, dtype=torch.bool) if run.mask is None else run.mask
            count[:, queries[:, None], keys] += mask.int()
    return count


def _listed(side: Affine | Listed) -> Int[Tensor, "g l"]:
    return side.index() if isinstance(side, Affine) else side.places


def _which(grid: Bool[Tensor, " n"], wrong: Bool[Tensor, " m"]) -> int:
    return int(grid.nonzero()[wrong][0]) if wrong.any() else 0


def _token(index: LayoutIndex, place: int) -> str:
    """A token in words."""
    t, y, x = index.coords.view(-1, 3)[place].tolist()
    return f"text {x}" if index.kind.flatten()[place] == Kind.TEXT else f"{(t, y, x)}"


def _mask(pattern: Pattern, layout: TokenLayout, heads: int) -> Bool[Tensor, "h *b n n"]:
    """The pairs of a layout, heads first."""
    shape = (*layout.shape, heads, 4)
    request = AttentionRequest(pattern, layout.on("cpu"), None, shape, shape, torch.float32, "cpu", 1.0, None)
    mask = mask_of(request)
    return mask.transpose(0, 1) if layout.batched else mask
