"""bfloat16 attention on the CPU by matrix products: faster than PyTorch's fused kernel, and about twice as rounded."""

from jaxtyping import Float
from torch import Tensor, bfloat16

from tubelet.attention.backends.sdpa import by_plan, forward_mode, plannable
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["ChunkedBackend"]


class ChunkedBackend:
    """Plans as ``sdpa`` makes them, their runs computed by :mod:`tubelet.attention.chunks`.

    The scores are rounded to bfloat16 before their softmax, so that the error is about twice that of PyTorch's fused
    kernel (at most 2.2 times); ``auto`` therefore never takes this backend: name it. Gradients are computed by the
    same float32 kernels as those of ``sdpa``, from this forward's output and log-sum-exp.

    Example:
        >>> import torch
        >>> from tubelet import attend
        >>> attend(*torch.randn(3, 2, 6, 4, 8).bfloat16(), backend="chunked").shape
        torch.Size([2, 6, 4, 8])
    """

    name = "chunked"

    def supports(self, request: AttentionRequest) -> Answer:
        """bfloat16 on the CPU: every pattern on every layout, without a bias."""
        if request.dtype != bfloat16 or request.device not in ("cpu", "meta"):
            return Answer(
                f"chunked serves torch.bfloat16 on the CPU, got {request.dtype} on {request.device}; try sdpa"
            )
        if request.bias is not None:
            return Answer("chunked takes no bias; backend='reference' serves it on any request")
        if forward_mode():
            return Answer("chunked has no forward-mode derivative; backend='reference' has")
        return plannable(request)

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        return by_plan(q, k, v, request, "chunked")
