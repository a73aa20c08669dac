"""Cross-attention to a text and to an image whose keys and values have weights of their own.

The two results are summed before the last projection, as in IP-Adapter (Ye et al., 2023, arXiv:2308.06721, section
3.2.2) and the image-to-video models of Wan 2.1.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.dispatch import attend
from tubelet.attention.projections import check_width, normed_heads, project, qk_norms, split, width_of_heads, xavier_
from tubelet.layout import LayoutIndex, TokenLayout

__all__ = ["DecoupledCrossAttention"]

Layout = TokenLayout | LayoutIndex | None


class DecoupledCrossAttention(nn.Module):
    """Attention from tokens to a text and, by other keys and values, to an image of the same samples.

    Args:
        dim: width of the tokens.
        heads: number of heads.
        context_dim, image_dim: width of the tokens of text and image; None means ``dim``.
        head_dim, bias, qk_norm, across_heads, backend: as in :class:`Attention`; the image's keys have their own norm.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, the width of an input is another than the module's.

    Example:
        >>> attention = DecoupledCrossAttention(32, heads=4, context_dim=16)
        >>> attention(torch.randn(2, 10, 32), torch.randn(2, 3, 16), torch.randn(2, 7, 32)).shape
        torch.Size([2, 10, 32])
    """

    normed_heads: Callable[..., Tensor] = staticmethod(normed_heads)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        image_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        across_heads: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        image_dim = dim if image_dim is None else image_dim
        head_dim = width_of_heads(dim, heads, head_dim)
        inner = heads * head_dim
        self.head_dim, self.backend = head_dim, backend
        self.norm_width = inner if across_heads else head_dim
        self.q_proj = nn.Linear(dim, inner, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(context_dim, inner, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(context_dim, inner, bias, device=device, dtype=dtype)
        self.image_k_proj = nn.Linear(image_dim, inner, bias, device=device, dtype=dtype)
        self.image_v_proj = nn.Linear(image_dim, inner, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, dim, bias, device=device, dtype=dtype)
        self.q_norm, self.k_norm = qk_norms(qk_norm, (self.norm_width,) * 2, device, dtype)
        self.image_k_norm, _ = qk_norms(qk_norm, (self.norm_width,) * 2, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias."""
        xavier_(self.q_proj, self.k_proj, self.v_proj, self.image_k_proj, self.image_v_proj, self.out_proj)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        text: Float[Tensor, "*text_lead c"],
        image: Float[Tensor, "*image_lead e"],
        layout: Layout = None,
        text_layout: Layout = None,
        image_layout: Layout = None,
    ) -> Float[Tensor, "*lead d"]:
        """Attend from the tokens of each sample to its ``text`` and to its ``image``; a sample may lack either."""
        for name, tokens, proj in (
            ("x", x, self.q_proj),
            ("text", text, self.k_proj),
            ("image", image, self.image_k_proj),
        ):
            check_width(name, tokens, proj)
        q = self.normed_heads(self.q_norm, self.q_proj(x), self.norm_width, self.head_dim)
        k = self.normed_heads(self.k_norm, self.k_proj(text), self.norm_width, self.head_dim)
        image_k = self.normed_heads(self.image_k_norm, self.image_k_proj(image), self.norm_width, self.head_dim)
        v, image_v = split(self.v_proj(text), self.head_dim), split(self.image_v_proj(image), self.head_dim)
        q = q.to(v.dtype)
        out = attend(q, k.to(v.dtype), v, layout=layout, kv_layout=text_layout, backend=self.backend)
        seen = attend(q, image_k.to(v.dtype), image_v, layout=layout, kv_layout=image_layout, backend=self.backend)
        return project(self.out_proj, out + seen)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            text: Float[Tensor, "*text_lead c"],
            image: Float[Tensor, "*image_lead e"],
            layout: Layout = None,
            text_layout: Layout = None,
            image_layout: Layout = None,
        ) -> Float[Tensor, "*lead d"]: ...
