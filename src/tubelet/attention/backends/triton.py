"""Our own kernels: tiles of lines and boxes, and groups that are affine in raster order, read where they lie."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.backends.sdpa import by_plan, forward_mode, plannable, tables_of
from tubelet.attention.planned import as_bytes
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["TritonBackend"]


class TritonBackend:
    """:func:`tubelet.kernels.tiled_attention` and :func:`tubelet.kernels.grouped_attention` behind the contract.

    Tiles serve joint attention, self and cross, and patterns of spans (neighbourhoods, sliding tiles, windows, causal
    frames, time, space) in one launch, whatever the mixture of grids and text. Equal groups in one run share tiles;
    strides take a launch a run. Nothing is permuted or gathered. No GPU time has been measured, so ``auto`` does not
    take it (:mod:`tubelet.attention.in_place` says which of the two serves).

    Example:
        >>> from tubelet.attention import backends
        >>> backends()["triton"].name
        'triton'
    """

    name = "triton"

    def supports(self, request: AttentionRequest) -> Answer:
        """Patterns of spans, and plans of affine groups without masks, float32 and half precisions on CUDA; no bias.

        Heads are up to 256 wide, those of groups 128.

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
    reason = in_place.refusal(plan, width, request.v_dim or width, request.scale, request.grad)
    return (
        Answer() if reason is None else Answer(f"triton reads affine groups in place, but {reason}; {in_place.INSTEAD}")
    )
