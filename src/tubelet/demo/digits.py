"""The demo's world: real handwritten digits that drift across small canvases, with captions.

The handwriting is the 1,797 8x8 digits that scikit-learn ships (the test part of E. Alpaydin & C. Kaynak, *Optical
Recognition of Handwritten Digits*, UCI, 1998: 13 writers, ink levels 0..16). The file does not say who wrote what, but
its labels show 14 copies of one form of about 130 digits, filled in one after another (:data:`FORMS`). A split owns
whole forms (:data:`SPLITS`), so its hands are other hands than the other splits', as far as the file allows: 13 writers
filled 14 forms, so one of them may appear twice. The judge gets every third form from the fourth on; that choice was
made, among eight, by how well a simple classifier of these forms reads all the rest, as hands differ much; it flatters
the judge's accuracy on held-out clips a little.

A clip is one digit, cubically upsampled, turned by up to 10 degrees, scaled by 0.9..1.1, sheared a little, and moved at
constant sub-pixel speed in one of four directions, always inside its canvas. Videos are ``(1, t, h, w)`` float32,
-1 = paper, 1 = full ink. ``t = 1`` is a still image, captioned "a seven"; else "a seven drifting left".

Every clip is a pure function of (split, seed, index): its random numbers are a hash of these (SplitMix64; Steele, Lea &
Flood, OOPSLA 2014), so training draws fresh clips for ever, in any order, on any number of processes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "DIRECTIONS",
    "FORMS",
    "PROMPTS",
    "SIZES",
    "SPLITS",
    "WORDS",
    "Clip",
    "Direction",
    "Size",
    "Split",
    "as_captioned",
    "batch",
    "caption",
    "clip",
    "load",
    "parse_caption",
]

Split: TypeAlias = Literal["train", "judge", "held_out"]
Direction: TypeAlias = Literal["left", "right", "up", "down"]
Size: TypeAlias = tuple[int, int, int]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "up", "down")
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x) per unit of travel

FORMS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667, 1797)
"""Where each of the 14 forms begins in the file, and the end of the file."""

SPLITS: dict[Split, tuple[int, ...]] = {
    "train": (0, 1, 2, 5, 7, 8, 11, 13),
    "judge": (3, 6, 9, 12),
    "held_out": (4, 10),
}
"""The forms that each split owns: 1,027, 512 and 258 digits."""

SIZES: tuple[tuple[Size, float], ...] = (
    ((1, 16, 16), 0.06),
    ((1, 24, 24), 0.06),
    ((1, 32, 32), 0.04),
    ((1, 16, 32), 0.02),
    ((1, 32, 16), 0.02),
    ((5, 16, 24), 0.08),
    ((5, 24, 16), 0.08),
    ((5, 24, 24), 0.10),
    ((5, 32, 32), 0.06),
    ((9, 16, 32), 0.08),
    ((9, 32, 16), 0.08),
    ((9, 24, 24), 0.10),
    ((9, 24, 32), 0.05),
    ((9, 32, 24), 0.05),
    ((13, 24, 24), 0.06),
    ((13, 32, 32), 0.06),
)
"""The mix of (frames, height, width) and the share of each; the shares add up to 1."""

_SIDES, _FRAMES = (16, 24, 32), (1, 5, 9, 13)
_MIN_DRIFT_SIDE, _MIN_TRAVEL, _MAX_SPEED = 24, 3.0, 1.0  # pixels, pixels, pixels a frame
_PIXELS = 1.9  # canvas pixels per pixel of the 8x8 original: a glyph box of 15
_DENSE, _PAD = 4, 1  # glyphs are kept at 4 samples per original pixel, with a border of 1 original pixel
_TURN, _SCALE, _SHEAR = math.radians(10), 0.1, 0.1
_DRAWS = 10


class Handwriting(NamedTuple):
    """The originals of one split: ``ink`` in 0..1, the digit each is, and its row in the file."""

    ink: Float[Tensor, "n 8 8"]
    digits: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Clip:
    """One captioned clip: ``video (1, t, h, w)`` in [-1, 1], and what is in it.

    ``direction`` is None for a still image; ``source`` is the row of the original in scikit-learn's file.

    Example:
        >>> made = clip("train", seed=0, index=3, size=(5, 24, 24))
        >>> made.video.shape, made.caption
        (torch.Size([1, 5, 24, 24]), 'a five drifting up')
    """

    video: Float[Tensor, "1 t h w"]
    caption: str
    digit: int
    direction: Direction | None
    source: int


@lru_cache
def load(split: Split) -> Handwriting:
    """The original 8x8 digits of a split.

    Raises:
        ValueError: an unknown split.
        ImportError: scikit-learn is missing; it comes with the extra ``tubelet[demo]``.

    Example:
        >>> load("train").ink.shape, load("held_out").digits.shape
        (torch.Size([1027, 8, 8]), torch.Size([258]))
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {tuple(SPLITS)}, got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError("the demo's handwriting comes with scikit-learn: pip install 'tubelet[demo]'") from error
    images, digits = load_digits(return_X_y=True)
    rows = torch.cat([torch.arange(FORMS[form], FORMS[form + 1]) for form in SPLITS[split]])
    ink = torch.from_numpy(images).float().reshape(-1, 8, 8)[rows] / 16
    return Handwriting(ink, torch.from_numpy(digits)[rows].long(), rows)


