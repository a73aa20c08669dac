"""Our own kernels for patterns whose groups are affine in raster order: every group is read where it lies."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.backends.sdpa import by_plan, forward_mode, plannable, tables_of
from tubelet.attention.planned import as_bytes
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["TritonBackend"]


class TritonBackend:
    """:func:`tubelet.kernels.grouped_attention` behind the contract: temporal, spatial, strided, windows, joint.

    One launch for each run of the plan, on packed mixtures with text too; nothing is permuted or gathered. No GPU time
    has been measured, so ``auto`` does not take it.

    Example:
        >>> from tubelet.attention import backends
        >>> backends()["triton"].name
        'triton'
    """

    name = "triton"

    def supports(self, request: AttentionRequest) -> Answer:
        """Plans of affine groups without masks, heads up to 128 wide, float32 and half precisions on CUDA; no bias.

        In compiled code the plan is made where it runs, and one that cannot be served is an error there.
        """
        from tubelet.kernels import SERVED, absence  # here, where it serves: they register operators, which takes time

        if request.bias is not None:
            return Answer("triton takes no bias; backend='flex' does")
        if request.dtype not in SERVED:
            return Answer(f"triton serves float32 and half precisions, not {request.dtype}")
        missing = absence(request.device, [request.dtype])
        if missing is not None:
            return Answer(f"triton cannot run: {missing}")
        if forward_mode():
            return Answer("triton has no forward-mode derivative; backend='reference' has")
        answer = plannable(request)
        if not answer or torch.compiler.is_compiling():
            return answer
        return _readable(request)

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        return by_plan(q, k, v, request, "triton")


def _readable(request: AttentionRequest) -> Answer:
    """Whether the request's plan is one that the kernels read."""
    from tubelet.attention import in_place

    pattern: Any = request.pattern
    table, *others = (None if x is None else as_bytes(x) for x in tables_of(request))
    assert table is not None
    plan = in_place.plan(pattern, table, *others, heads=request.shape[-2])
    width = request.shape[-1]
    reason = in_place.refusal(plan, width, request.v_dim or width, request.grad)
    return (
        Answer() if reason is None else Answer(f"triton reads affine groups in place, but {reason}; {in_place.INSTEAD}")
    )
