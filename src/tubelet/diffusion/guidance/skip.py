"""A model with some of its blocks skipped, or other submodules in their place: another module on the same parameters.

It is the worse version of a model that :func:`skip_layer` and :func:`autoguidance` need. The model itself does not
change and needs no flag; the two can be used, compiled and trained side by side.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

__all__ = ["Skip", "replaced", "skipped"]

M = TypeVar("M", bound=nn.Module)


class Skip(nn.Module):
    """Returns its first input: a residual block, or branch, that adds nothing.

    Example:
        >>> import torch
        >>> Skip()(torch.ones(1), None, {"layout": None})
        tensor([1.])
    """

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        """The first input, be it one tensor or the streams of several."""
        return x


def skipped(model: M, names: Sequence[str]) -> M:
    """A model that shares all parameters with ``model`` but passes by the named submodules.

    Whole blocks (``"blocks.7"``) make STG's residual skip and SLG (arXiv:2411.18664); single branches
    (``"blocks.7.branches.0"``, a self-attention) are finer.

    Args:
        model: not changed.
        names: submodules by their names in ``model.named_modules()``; each must give back what its first input is.

    Raises:
        ValueError: ``names`` is one text or empty, or holds a name that is no submodule.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> worse = skipped(model, ["1"])
        >>> worse[0] is model[0], worse[1]
        (True, Skip())
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"names must list submodules, got {names!r}")
    return replaced(model, {name: Skip() for name in names})


def replaced(model: M, modules: Mapping[str, nn.Module]) -> M:
    """A model that shares all else with ``model``, with other modules in place of the named ones.

    Args:
        model: not changed.
        modules: what stands where, by names in ``model.named_modules()``.

    Raises:
        ValueError: a name is no submodule.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replaced(model, {"1": nn.Tanh()})[1], model[1]
        (Tanh(), ReLU())
    """
    known = dict(model.named_modules(remove_duplicate=False))
    if missing := [name for name in modules if not name or name not in known]:
        raise ValueError(f"names {missing} are no submodules of {type(model).__name__}; it has {list(known)[1:9]} ...")
    copied = _shallow(model)
    for name, module in modules.items():
        *path, last = name.split(".")
        parent: nn.Module = copied
        for part in path:
            child = parent._modules[part]
            assert child is not None
            parent._modules[part] = _shallow(child)
            parent = parent._modules[part]  # type: ignore[assignment]
        parent._modules[last] = module
    return copied


def _shallow(module: M) -> M:
    """The same module object anew: own table of submodules, shared parameters and buffers."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    return new
