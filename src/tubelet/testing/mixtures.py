"""What every check shares: small mixed layouts, and one comparison that says what differs and by how much.

Errors are relative to the Frobenius norm of what is expected. Shapes: any.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tubelet.layout import Grid, TokenLayout

__all__ = ["mixtures", "same"]

Module = TypeVar("Module")


def mixtures(text: bool = True) -> dict[str, TokenLayout]:
    """Small layouts of every form by name: packed, with a capacity, with text, dense, padded, with dropped tokens.

    Args:
        text: also give layouts with text tokens.

    Example:
        >>> sorted(mixtures(text=False))
        ['capacity', 'dense', 'dropped', 'packed']
    """
    grids = [Grid(2, 2, 1), Grid(1, 1, 1), Grid(3, 1, 2), Grid(1, 2, 3)]
    found = {
        "packed": TokenLayout.packed(grids),
        "capacity": TokenLayout.packed(grids, capacity=24),
        "dense": TokenLayout.dense(3, Grid(2, 1, 2)),
        "dropped": TokenLayout.packed(grids).keep([0, 2, 3, 4, 7, 8, 12, 16]),
    }
    if text:
        found["text"] = TokenLayout.packed(grids, [2, 0, 1, 3], capacity=24)
        found["padded"] = TokenLayout.padded([3, 1, 4], 4)
    return found


def same(what: str, got: Shaped[Tensor, "..."], expected: Shaped[Tensor, "..."], bound: float) -> None:
    """Assert that shapes agree and that the error is at most ``bound`` of the expected norm.

    Raises:
        AssertionError: ``what``, and either both shapes or the relative error.

    Example:
        >>> same("the output", torch.ones(2), torch.ones(2), 0.0)
        >>> same("the output", torch.ones(2), torch.zeros(2), 0.0)
        Traceback (most recent call last):
        ...
        AssertionError: the output differs: error 1.4e+00, allowed 0.0e+00
    """
    assert got.shape == expected.shape, f"{what} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    error = (got.detach().double() - expected.detach().double()).norm().item()
    allowed = bound * expected.detach().double().norm().item()
    assert error <= allowed, f"{what} differs: error {error:.1e}, allowed {allowed:.1e}"


def pieces(layout: TokenLayout) -> Iterator[tuple[int, slice]]:
    """Each sample that has tokens, and where its tokens lie on the flattened token axis."""
    for i, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        if length:
            yield i, slice(start, start + length)


def alone(layout: TokenLayout, i: int) -> TokenLayout:
    """The packed layout of sample ``i`` by itself."""
    one = TokenLayout.packed([layout.grids[i]], [layout.text_lengths[i]])
    return one if layout.kept is None else one.keep(layout.kept[i])


def check_construction(name: str, make: Callable[..., object]) -> None:
    """Construct on the meta device; allocate; initialise: every parameter and buffer then holds finite numbers.

    Initialising is what FSDP does: ``reset_parameters()`` of each module that has one, the deepest first.
    """
    meta = make(device="meta", dtype=torch.float32)
    if not isinstance(meta, nn.Module):
        return
    tensors = {**dict(meta.named_parameters()), **dict(meta.named_buffers())}
    real = [key for key, value in tensors.items() if not value.is_meta and isinstance(value, nn.Parameter)]
    assert not real, f"{name}: constructed on meta, these parameters are real: {real}"
    empty = meta.to_empty(device="cpu")
    floating = {k: v for k, v in (*empty.named_parameters(), *empty.named_buffers()) if v.is_floating_point()}
    with torch.no_grad():
        for value in floating.values():
            value.fill_(torch.nan)
    for module in reversed(list(empty.modules())):
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    left = [key for key, value in floating.items() if not value.isfinite().all()]
    assert not left, f"{name}: after to_empty() and reset_parameters(), these are not initialised: {left}"


def check_module(name: str, module: object, loss: Float[Tensor, ""] | None = None) -> None:
    """Where it is an ``nn.Module``: the gradients of ``loss`` are finite, and its state dict round-trips exactly."""
    if not isinstance(module, nn.Module):
        return
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if loss is not None and trained:
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        for key, gradient in zip(trained, gradients, strict=True):
            assert gradient.isfinite().all(), f"{name}: the gradient of {key} is not finite"
    state = {key: value.clone() for key, value in module.state_dict().items()}
    module.load_state_dict(state, strict=True)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), f"{name}: {key} changed in a state-dict round trip"


def randomised(module: Module) -> Module:
    """Random weights where there are any: blocks that start as the identity would pass unseen."""
    if isinstance(module, nn.Module):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return module
