"""The most memory a call will hold, counted from a dry run: the same operations on tensors that have sizes but no data.

Each storage counts from the operation that makes it until nothing refers to it. A convolution also counts what it takes
while it runs, which on a CPU is more than its result: oneDNN copies input, weights and result to a layout of blocks of
16 channels, or, where channels come last, the weights alone; the native one, which PyTorch takes for float64 and for
small inputs, unfolds the input to a column for every output position. On other devices such working memory is not
counted.
"""

import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["predicted_peak"]

_BLOCK = 16  # channels that oneDNN's layouts hold together on the widest vector units; narrower ones take 8
_SCRATCH = 2**13 + 2**6  # bytes of small buffers that a convolution takes besides
_NUMBER = 16  # bytes of a number of Python's, which is a tensor for a moment
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


def predicted_peak(module: nn.Module, call: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """Bytes that ``call(*tensors)`` holds at most beyond its arguments and the module's weights; its result counts.

    Nothing is computed, and nothing of that size is allocated. The tensors have the module's dtype and device.

    Args:
        module: whose weights the call uses.
        call: what is called, without gradients.
        shapes: of the tensors that it is called with.

    Example:
        >>> linear = nn.Linear(8, 16)
        >>> predicted_peak(linear, lambda x: torch.relu(linear(x)), (4, 8))
        512
    """
    held = [*module.parameters(), *module.buffers()]
    like = next((tensor for tensor in held if tensor.is_floating_point()), torch.empty(0))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    given = [fake.from_tensor(tensor) for tensor in held]
    with fake, torch.no_grad():
        inputs = [torch.empty(shape, dtype=like.dtype, device=like.device) for shape in shapes]
        with _Counted([*given, *inputs]) as counted:
            call(*inputs)
        most: int = counted.most
    return most


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.most = 0
        self.sizes = {_key(tensor): 0 for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = self.held
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor) and _key(leaf) not in self.sizes:
                self._begin(leaf)
        if func is torch.ops.aten.convolution.default:
            self.most = max(self.most, before + _convolution_peak(out, *args) + _SCRATCH)
        elif func in _PRODUCTS:
            self.most = max(self.most, self.held + _product_buffers(args[-2], args[-1]))
        elif func.name() == "mkldnn::_linear_pointwise":
            self.most = max(self.most, self.held + _product_buffers(args[0], args[1].mT, mkl=False))
        numbers = sum(isinstance(arg, (int, float)) for arg in args)
        self.most = max(self.most, self.held + _NUMBER * numbers)
        return out

    def _begin(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        self.sizes[key] = storage.nbytes()
        self.held += self.sizes[key]
        weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self.held -= self.sizes.pop(key)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _convolution_peak(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> int:
    """The most that a convolution holds while it runs, its result included."""
    if x.device.type != "cpu":
        return _size(out)
    sized = [None if tensor is None else _placeholder(tensor) for tensor in (x, weight, bias)]
    backend, groups = torch._C._select_conv_backend(*sized, *how).name, int(how[-1])
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if "Mkldnn" in backend and out.is_contiguous(memory_format=layout) and not out.is_contiguous():
        return _size(out) + _filters(weight, groups) + _copies(layout, x, weight)
    copies = _copies(torch.contiguous_format, x, weight)
    if "Slow" in backend:
        parts = _size(out) if groups > 1 else 0
        return _size(out) + parts + _columns(out, weight) // groups + copies
    if "Mkldnn" in backend and groups > 1 and weight.shape[1] == 1:  # such weights are of both formats: theirs wins
        return _size(x) + 2 * _size(out) + _filters(weight, groups) + copies
    if "Mkldnn" in backend:
        return _blocked_peak(out, x, weight, groups) + copies
    return _size(out) + copies


def _copies(layout: torch.memory_format, *tensors: Tensor) -> int:
    """Of the tensors that are in another format."""
    return sum(_size(tensor) for tensor in tensors if not tensor.is_contiguous(memory_format=layout))


def _product_buffers(x: Tensor, y: Tensor, mkl: bool = True) -> int:
    """What a matrix product of oneDNN's takes besides its result: pieces of one factor, and in half precision sums.

    In float32 PyTorch's own products are MKL's and take nothing, and oneDNN copies no factor whose columns lie dense.
    """
    half = x.element_size() < 4
    dense = y.stride(-2) != 1 and y.shape[-1] % 512 != 0
    if x.device.type != "cpu" or x.element_size() > 4 or (not half and mkl):
        return 0
    deep = _padded(x.shape[-1], 32 if half else 16)
    pieces = 64 * min(deep, 1024) * x.element_size() if half or not dense else 0
    sums = 64 * min(x.shape[-2], 256) * 4 if half else 0
    turned = x.stride(-1) != 1
    return 512 + torch.get_num_threads() * (pieces + sums + 640 * (1 + turned)) + sum(map(_interleaved, (x, y)))


def _interleaved(factor: Tensor) -> int:
    """A copy of a batch of matrices that do not lie one after the other, such as one shared by all."""
    return _size(factor) if factor.ndim == 3 and factor.stride(0) < max(factor.stride()[1:]) else 0


def _placeholder(tensor: Tensor) -> Tensor:
    """A tensor of these sizes on one number of memory, for questions that read sizes alone."""
    return torch.empty(1, dtype=tensor.dtype, device="meta").new_empty(1, device="cpu").expand(tensor.shape)


def _columns(out: Tensor, weight: Tensor) -> int:
    """The unfolded input of a native convolution; a kernel of one position needs none."""
    kernel = prod(weight.shape[1:])
    alone = prod(weight.shape[2:]) == 1
    return 0 if alone else out.shape[0] * kernel * prod(out.shape[2:]) * out.element_size()


def _blocked_peak(out: Tensor, x: Tensor, weight: Tensor, groups: int) -> int:
    """Copies in blocks: weights and result live through, the input's until the result is copied back.

    Few input channels are read as they are. A kernel of one position is a matrix product, whose sums in half precision
    are kept in float32, one sample for each thread.
    """
    alone = prod(weight.shape[2:]) == 1
    copied = _blocks(x) if alone or x.shape[1] >= _BLOCK else 0
    if alone and out.element_size() < 4:
        copied += torch.get_num_threads() * 4 * _blocks(out[:1]) // out.element_size()
    return _filters(weight, groups) + _blocks(out) + max(copied, _size(out))


def _filters(weight: Tensor, groups: int) -> int:
    before = weight.shape[1] if groups > 1 else _padded(weight.shape[1])
    return _padded(weight.shape[0]) * before * prod(weight.shape[2:]) * weight.element_size()


def _blocks(x: Tensor) -> int:
    return x.shape[0] * _padded(x.shape[1]) * prod(x.shape[2:]) * x.element_size()


def _padded(channels: int, block: int = _BLOCK) -> int:
    return -(-channels // block) * block


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
