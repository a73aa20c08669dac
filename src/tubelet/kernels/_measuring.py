"""Measuring launch sizes: neighbours of the fixed ones, timed on the device, the fastest kept.

A candidate must first give the result of the fixed sizes; one that does not is an error, never a choice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels._grouped import launches as grouped
from tubelet.kernels._grouped.places import Axes, Pair
from tubelet.kernels._launching import Sizes
from tubelet.kernels._modulation import launches as modulation
from tubelet.kernels._padded import launches as padded
from tubelet.kernels._residual import launches as residual
from tubelet.kernels._rotation import launches as rotation
from tubelet.kernels._tiled import launches as tiled
from tubelet.kernels._tiled.table import Tiles, TileSizes, segment_tiles
from tubelet.kernels._tuning import Choice, key, tuned_file, write

__all__ = ["Job", "Tables", "fastest", "fastest_tiles", "jobs", "neighbours", "tile_neighbours", "tiles", "tune"]

Job = tuple[str, int, Sizes, Callable[[Sizes], Sequence[Tensor]]]
"""A kernel's name, its width, its fixed sizes, and what runs it with others."""


Tables = Callable[[TileSizes], Tiles]
"""The tables of one layout for tiles of some sizes. Example: ``partial(segment_tiles, cu, cu, n, n)``."""


def tune(
    widths: Sequence[int],
    head_dims: Sequence[int],
    channels: Sequence[int] = (),
    dtype: str = "bfloat16",
    tokens: int = 32_768,
    boxes: Tables | None = None,
) -> Path:
    """Measure forward and backward of what has sizes to choose on the current CUDA device, and keep the fastest.

    Args:
        widths: of tokens, for norms and residuals.
        head_dims: of attention's heads.
        channels: of autoencoders' frames.
        dtype: of all.
        tokens: how many to measure with.
        boxes: tables of a pattern of as many tokens that walks boxes; None: tiles that walk boxes are not measured.

    Returns:
        The file written; processes that start later read it.

    Raises:
        ValueError: there is no CUDA device.

    Example:
        >>> tune([64], [64]) if torch.cuda.is_available() else None
    """
    if not torch.cuda.is_available():
        raise ValueError("measuring launch sizes needs a CUDA device, and there is none; the fixed sizes serve without")
    from triton.testing import do_bench

    precision: torch.dtype = getattr(torch, dtype)
    choices: dict[str, tuple[int, ...]] = {}
    for name, width, fixed, run in jobs(widths, head_dims, channels, precision, tokens, "cuda"):
        found: Sizes = fastest(fixed, run, do_bench, neighbours(fixed))
        choices[key(name, width, precision)] = found
    for name, width, fixed_tiles, runs in tiles(head_dims, precision, tokens, "cuda", boxes):
        choices[key(name, width, precision)] = fastest_tiles(fixed_tiles, runs, do_bench)
    path = tuned_file(torch.cuda.get_device_name())
    write(path, choices)
    return path


