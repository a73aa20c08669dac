"""Measuring launch sizes: neighbours of the fixed ones, timed on the device, the fastest kept.

A candidate must first give the result of the fixed sizes; one that does not is an error, never a choice.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels._launching import Sizes
from tubelet.kernels._modulation import launches as modulation
from tubelet.kernels._padded import launches as padded
from tubelet.kernels._residual import launches as residual
from tubelet.kernels._rotation import launches as rotation
from tubelet.kernels._tuning import key, tuned_file, write

__all__ = ["Job", "fastest", "jobs", "neighbours", "tune"]

Job = tuple[str, int, Sizes, Callable[[Sizes], Sequence[Tensor]]]
"""A kernel's name, its width, its fixed sizes, and what runs it with others."""


def tune(
    widths: Sequence[int],
    head_dims: Sequence[int],
    channels: Sequence[int] = (),
    dtype: str = "bfloat16",
    tokens: int = 32_768,
) -> Path:
    """Measure forward and backward of what has sizes to choose on the current CUDA device, and keep the fastest.

    Args:
        widths: of tokens.
        head_dims: of attention's heads.
        channels: of autoencoders' frames.
        dtype: of all.
        tokens: how many to measure with.

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
    choices = {}
    for name, width, fixed, run in jobs(widths, head_dims, channels, precision, tokens, "cuda"):
        choices[key(name, width, precision)] = fastest(fixed, run, do_bench)
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
    for width in channels:
        x = make(1, width, 4, 32, -(-tokens // 32))
        yield from _paddings(x)
        yield from _paddings(x.to(memory_format=torch.channels_last_3d))


def fastest(
    fixed: Sizes, run: Callable[[Sizes], Sequence[Tensor]], milliseconds: Callable[[Callable[[], Any]], float]
) -> Sizes:
    """The candidate that takes least time; ``fixed`` where nothing beats it.

    Raises:
        ValueError: a candidate's result is not that of the fixed sizes.

    Example:
        >>> fastest(Sizes(4, 4), lambda sizes: [torch.ones(1)], lambda call: 1.0)
        Sizes(tokens=4, warps=4)
    """
    expected, best = run(fixed), (milliseconds(partial(run, fixed)), fixed)
    for sizes in neighbours(fixed):
        for got, want in zip(run(sizes), expected, strict=True):
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
