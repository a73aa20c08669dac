"""Cross-attention whose keys are the tokens themselves and the text, under one softmax.

W.A.L.T (arXiv:2312.06662, section 3.3): in place of the text alone, keys and values are those of the queries' own
window with the text behind it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.dispatch import attend
from tubelet.attention.patterns import Joint
from tubelet.attention.projections import check_width, normed_heads, project, qk_norms, split, width_of_heads, xavier_
from tubelet.layout import JointIndex, LayoutIndex
from tubelet.protocols import Pattern

__all__ = ["JoinedCrossAttention"]


class JoinedCrossAttention(nn.Module):
    """Multi-head attention from tokens to the tokens that a pattern allows them, and to the text of their sample.

    Both are projected by the same weights; without text this is self-attention.

    Args:
        dim: width of the tokens and of the text.
        heads: number of heads.
        bias, qk_norm, backend: as in :class:`Attention`.
        pattern: which of the own tokens are attended.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads``; at the call, the width of an
            input is another than the module's.

    Example:
        >>> from tubelet import Grid, JointLayout, TokenLayout
        >>> text, video = TokenLayout.packed([None], [3]), TokenLayout.packed([Grid(1, 2, 2)])
        >>> joint = JointLayout((text, video)).on("cpu")
        >>> attention = JoinedCrossAttention(8, heads=2)
        >>> attention(torch.randn(4, 8), torch.randn(3, 8), video.on("cpu"), joint).shape
        torch.Size([4, 8])
    """

    normed_heads: Callable[..., Tensor] = staticmethod(normed_heads)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = width_of_heads(dim, heads, None)
        self.pattern, self.backend = pattern, backend
        self.q_proj = nn.Linear(dim, dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(dim, dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(dim, dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(dim, dim, bias, device=device, dtype=dtype)
        self.q_norm, self.k_norm = qk_norms(qk_norm, (self.head_dim, self.head_dim), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias."""
        xavier_(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        text: Float[Tensor, "*text_lead d"],
        layout: LayoutIndex,
        joint: JointIndex,
    ) -> Float[Tensor, "*lead d"]:
        """Attend from ``x`` to ``x`` and ``text``, merged by ``joint``, the text first."""
        check_width("x", x, self.q_proj)
        check_width("text", text, self.k_proj)
        merged = joint.merge(text, x)
        q = self.normed_heads(self.q_norm, self.q_proj(x), self.head_dim, self.head_dim)
        k = self.normed_heads(self.k_norm, self.k_proj(merged), self.head_dim, self.head_dim)
        v = split(self.v_proj(merged), self.head_dim)
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = attend(q, k, v, pattern=self.pattern, layout=layout, kv_layout=joint.index, backend=self.backend)
        return project(self.out_proj, out)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            text: Float[Tensor, "*text_lead d"],
            layout: LayoutIndex,
            joint: JointIndex,
        ) -> Float[Tensor, "*lead d"]: ...
