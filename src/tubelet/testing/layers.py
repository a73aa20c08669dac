"""Checks of blocks, modulation sources and position codes. Shapes: tokens ``(*lead, d)``, rows ``(r, ...)``."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tubelet.layout import LayoutIndex, Level, Rows, TokenLayout
from tubelet.protocols import Block, ModulationSource, Positions
from tubelet.testing.mixtures import alone, check_module, mixtures, pieces, same

__all__ = ["check_block", "check_modulation", "check_positions"]

Module = TypeVar("Module")


def check_block(
    make: Callable[..., Block],
    dim: int,
    *,
    cond_dim: int | None = None,
    context: Callable[[LayoutIndex], Mapping[str, Any]] = lambda index: {"layout": index},
) -> None:
    """Check a transformer block.

    It constructs on the meta device; keeps shape and dtype; a packed sample equals the sample alone, in output and
    input gradients, with conditioning per sample, frame and token; gradients are finite; the state dict round-trips.

    Args:
        make: makes the block; takes the keywords ``device`` and ``dtype``.
        dim: width of the tokens.
        cond_dim: width of the conditioning; None for a block without.
        context: makes the block's context from the index of a layout.

    Raises:
        AssertionError: what differs, and on which layout.

    Example:
        >>> from tubelet import Attention, Branch, TransformerBlock
        >>> check_block(lambda **on: TransformerBlock([Branch(Attention(8, 2, **on), takes=["layout"])]), dim=8)
    """
    meta = make(device="meta", dtype=torch.float32)
    if isinstance(meta, nn.Module):
        real = [name for name, value in meta.named_parameters() if not value.is_meta]
        assert not real, f"constructed on meta, these parameters are real: {real}"
    block = _randomised(make(device="cpu", dtype=torch.float64))
    levels: tuple[Level, ...] = ("sample",) if cond_dim is None else ("sample", "frame", "token")
    for name, layout in mixtures().items():
        for level in levels:
            _check_packing(f"layout {name!r}, conditioning per {level}", block, layout, level, dim, cond_dim, context)
    single = make(device="cpu", dtype=torch.float32)
    index = mixtures()["packed"].on("cpu")
    cond = None if cond_dim is None else index.rows(torch.randn(index.samples, cond_dim), "sample")
    out = single(torch.randn(*index.shape, dim), cond, context(index))
    assert out.dtype == torch.float32, f"a float32 block gives {out.dtype} from float32 tokens"


def check_modulation(source: ModulationSource, cond_dim: int, width: int) -> None:
    """Check a modulation source: rows in, rows ``width`` wide out, each from its own row alone; index and owner kept.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet import AdaLNZero
        >>> check_modulation(AdaLNZero(8, 16), cond_dim=16, width=24)
    """
    cond = mixtures()["packed"].rows(torch.randn(4, cond_dim), "sample")
    source = _randomised(copy.deepcopy(source))
    out = source(cond)
    assert out.values.shape == (4, width), f"the rows have shape {tuple(out.values.shape)}, expected {(4, width)}"
    assert out.index is cond.index and out.owner is cond.owner, "the rows lost their index or their owner"
    for i in range(4):
        same(f"row {i} alone", source(Rows(cond.values[i : i + 1])).values, out.values[i : i + 1], 1e-5)
    check_module("the modulation source", source, out.values.square().sum())


def check_positions(positions: Positions, dim: int) -> None:
    """Check a position code: ``(*lead, dim)``, a function of each token's coordinates alone, that tells axes apart.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet import SinCos3d
        >>> check_positions(SinCos3d(32), 32)
    """
    for name, layout in mixtures().items():
        coords = layout.on("cpu").coords
        out = positions(coords)
        assert out.shape == (*coords.shape[:-1], dim), f"layout {name!r}: shape {tuple(out.shape)} for {dim} features"
        assert out.is_floating_point() and out.isfinite().all(), f"layout {name!r}: not finite floating point"
        order = torch.randperm(coords.reshape(-1, 3).shape[0])
        shuffled = positions(coords.reshape(-1, 3)[order])
        same(f"layout {name!r}: tokens in another order", shuffled, out.reshape(-1, dim)[order], 1e-6)
    steps = positions(torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    for i, a in enumerate(steps):
        for b in steps[i + 1 :]:
            assert (a - b).norm() > 1e-6 * a.norm(), "two cells that differ in one axis have the same position"


def _check_packing(
    name: str,
    block: Block,
    layout: TokenLayout,
    level: Level,
    dim: int,
    cond_dim: int | None,
    context: Callable[[LayoutIndex], Mapping[str, Any]],
) -> None:
    index = layout.on("cpu")
    count = index.row_counts(level)[0]
    x = torch.randn(*layout.shape, dim, dtype=torch.float64, requires_grad=True)
    values = None if cond_dim is None else torch.randn(count, cond_dim, dtype=torch.float64)
    out = block(x, None if values is None else index.rows(values, level), context(index))
    assert out.shape == x.shape, f"{name}: tokens {tuple(x.shape)} became {tuple(out.shape)}"
    assert out.dtype == x.dtype, f"{name}: tokens in {x.dtype} became {out.dtype}"
    weight = torch.randn_like(out)
    loss = (out * weight)[index.valid].sum()
    (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
    check_module(f"{name}: the block", block, loss)
    owner = index.lift(torch.arange(index.samples), level)
    for i, where in pieces(layout):
        one = alone(layout, i).on("cpu")
        piece = x.detach().reshape(-1, dim)[where].clone().requires_grad_()
        cond = None if values is None else one.rows(_values_of(values, owner, i, where, level), level)
        lone = block(piece, cond, context(one))
        same(f"{name}: sample {i} packed and alone", out.reshape(-1, dim)[where], lone, 1e-11)
        (lone_grad,) = torch.autograd.grad((lone * weight.reshape(-1, dim)[where]).sum(), piece)
        same(f"{name}: the gradient of sample {i} packed and alone", grad.reshape(-1, dim)[where], lone_grad, 1e-11)


def _values_of(values: Tensor, owner: Tensor, i: int, where: slice, level: Level) -> Tensor:
    return values[where] if level == "token" else values[owner == i]


def _randomised(module: Module) -> Module:
    """Random weights where there are any: blocks that start as the identity would pass unseen."""
    if isinstance(module, nn.Module):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return module
