"""PyTorch's fused attention: dense rows go to it as views, everything else by a plan of equal groups."""

from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tubelet.attention.backends.biased import attention_with_bias, plannable_bias
from tubelet.attention.backends.reference import bias_of
from tubelet.attention.patterns import Joint
from tubelet.attention.planned import Tables, planned_attention, vmapped
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["SdpaBackend", "by_plan", "forward_mode", "plannable", "tables_of", "whole_rows"]


_HOPPER: Final = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class SdpaBackend:
    """``torch.nn.functional.scaled_dot_product_attention`` behind the contract.

    Dense rows under ``Joint()`` are one call. Any other pattern or layout is planned on the host
    (:mod:`tubelet.attention.plan`) and run group by group in one operator: affine groups as views, others gathered in
    pieces that stay in the cache, patterns of which only the predicate is known by blocks of queries.

    Example:
        >>> import torch
        >>> from tubelet import attend
        >>> attend(*torch.randn(3, 2, 6, 4, 8), backend="sdpa").shape
        torch.Size([2, 6, 4, 8])
    """

    name = "sdpa"

    def supports(self, request: AttentionRequest) -> Answer:
        """Every pattern on every layout; a bias on dense rows under ``Joint()``, a value of one on whole grids, too."""
        if forward_mode():
            return Answer("sdpa has no forward-mode derivative; backend='reference' has")
        if whole_rows(request):
            return _keeps_bias(request)
        found = plannable(request)
        if request.bias is None or not found:
            return found
        return plannable_bias(request) and _keeps_bias(request)

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        if not whole_rows(request):
            if request.bias is None:
                return by_plan(q, k, v, request, "fused")
            out = attention_with_bias(_flat(q), _flat(k), _flat(v), request)
            return out if q.ndim == 3 else out.view(*q.shape[:-1], v.shape[-1])
        if q.ndim == 3:  # without a batch axis PyTorch takes its unfused path, four times slower
            return self.run(q[None], k[None], v[None], request)[0]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        bias = bias_of(request)
        if bias is not None:  # PyTorch wants at least the two axes of a score
            bias = bias.to(q.dtype).expand(*bias.shape[:-2], q.shape[-2], k.shape[-2])
        gqa = request.groups > 1
        with _kernels(request.device):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=request.scale, enable_gqa=gqa)
        return out.transpose(1, 2)


def _kernels(device: str) -> AbstractContextManager[None]:
    """On Hopper cuDNN first, which PyTorch by itself does not take there; elsewhere PyTorch's own order."""
    if device.startswith("cuda") and _major(device) == 9:
        return sdpa_kernel(_HOPPER, set_priority=True)
    return nullcontext()


def _major(device: str) -> int:
    return torch.cuda.get_device_capability(device)[0]


# what torch.compiler.assume_constant_result sets, without importing the compiler
_major._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken, which no fused kernel has.

    Example:
        >>> forward_mode()
        False
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _nested() -> bool:
    """Whether a transform of ``torch.func`` differentiates what another one differentiates."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    kinds = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
    return sum(level.key() in kinds for level in stack) > 1


def _keeps_bias(request: AttentionRequest) -> Answer:
    """PyTorch wants a bias in the dtype of q: a wider one would be rounded, or overflow."""
    bias = request.bias
    held = bias if isinstance(bias, Tensor) else getattr(bias, "table", None)
    if held is None or torch.promote_types(held.dtype, request.dtype) == request.dtype:
        return Answer()
    return Answer(
        f"sdpa would round a bias in {held.dtype} to q's {request.dtype}; give it in that, or backend='reference'"
    )


def whole_rows(request: AttentionRequest) -> bool:
    """Whether each row of queries attends its whole row of keys.

    Example:
        >>> whole_rows(AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 1, 4), torch.float32, "cpu", 0.5, None))
        True
    """
    same_rank = len(request.shape) == len(request.kv_shape)
    return isinstance(request.pattern, Joint) and not request.ragged and same_rank


def plannable(request: AttentionRequest) -> Answer:
    """Whether a plan can be made for the pattern.

    Example:
        >>> request = AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 1, 4), torch.float32, "cpu", 0.5, None)
        >>> bool(plannable(request))
        True
    """
    if type(request.pattern).__hash__ is None:
        return Answer(f"a pattern must be a hashable value to be planned, and {type(request.pattern)} is not")
    if not torch.compiler.is_compiling() and _nested():
        return Answer("planned attention has no second derivative; backend='reference' has")
    nameless = not getattr(request.pattern, "spec", "")
    if nameless and (torch.compiler.is_compiling() or request.device == "meta" or vmapped()):
        return Answer(
            f"compiled or vmapped code holds a pattern by its spec, which {type(request.pattern).__name__} lacks; "
            "backend='reference' traces its predicate"
        )
    return Answer()


def by_plan(
    q: Float[Tensor, "*lead h d"],
    k: Float[Tensor, "*kv_lead hk d"],
    v: Float[Tensor, "*kv_lead hk e"],
    request: AttentionRequest,
    kernel: str,
) -> Float[Tensor, "*lead h e"]:
    """Serve a request by its plan with one of :data:`tubelet.attention.planned.KERNELS`.

    Example:
        >>> request = AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 2, 4), torch.float32, "cpu", 0.5, None)
        >>> by_plan(*torch.randn(3, 8, 2, 4), request, "fused").shape
        torch.Size([8, 2, 4])
    """
    flat_q, flat_k, flat_v = _flat(q), _flat(k), _flat(v)
    out = planned_attention(flat_q, flat_k, flat_v, request.pattern, tables_of(request), request.scale, kernel)
    return out if q.ndim == 3 else out.view(*q.shape[:-1], v.shape[-1])


def _flat(x: Tensor) -> Tensor:
    return x if x.ndim == 3 else x.flatten(0, 1)


def tables_of(request: AttentionRequest) -> Tables:
    """The host tables of a request; plain rows are grids of one line.

    Example:
        >>> request = AttentionRequest(Joint(), None, None, (2, 8, 2, 4), (2, 8, 2, 4), torch.float32, "cpu", 0.5, None)
        >>> tables_of(request).q.tolist()
        [[0, 8, 0, 1, 1, 8], [8, 8, 0, 1, 1, 8]]
    """
    index, keys = request.index, request.kv_index
    table = _rows(request.shape) if index is None else index.table
    if keys is not None:
        return Tables(table, keys.table, None if index is None else index.kept, keys.kept)
    if index is not None:
        return Tables(table, None, index.kept)
    return Tables(table, None if request.shape[:-2] == request.kv_shape[:-2] else _rows(request.kv_shape))


def _rows(shape: tuple[int, ...]) -> Int[Tensor, "b 6"]:
    """The host table of plain tokens: each row is a grid of one line."""
    batch, length = shape[0] if len(shape) == 4 else 1, shape[-3]
    row = torch.tensor([0, length, 0, 1, 1, length] if length else [0] * 6)
    steps = torch.tensor([length, 0, 0, 0, 0, 0])
    return row + torch.arange(batch)[:, None] * steps
