"""The check of transformer blocks. Shapes: tokens ``(*lead, d)``, rows of conditioning ``(r, cond)``."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tubelet.layout import Grid, LayoutIndex, Level, Rows, TokenLayout
from tubelet.protocols import Block
from tubelet.testing.mixtures import alone, check_construction, check_module, mixtures, pieces, randomised, same

__all__ = ["check_block"]


def check_block(
    make: Callable[..., Block],
    dim: int,
    *,
    cond_dim: int | None = None,
    context: Callable[[LayoutIndex], Mapping[str, Any]] = lambda index: {"layout": index},
    compiled: bool = False,
) -> None:
    """Check a transformer block.

    It constructs on the meta device, and initialises itself after ``to_empty``; keeps shape and dtype, in half
    precision and under autocast too; a packed sample equals the sample alone, in output and input gradients, with
    conditioning per sample, frame and token; other finite numbers in one sample change no bit of the others; training
    and evaluation give the same; gradients are finite; the state dict round-trips.

    Args:
        make: makes the block; takes the keywords ``device`` and ``dtype``.
        dim: width of the tokens.
        cond_dim: width of the conditioning; None for a block without.
        context: makes the block's context from the index of a layout.
        compiled: also compile it (``fullgraph``): one graph must serve several layouts of a capacity, with the results
            of eager code. This clears what ``torch.compile`` has in its caches.

    Raises:
        AssertionError: what differs, and on which layout.

    Example:
        >>> from tubelet import Attention, Branch, TransformerBlock
        >>> check_block(lambda **on: TransformerBlock([Branch(Attention(8, 2, **on), takes=["layout"])]), dim=8)
    """
    check_construction("the block", make)
    block = randomised(make(device="cpu", dtype=torch.float64))
    levels: tuple[Level, ...] = ("sample",) if cond_dim is None else ("sample", "frame", "token")
    for name, layout in mixtures().items():
        for level in levels:
            title = f"layout {name!r}, conditioning per {level}"
            given = _Given.drawn(layout, level, dim, cond_dim, context)
            out, grad = _check_packing(title, block, given)
            _check_others(title, block, given, out, grad)
    _check_modes(block, given)
    _check_precisions(make, dim, cond_dim, context)
    if compiled:
        _check_compiled(randomised(make(device="cpu", dtype=torch.float32)), dim, cond_dim, context)


class _Given(NamedTuple):
    """What a block is called with on one layout."""

    layout: TokenLayout
    level: Level
    x: Tensor
    values: Tensor | None
    context: Callable[[LayoutIndex], Mapping[str, Any]]

    @staticmethod
    def drawn(
        layout: TokenLayout,
        level: Level,
        dim: int,
        cond_dim: int | None,
        context: Callable[[LayoutIndex], Mapping[str, Any]],
        dtype: torch.dtype = torch.float64,
    ) -> "_Given":
        """Random tokens and rows of conditioning."""
        count = layout.on("cpu").row_counts(level)[0]
        values = None if cond_dim is None else torch.randn(count, cond_dim, dtype=dtype)
        return _Given(layout, level, torch.randn(*layout.shape, dim, dtype=dtype), values, context)

    def run(self, block: Block, x: Tensor) -> Tensor:
        """The block's output for other tokens."""
        index = self.layout.on("cpu")
        return block(x, None if self.values is None else index.rows(self.values, self.level), self.context(index))

    def alone(self, i: int, where: slice) -> "_Given":
        """The tokens and rows of sample ``i``."""
        index = self.layout.on("cpu")
        owner, values = index.lift(torch.arange(index.samples), self.level), self.values
        if values is not None:
            values = values[where] if self.level == "token" else values[owner == i]
        x = self.x.reshape(-1, self.x.shape[-1])[where]
        return self._replace(layout=alone(self.layout, i), x=x, values=values)


