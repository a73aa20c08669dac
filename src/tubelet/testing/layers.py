"""Checks of modulation sources and position codes. Shapes: tokens ``(*lead, d)``, rows ``(r, ...)``."""

import copy

import torch

from tubelet.layout import Rows
from tubelet.protocols import ModulationSource, Positions
from tubelet.testing.mixtures import check_module, mixtures, randomised, same

__all__ = ["check_modulation", "check_positions"]


def check_modulation(source: ModulationSource, cond_dim: int, width: int) -> None:
    """Check a modulation source: rows in, rows ``width`` wide out, each from its own row alone.

    Index, owner and dtype are kept.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet import AdaLNZero
        >>> check_modulation(AdaLNZero(8, 16), cond_dim=16, width=24)
    """
    cond = mixtures()["packed"].rows(torch.randn(4, cond_dim), "sample")
    source = randomised(copy.deepcopy(source))
    out = source(cond)
    assert out.values.shape == (4, width), f"the rows have shape {tuple(out.values.shape)}, expected {(4, width)}"
    assert out.index is cond.index and out.owner is cond.owner, "the rows lost their index or their owner"
    assert out.values.dtype == cond.values.dtype, f"rows in {cond.values.dtype} became {out.values.dtype}"
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