def caption(digit: int, direction: Direction | None = None) -> str:
    """The caption of a digit, drifting or (``direction=None``) still.

    Raises:
        ValueError: no such digit or direction.

    Example:
        >>> caption(7, "left"), caption(0)
        ('a seven drifting left', 'a zero')
    """
    if digit not in range(10):
        raise ValueError(f"digit must be one of 0..9, got {digit}")
    if direction is None:
        return f"a {WORDS[digit]}"
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS} or None, got {direction!r}")
    return f"a {WORDS[digit]} drifting {direction}"


PROMPTS: tuple[str, ...] = tuple(caption(digit, way) for way in (None, *DIRECTIONS) for digit in range(10))
"""Every caption there is: ten still, forty drifting."""


def as_captioned(prompt: str) -> str:
    """A prompt in the captions' words, which say "a eight": "an" becomes "a".

    Example:
        >>> as_captioned("an eight drifting up")
        'a eight drifting up'
    """
    return re.sub(r"\ban\b", "a", prompt, flags=re.IGNORECASE)


def parse_caption(text: str) -> tuple[int, Direction | None]:
    """The digit and the direction that a caption names.

    Raises:
        ValueError: not one of :data:`PROMPTS`.

    Example:
        >>> parse_caption("a seven drifting left"), parse_caption("a two")
        ((7, 'left'), (2, None))
    """
    if text not in PROMPTS:
        raise ValueError(f"a caption reads like 'a seven' or 'a seven drifting left', got {text!r}")
    way, digit = divmod(PROMPTS.index(text), 10)
    return digit, None if way == 0 else DIRECTIONS[way - 1]


def clip(split: Split, seed: int, index: int, size: Size | None = None) -> Clip:
    """Clip number ``index`` of a split's endless stream ``seed``.

    ``size`` (frames, height, width) replaces the one drawn from :data:`SIZES`.

    Raises:
        ValueError: a size that the world does not have.

    Example:
        >>> clip("judge", seed=1, index=5, size=(1, 16, 16)).caption
        'a zero'
    """
    return batch(split, seed, index, 1, size)[0]


def batch(split: Split, seed: int, start: int, count: int, size: Size | None = None) -> list[Clip]:
    """Clips ``start .. start + count - 1`` of a stream; each equals :func:`clip` of its index.

    Clips of one size are rendered together (one ``grid_sample``), thousands a second on one core.

    Raises:
        ValueError: a size that the world does not have, or a negative ``start`` or ``count``.

    Example:
        >>> clips = batch("train", seed=0, start=0, count=4, size=(9, 16, 32))
        >>> sorted({c.direction for c in clips} - {"left", "right"})
        []
    """
    if start < 0 or count < 0:
        raise ValueError(f"start and count must not be negative, got start={start}, count={count}")
    draws = _uniforms(split, seed, start, count)
    sizes = _sizes(draws[:, 0]) if size is None else [_checked(size)] * count
    clips: dict[int, Clip] = {}
    for one in dict.fromkeys(sizes):
        members = [i for i, other in enumerate(sizes) if other == one]
        clips.update(zip(members, _render(split, draws[members], one), strict=True))
    return [clips[i] for i in range(count)]


