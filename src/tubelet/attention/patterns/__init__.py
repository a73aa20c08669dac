"""Attention patterns: values defined by one predicate on what a query and a key are.

A pattern says nothing of samples and padding (those belong to the layout) and nothing of backends. A user's own pattern
needs only ``attends(q, k, head)``. For speed it may also offer

- ``group(tokens)``: a number a grid token, where exactly the tokens of equal numbers attend each other (a partition);
- ``axes(grid)``: the same knowledge, or that of sliding windows, axis by axis, as :class:`Span` lists, from which
  backends read affine tiles in raster order and copy nothing;
- ``text_sees_grid``: whether text queries attend the grid, which ``group`` and ``axes`` leave out (every query attends
  the text);
- ``spec``: a text that :func:`from_spec` turns back into the pattern, so that compiled graphs can hold it.

Hypothesis proves each equal to the predicate (``tubelet.testing.check_pattern`` does so for yours). The text rule is
part of a pattern: global by default; where a pattern is causal, text attends text alone, lest the future leak.
"""

from tubelet.attention.patterns.causal import FrameCausal
from tubelet.attention.patterns.compose import Both, Either, HeadSplit
from tubelet.attention.patterns.grouped import Joint, Spatial, Strided, Temporal, Window
from tubelet.attention.patterns.sliding import Neighborhood, SlidingTile
from tubelet.attention.patterns.spans import Span
from tubelet.attention.patterns.specs import from_spec
from tubelet.attention.patterns.stills import VideoOnly

__all__ = [
    "Both",
    "Either",
    "FrameCausal",
    "HeadSplit",
    "Joint",
    "Neighborhood",
    "SlidingTile",
    "Span",
    "Spatial",
    "Strided",
    "Temporal",
    "VideoOnly",
    "Window",
    "from_spec",
]
