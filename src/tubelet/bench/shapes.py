"""The sizes that are measured: real models by name, ``TxHxW+text/heads×dim`` literals, and packed mixtures.

A shape says which grids of tokens, with how much text, meet in one call, and how many heads of which width they have.
The named ones are the published token grids of video diffusion transformers, after patching.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from types import MappingProxyType

from tubelet.layout import Grid, TokenLayout

__all__ = ["MIXTURES", "SHAPES", "Shape", "parse_shape"]


@dataclass(frozen=True)
class Shape:
    """What one call attends over: the grids and text of its samples, and its heads.

    Args:
        name: how the shape was asked for.
        grids: the token grid of each sample.
        text_lengths: how many text tokens stand before each grid.
        heads: query heads; keys and values have as many.
        head_dim: width of a head.
        packed: whether samples lie end to end on one axis; otherwise each is a row of its own, and all are equal.

    Example:
        >>> shape = parse_shape("2x4x4+3/2x8")
        >>> shape.tokens, shape.layout().shape
        (35, (1, 35))
    """

    name: str
    grids: tuple[Grid, ...]
    text_lengths: tuple[int, ...]
    heads: int
    head_dim: int
    packed: bool = False

    @property
    def tokens(self) -> int:
        """The tokens of all samples, text included."""
        return sum(grid.tokens for grid in self.grids) + sum(self.text_lengths)

    def scaled(self, factor: int | float) -> "Shape":
        """The same with every grid side (frames, height and width) times ``factor``.

        A side is rounded to the nearest whole number, halves up, and is at least 1. Text, heads and head width stay.

        Example:
            >>> SHAPES["wan-1.3b-480p"].scaled(0.25).grids
            (Grid(t=5, h=8, w=13),)
        """
        sides = [[max(1, floor(side * factor + 0.5)) for side in (g.t, g.h, g.w)] for g in self.grids]
        return replace(self, grids=tuple(Grid(*side) for side in sides))

    def batched(self, batch: int) -> "Shape":
        """``batch`` times the same samples: more rows, or a longer pack.

        Example:
            >>> parse_shape("1x2x2/1x8").batched(3).layout().shape
            (3, 4)
        """
        return replace(self, grids=self.grids * batch, text_lengths=self.text_lengths * batch)

    def layout(self) -> TokenLayout:
        """Where the tokens lie: rows of equal samples, or one packed axis.

        Example:
            >>> parse_shape("mix:1x2x2_2x1x1+1/1x8").layout().lengths
            (4, 3)
        """
        if self.packed:
            return TokenLayout.packed(self.grids, self.text_lengths)
        return TokenLayout.dense(len(self.grids), self.grids[0], self.text_lengths[0])

    def describe(self) -> str:
        """Grids and heads as text, such as ``21x30x52/12x128``: a literal that :func:`parse_shape` reads.

        Example:
            >>> SHAPES["cogvideox-5b"].describe()
            '13x30x45+226/48x64'
        """
        samples = list(zip(self.grids, self.text_lengths, strict=True))
        counts = {sample: samples.count(sample) for sample in samples} if self.packed else {samples[0]: 1}
        parts = [_part(grid, text, count) for (grid, text), count in counts.items()]
        return f"{'mix:' if self.packed else ''}{'_'.join(parts)}/{self.heads}x{self.head_dim}"


def parse_shape(text: str) -> Shape:
    """The shape of a name (:data:`SHAPES`, or ``mix:`` and a name of :data:`MIXTURES`) or of a literal.

    A literal is ``TxHxW[+TEXT]/HEADSxDIM``; that of a mixture is ``mix:`` and its samples joined by ``_``, each
    ``TxHxW[+TEXT][@COUNT]``, before ``/HEADSxDIM``. ``×`` may stand for ``x``.

    Raises:
        ValueError: neither.

    Example:
        >>> parse_shape("mix:1x8x8@4_3x8x8+5/6x64").grids.count(Grid(1, 8, 8))
        4
    """
    plain = text.replace("×", "x")
    if plain in SHAPES:
        return SHAPES[plain]
    packed = plain.startswith("mix:")
    body = plain.removeprefix("mix:")
    if packed and body in MIXTURES:
        return replace(_literal(MIXTURES[body], packed=True), name=text)
    try:
        return replace(_literal(body, packed), name=text)
    except ValueError as error:
        mixtures = ", ".join(f"mix:{name}" for name in MIXTURES)
        raise ValueError(
            f"shape {text!r} is neither one of {', '.join(SHAPES)}, {mixtures} nor TxHxW[+TEXT]/HEADSxDIM: {error}"
        ) from None


_SAMPLE = re.compile(r"(\d+)x(\d+)x(\d+)(?:\+(\d+))?(?:@(\d+))?")
_HEADS = re.compile(r"(\d+)x(\d+)")


def _literal(body: str, packed: bool) -> Shape:
    samples, _, sizes = body.partition("/")
    heads = _HEADS.fullmatch(sizes)
    if heads is None or min(map(int, heads.groups())) < 1:
        raise ValueError(f"{sizes!r} is not HEADSxDIM")
    grids: list[Grid] = []
    texts: list[int] = []
    for part in samples.split("_"):
        found = _SAMPLE.fullmatch(part)
        if found is None:
            raise ValueError(f"{part!r} is not TxHxW")
        t, h, w, words, count = (int(group or 0) for group in found.groups())
        repeats = count if found[5] else 1
        if repeats < 1 or (not packed and (found[5] or "_" in samples)):
            raise ValueError(f"{samples!r} holds other than one sample; several are a mixture, mix:...")
        grids += [Grid(t, h, w)] * repeats
        texts += [words] * repeats
    return Shape(body, tuple(grids), tuple(texts), int(heads[1]), int(heads[2]), packed)


def _part(grid: Grid, text: int, count: int) -> str:
    words = f"+{text}" if text else ""
    return f"{grid.t}x{grid.h}x{grid.w}{words}{f'@{count}' if count > 1 else ''}"


_MODELS = {
    "wan-1.3b-480p": "21x30x52/12x128",
    "wan-14b-480p": "21x30x52/40x128",
    "wan-1.3b-720p": "21x45x80/12x128",
    "wan-14b-720p": "21x45x80/40x128",
    "hunyuan-720p": "33x45x80+256/24x128",
    "cogvideox-5b": "13x30x45+226/48x64",
    "open-sora-2-256": "33x12x21+512/24x128",
    "open-sora-2-768": "33x36x64+512/24x128",
    "ltx-512": "16x16x24/32x64",
    "mochi-480p": "28x30x53+256/24x128",
    "sora-minute": "128x45x80/24x128",
}

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {name: replace(_literal(text, packed=False), name=name) for name, text in _MODELS.items()}
)
"""The joint attention of published models, by name."""

MIXTURES: Mapping[str, str] = MappingProxyType(
    {
        "navit": "1x8x8@4_1x12x16@2_3x8x12@2_5x8x8@2_4x12x8/6x64",
        "short-clips": "3x4x4@24_2x4x4@24_1x4x4@16/6x64",
    }
)
"""Packed batches by name: images and clips of mixed sizes as in NaViT (arXiv:2307.06304), and many short clips."""