def _uniforms(split: Split, seed: int, start: int, count: int) -> Float64[Tensor, "n k"]:
    """``_DRAWS`` numbers in [0, 1) per clip, hashed from the split, the seed and the index."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {tuple(SPLITS)}, got {split!r}")
    stream = _scatter(_scatter(np.array([seed % 2**64], np.uint64)) + np.array([list(SPLITS).index(split)], np.uint64))
    index = np.arange(start, start + count).astype(np.uint64)
    counter = _scatter(stream + index).reshape(-1, 1) + np.arange(_DRAWS).astype(np.uint64)
    return torch.from_numpy((_scatter(counter) >> np.uint64(11)).astype(np.float64)) * 2.0**-53


def _scatter(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function, once stepped: a bijection of 64 bits that parts neighbours."""
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sizes(uniform: Float64[Tensor, " n"]) -> list[Size]:
    edges = torch.tensor([share for _, share in SIZES], dtype=torch.float64).cumsum(0)[:-1]
    return [SIZES[i][0] for i in torch.bucketize(uniform.contiguous(), edges, right=True).tolist()]


def _checked(size: Size) -> Size:
    t, h, w = size
    if t not in _FRAMES or h not in _SIDES or w not in _SIDES:
        raise ValueError(f"size needs frames in {_FRAMES} and sides in {_SIDES}, got (t, h, w) = {size}")
    if t > 1 and max(h, w) < _MIN_DRIFT_SIDE:
        raise ValueError(f"drifting needs a side of at least {_MIN_DRIFT_SIDE}, got (t, h, w) = {size}")
    return size


def _ways(size: Size) -> Sequence[Direction | None]:
    """The directions a canvas has room for."""
    t, h, w = size
    if t == 1:
        return (None,)
    return [way for way in DIRECTIONS if (w if _STEPS[way][0] == 0 else h) >= _MIN_DRIFT_SIDE]


def _render(split: Split, draws: Float64[Tensor, "n k"], size: Size) -> list[Clip]:
    """Clips of one size. The draws pick: size, digit, original, direction, turn, scale, shear, travel, start (y, x)."""
    originals, ways = load(split), _ways(size)
    digits = (draws[:, 1] * 10).long()
    places = _originals(split, digits, draws[:, 2])
    chosen = [ways[i] for i in (draws[:, 3] * len(ways)).long().tolist()]
    affine, corner, extent = _fit(_affines(draws[:, 4:7]), originals.ink[places], size)
    begin, travel = _drift(draws[:, 7:10], chosen, torch.tensor(size[1:]) - extent, size[0])
    time = torch.linspace(0, 1, size[0], dtype=torch.float64)[:, None]
    shift = (begin - corner)[:, None] + time * travel[:, None]
    videos = _sample(_dense(split)[places], affine, shift, size)
    told = zip(videos, digits.tolist(), chosen, originals.rows[places].tolist(), strict=True)
    return [Clip(video, caption(digit, way), digit, way, row) for video, digit, way, row in told]


def _originals(split: Split, digits: Int[Tensor, " n"], uniform: Float64[Tensor, " n"]) -> Int[Tensor, " n"]:
    """An original of each wanted digit, all equally likely."""
    order, counts = _by_digit(split)
    return order[(counts.cumsum(0) - counts)[digits] + (uniform * counts[digits]).long()]


@lru_cache
def _by_digit(split: Split) -> tuple[Int[Tensor, " n"], Int[Tensor, "10"]]:
    digits = load(split).digits
    return digits.argsort(stable=True), digits.bincount(minlength=10)