def _check_packing(name: str, block: Block, given: _Given) -> tuple[Tensor, Tensor]:
    """Packed equals separate; the output and the gradient of its square in the tokens."""
    x = given.x.clone().requires_grad_()
    out = given.run(block, x)
    assert out.shape == x.shape, f"{name}: tokens {tuple(x.shape)} became {tuple(out.shape)}"
    assert out.dtype == x.dtype, f"{name}: tokens in {x.dtype} became {out.dtype}"
    loss = out[given.layout.on("cpu").valid].square().sum()
    (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
    check_module(f"{name}: the block", block, loss)
    flat_out, flat_grad = (y.reshape(-1, y.shape[-1]) for y in (out, grad))
    for i, where in pieces(given.layout):
        one = given.alone(i, where)
        piece = one.x.clone().requires_grad_()
        lone = one.run(block, piece)
        same(f"{name}: sample {i} packed and alone", flat_out[where], lone, 1e-11)
        (lone_grad,) = torch.autograd.grad(lone.square().sum(), piece)
        same(f"{name}: the gradient of sample {i} packed and alone", flat_grad[where], lone_grad, 1e-11)
    return out.detach(), grad


def _check_others(name: str, block: Block, given: _Given, out: Tensor, grad: Tensor) -> None:
    """Other finite numbers in the longest sample leave every bit of the others, and of their gradients, as it was."""
    changed, where = max(pieces(given.layout), key=lambda piece: piece[1].stop - piece[1].start)
    mine = torch.zeros(out.shape[:-1].numel(), dtype=torch.bool)
    mine[where] = True
    mine = mine.view(out.shape[:-1])
    x = torch.where(mine[..., None], 3 - 2 * given.x, given.x).requires_grad_()
    new = given.run(block, x)
    (new_grad,) = torch.autograd.grad(new[given.layout.on("cpu").valid].square().sum(), x)
    rest = given.layout.on("cpu").valid & ~mine
    for what, before, after in (("output", out, new.detach()), ("gradient", grad, new_grad)):
        equal = torch.equal(before[rest], after[rest])
        assert equal, f"{name}: other numbers in sample {changed} change the {what} of other samples"


def _check_modes(block: Block, given: _Given) -> None:
    """Training and evaluation are one function."""
    if isinstance(block, nn.Module):
        with torch.no_grad():
            trained, evaluated = given.run(block.train(), given.x), given.run(block.eval(), given.x)
        same("the block in eval() and in train()", evaluated, trained, 0.0)
        block.train()


def _check_precisions(
    make: Callable[..., Block],
    dim: int,
    cond_dim: int | None,
    context: Callable[[LayoutIndex], Mapping[str, Any]],
) -> None:
    """The tokens' dtype is kept: in float32, in bfloat16, and where autocast computes in bfloat16."""
    layout = mixtures()["packed"]
    for dtype in (torch.float32, torch.bfloat16):
        block = randomised(make(device="cpu", dtype=dtype))
        given = _Given.drawn(layout, "sample", dim, cond_dim, context, dtype)
        with torch.no_grad():
            out = given.run(block, given.x)
        assert out.dtype == dtype, f"a {_short(dtype)} block gives {out.dtype} from {_short(dtype)} tokens"
    single = randomised(make(device="cpu", dtype=torch.float32))
    given = _Given.drawn(layout, "sample", dim, cond_dim, context, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = given.run(single, given.x)
    assert out.dtype == torch.float32, f"under autocast a float32 block gives {out.dtype} from float32 tokens"
    with torch.no_grad():
        same("the block under autocast to bfloat16", out, given.run(single, given.x), 0.1)


def _check_compiled(
    block: Block,
    dim: int,
    cond_dim: int | None,
    context: Callable[[LayoutIndex], Mapping[str, Any]],
) -> None:
    """One graph for the layouts of a capacity, equal to eager code forward and backward."""
    graphs: list[Any] = []

    def counting(graph: Any, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    def call(x: Tensor, cond: Rows | None, given: Mapping[str, Any]) -> Tensor:
        return block(x, cond, given)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=counting)
    for grids in ([Grid(2, 2, 3), Grid(1, 2, 2)], [Grid(1, 1, 1)], [Grid(3, 2, 1), Grid(1, 1, 1), Grid(2, 2, 2)]):
        index = TokenLayout.packed(grids, range(len(grids)), capacity=32).on("cpu")
        x = torch.randn(32, dim, requires_grad=True)
        cond = None if cond_dim is None else index.rows(torch.randn(index.row_counts("sample")[1], cond_dim), "sample")
        out, eager = (function(x, cond, context(index)) for function in (compiled, call))
        same(f"compiled, grids {grids}: the output", out[index.valid], eager[index.valid], 1e-5)
        got, want = (torch.autograd.grad(y[index.valid].square().sum(), x)[0] for y in (out, eager))
        same(f"compiled, grids {grids}: the gradient", got, want, 1e-5)
    assert len(graphs) == 1, f"compiled: {len(graphs)} graphs for 3 layouts of one capacity"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