def jobs(
    widths: Sequence[int],
    head_dims: Sequence[int],
    channels: Sequence[int],
    dtype: torch.dtype,
    tokens: int,
    device: str,
) -> Iterator[Job]:
    """What to measure, on random data.

    Example:
        >>> [name for name, *_ in jobs([8], [], [], torch.float32, 4, "meta")]
        ['modulation_forward', 'modulation_backward', 'residual_forward', 'residual_backward', 'gate_forward',
         'gate_backward']
    """
    make = partial(torch.randn, device=device, dtype=dtype)
    for width in widths:
        x, row = make(tokens, width), make(1, width)
        given = modulation.Given(x, row, None, None, tokens, False, 1e-6)
        stats = torch.ones(2, tokens, device=device)
        forward = partial(_with_sizes, modulation.forward, (given, row, None))
        backward = partial(_with_sizes, modulation.backward, (x, given, stats, None, None))
        yield "modulation_forward", width, modulation.fixed_forward(width), forward
        yield "modulation_backward", width, modulation.fixed_backward(width), backward
        yield from _residuals(x, row, stats)
    for width in head_dims:
        q, k, _ = make(1, tokens, 3, 12, width).unbind(2)
        angles = torch.randn(1, tokens, width // 2, device=device)
        weight = make(width)
        turned = rotation.Given(q, k, angles.cos(), angles.sin(), weight, weight)
        yield "rotation_forward", width, rotation.fixed_forward(width), partial(_turned, turned)
        yield "rotation_backward", width, rotation.fixed_backward(width), partial(_turned_back, q, k, turned)
        yield from _groups(make(tokens, 4, 12, width))
    for width in channels:
        x = make(1, width, 4, 32, -(-tokens // 32))
        yield from _paddings(x)
        yield from _paddings(x.to(memory_format=torch.channels_last_3d))


def tiles(
    head_dims: Sequence[int], dtype: torch.dtype, tokens: int, device: str, boxes: Tables | None = None
) -> Iterator[tuple[str, int, TileSizes, Mapping[tuple[str, str], Callable[[TileSizes], Sequence[Tensor]]]]]:
    """What to measure of tiled attention: name, width, fixed sizes, and what runs the two sizes that are named.

    Lines are measured on four segments of equal lengths. The tables of sizes are made outside of what is timed.

    Example:
        >>> [(name, list(runs)) for name, _, _, runs in tiles([8], torch.float32, 64, "cpu")]
        [('tiled_lines', [('rows', 'keys'), ('back_rows', 'back_keys'), ('own_keys', 'few_rows')])]
    """
    cu = torch.arange(5, device=device, dtype=torch.int32) * (tokens // 4)
    lines = partial(segment_tiles, cu, cu, tokens, tokens)
    for width in head_dims:
        q, k, v, grad = torch.randn(tokens, 4, 12, width, device=device, dtype=dtype).unbind(1)
        for name, make in (("tiled_lines", lines), ("tiled_boxes", boxes)):
            if make is not None:
                fixed = tiled.fixed_sizes(dtype, width, make is boxes)
                run = _Tiled(q, k, v, grad, lru_cache(1)(make), fixed)
                back = ("back_rows", "back_keys"), ("own_keys", "few_rows")
                yield name, width, fixed, {("rows", "keys"): run.forward, **dict.fromkeys(back, run.backward)}


def fastest_tiles(
    fixed: TileSizes,
    runs: Mapping[tuple[str, str], Callable[[TileSizes], Sequence[Tensor]]],
    milliseconds: Callable[[Callable[[], Any]], float],
) -> TileSizes:
    """The fastest sizes of each kernel in turn.

    Raises:
        ValueError: as :func:`fastest`.

    Example:
        >>> fastest_tiles(TileSizes(*[16] * 6), {("rows", "keys"): lambda sizes: []}, lambda call: 1.0)
        TileSizes(rows=16, keys=16, back_rows=16, back_keys=16, own_keys=16, few_rows=16)
    """
    best = fixed
    for names, run in runs.items():
        best = fastest(best, run, milliseconds, tile_neighbours(best, names))
    return best


def tile_neighbours(fixed: TileSizes, names: tuple[str, str]) -> Iterator[TileSizes]:
    """Half, the same and twice as many tokens of two sizes; between 16 and 256.

    Example:
        >>> [(sizes.rows, sizes.keys) for sizes in tile_neighbours(TileSizes(*[16] * 6), ("rows", "keys"))]
        [(16, 32), (32, 16), (32, 32)]
    """
    own, walked = (getattr(fixed, name) for name in names)
    for sides in ((a, b) for a in (own // 2, own, 2 * own) for b in (walked // 2, walked, 2 * walked)):
        if min(sides) >= 16 and max(sides) <= 256 and sides != (own, walked):
            yield fixed._replace(**dict(zip(names, sides, strict=True)))


def fastest(
    fixed: Choice,
    run: Callable[[Choice], Sequence[Tensor]],
    milliseconds: Callable[[Callable[[], Any]], float],
    candidates: Iterable[Choice],
) -> Choice:
    """The candidate that takes least time; ``fixed`` where nothing beats it, nor fits the device.

    Raises:
        ValueError: a candidate's result is not that of the fixed sizes.

    Example:
        >>> fastest(Sizes(4, 4), lambda sizes: [torch.ones(1)], lambda call: 1.0, neighbours(Sizes(4, 4)))
        Sizes(tokens=4, warps=4)
    """
    expected, best = run(fixed), (milliseconds(partial(run, fixed)), fixed)
    for sizes in candidates:
        try:
            found = run(sizes)
        except Exception as error:
            if type(error).__name__ != "OutOfResources":  # triton's: more registers or shared memory than there is
                raise
            continue
        for got, want in zip(found, expected, strict=True):
            if (got.float() - want.float()).norm() > 1e-2 * want.float().norm():
                raise ValueError(f"{sizes} gives another result than {fixed}")
        if (taken := milliseconds(partial(run, sizes))) < best[0]:
            best = (taken, sizes)
    return best[1]


def neighbours(fixed: Sizes) -> Iterator[Sizes]:
    """Half, the same and twice as many tokens and warps; between 1 and 16 warps.

    Example:
        >>> list(neighbours(Sizes(1, 1)))
        [Sizes(tokens=1, warps=2), Sizes(tokens=2, warps=1), Sizes(tokens=2, warps=2)]
    """
    for tokens in (fixed.tokens // 2, fixed.tokens, 2 * fixed.tokens):
        for warps in (fixed.warps // 2, fixed.warps, 2 * fixed.warps):
            if tokens >= 1 and 1 <= warps <= 16 and (tokens, warps) != fixed:
                yield Sizes(tokens, warps)


def _residuals(x: Tensor, row: Tensor, stats: Tensor) -> Iterator[Job]:
    """Gate + residual, with norm + modulate and alone."""
    (tokens, width), norm = x.shape, residual.Normed(row, row, None, None, False, 1e-6)
    gated = residual.Given(x, row, None, tokens, 1)
    forward, backward = (partial(_with_sizes, each) for each in (residual.forward, residual.backward))
    yield "residual_forward", width, residual.fixed_forward(width), partial(forward, (x, gated, norm))
    launched = gated if residual.together(width) else gated.ungated()
    both = ((x, x), x, stats, launched, norm, None, None)
    yield "residual_backward", width, residual.fixed_backward(width), partial(backward, both)
    yield "gate_forward", width, residual.fixed_gate_forward(width), partial(forward, (x, gated, None))
    alone = ((x, None), None, None, gated, None, None, None)
    yield "gate_backward", width, residual.fixed_gate_backward(width), partial(backward, alone)


def _groups(qkvg: Tensor) -> Iterator[Job]:
    """Attention over 16 frames, whose groups share a tile, and inside of each, whose groups have many."""
    (q, k, v, grad), frames = qkvg.unbind(1), 16
    width, places = q.shape[-1], len(q) // frames
    over_time = Axes(0, (1, 1, 1, places), (0, 0, 0, 1), (1, 1, frames), (0, 0, places))
    in_frames = Axes(0, (1, 1, 1, frames), (0, 0, 0, places), (1, 1, places), (0, 0, 1))
    for axes in (over_time, in_frames):
        pair = Pair(axes, axes, False)
        given = grouped.Given(q, k, v, width**-0.5, [pair])
        result = q, torch.full(q.shape[:2], 2.0, device=q.device)
        for direction, run in (
            ("forward", partial(_with_sizes, grouped.forward, (given,))),
            ("backward", partial(_with_sizes, grouped.backward, (grad, given, *result))),
        ):
            fixed = grouped.tile(pair, q.dtype, width, backward=direction == "backward")
            yield fixed.name(direction), width, Sizes(fixed.rows, fixed.warps), run


def _paddings(x: Tensor) -> Iterator[Job]:
    """Norm + SiLU + two frames before the others, of positions and of up to 32 groups."""
    width, padding, weight = x.shape[1], padded.Padding(2, True, 0, 0, False), x.new_ones(x.shape[1])
    groups = next(count for count in (32, 16, 8, 4, 2, 1) if width % count == 0)
    grad = torch.cat([x[:, :, :2], x], 2)
    for shape in (padded.Shape(0, True), padded.Shape(width // groups, True)):
        stats = None if not shape.group else x.new_ones(4, groups, 2, dtype=torch.float32)
        rest = (stats, weight, weight, shape, padding, 1e-6)
        forward = partial(_alone, padded.forward, (x, None, *rest))
        backward = partial(_with_sizes, padded.backward, (grad, x, *rest))
        yield padded.name("forward", x, shape), width, padded.fixed_forward(x, shape), forward
        yield padded.name("backward", x, shape), width, padded.fixed_backward(x, shape, padding), backward


def _alone(operation: Callable[..., Tensor], arguments: tuple[Any, ...], sizes: Sizes) -> Sequence[Tensor]:
    return [operation(*arguments, sizes=sizes)]


def _with_sizes(
    operation: Callable[..., Sequence[Tensor]], arguments: tuple[Any, ...], sizes: Sizes
) -> Sequence[Tensor]:
    return operation(*arguments, sizes=sizes)


def _turned(given: rotation.Given, sizes: Sizes) -> Sequence[Tensor]:
    return [x for x in rotation.forward(given, sizes=sizes) if x is not None]


def _turned_back(q: Tensor, k: Tensor, given: rotation.Given, sizes: Sizes) -> Sequence[Tensor]:
    grads = rotation.backward(q, k, given, sizes=sizes)
    return [grad for grad in (grads.dq, grads.dk, *grads.of_affine) if grad is not None]


@dataclass(frozen=True)
class _Tiled:
    """Tiled attention with tables of any sizes; its backward goes from the result of the fixed ones."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    make: Tables
    fixed: TileSizes

    def forward(self, sizes: TileSizes) -> Sequence[Tensor]:
        return tiled.forward(self._given(sizes))[:1]

    def backward(self, sizes: TileSizes) -> Sequence[Tensor]:
        return tiled.backward(self.grad, self._given(sizes), *self._result)

    @cached_property
    def _result(self) -> tuple[Tensor, Tensor]:
        return tiled.forward(self._given(self.fixed))

    def _given(self, sizes: TileSizes) -> tiled.Given:
        return tiled.Given(self.q, self.k, self.v, self.q.shape[-1] ** -0.5, self.make(sizes))