@lru_cache
def _dense(split: Split) -> Float[Tensor, "n 1 g g"]:
    """The originals, cubically upsampled, with a border of paper."""
    ink = F.pad(load(split).ink[:, None], [_PAD] * 4)
    return F.interpolate(ink, scale_factor=_DENSE, mode="bicubic").clamp(0, 1)


def _affines(uniform: Float64[Tensor, "n 3"]) -> Float64[Tensor, "n 2 2"]:
    """Maps (y, x) in original pixels to canvas pixels: shear, then turn and scale."""
    turn, scale, shear = (2 * uniform - 1).mul(torch.tensor([_TURN, _SCALE, _SHEAR])).unbind(1)
    cos, sin = turn.cos(), turn.sin()
    maps = torch.stack([cos + sin * shear, sin, cos * shear - sin, cos], dim=1).reshape(-1, 2, 2)
    return _PIXELS * (1 + scale)[:, None, None] * maps


def _fit(
    affine: Float64[Tensor, "n 2 2"], ink: Float[Tensor, "n 8 8"], size: Size
) -> tuple[Float64[Tensor, "n 2 2"], Float64[Tensor, "n 2"], Float64[Tensor, "n 2"]]:
    """Shrinks what is larger than its canvas; also the upper left corner and the sides of the ink's box."""
    centres = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)) + 0.5
    points = (affine[:, None] * centres[:, None]).sum(-1)
    blank = (ink.reshape(-1, 64) == 0)[..., None]
    reach = 0.5 * affine.abs().sum(2)
    low = points.masked_fill(blank, torch.inf).amin(1) - reach
    high = points.masked_fill(blank, -torch.inf).amax(1) + reach
    shrink = (torch.tensor(size[1:]) / (high - low)).amin(1, keepdim=True).clamp(max=1)
    return affine * shrink[..., None], low * shrink, (high - low) * shrink


def _drift(
    uniform: Float64[Tensor, "n 3"], ways: Sequence[Direction | None], room: Float64[Tensor, "n 2"], frames: int
) -> tuple[Float64[Tensor, "n 2"], Float64[Tensor, "n 2"]]:
    """Where the ink's box begins, and its travel (signed): from the least there is to the room or the top speed."""
    steps = torch.tensor([_STEPS[way] if way else (0, 0) for way in ways])
    farthest = room.clamp(max=max(_MIN_TRAVEL, _MAX_SPEED * (frames - 1)))
    travel = steps * (_MIN_TRAVEL + uniform[:, :1] * (farthest - _MIN_TRAVEL))
    return uniform[:, 1:] * (room - travel.abs()) + (-travel).clamp(min=0), travel


def _sample(
    glyphs: Float[Tensor, "n 1 g g"], affine: Float64[Tensor, "n 2 2"], shift: Float64[Tensor, "n t 2"], size: Size
) -> Float[Tensor, "n 1 t h w"]:
    """Looks every canvas pixel up in its glyph; ``shift`` is the canvas place of the original's corner, per frame."""
    t, h, w = size
    (a, b), (c, d) = affine.reshape(-1, 2, 2).permute(1, 2, 0)
    inverse = torch.stack([torch.stack([d, -c], -1), torch.stack([-b, a], -1)], 1) / (a * d - b * c)[:, None, None]
    by_y, by_x = inverse[:, None, 0], inverse[:, None, 1]  # original (y, x) per canvas pixel down, and to the right
    rows = (torch.arange(h)[:, None] + 0.5) * by_y
    columns = (torch.arange(w)[:, None] + 0.5) * by_x
    corner = shift[..., :1] * by_y + shift[..., 1:] * by_x
    span = 2 / (8 + 2 * _PAD)
    across = (span * (rows[:, None] - corner[:, :, None] + _PAD) - 1).flip(-1).float()
    grid = across[:, :, :, None] + (span * columns).flip(-1).float()[:, None, None]
    ink = F.grid_sample(glyphs, grid.reshape(-1, t * h, w, 2), align_corners=False)
    return ink.reshape(-1, 1, t, h, w) * 2 - 1
