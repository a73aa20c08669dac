"""Self- and cross-attention as plain modules: projections, optional qk-norm and rotary positions around ``attend``.

Multi-head attention is Vaswani et al., 2017 (arXiv:1706.03762, section 3.2.2). Queries and keys may be normed head by
head, by RMS as in Stable Diffusion 3 (arXiv:2403.03206, section 5.3.2) or LayerNorm (CogVideoX), or over all heads at
once, before they are split (Wan, LTX): a norm is applied to groups as wide as it is. All projections are ``nn.Linear``
with the names that PEFT and torchao look for. Dense in, dense out; packed in, packed out: only ``attend`` reads the
rank.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.cache import FrameCache
from tubelet.attention.dispatch import attend
from tubelet.attention.patterns import Joint
from tubelet.attention.projections import (
    check_width,
    key_heads,
    normed_heads,
    project,
    qk_norms,
    split,
    width_of_heads,
    xavier_,
)
from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.positions import Rotary, apply_rope
from tubelet.protocols import Pattern

__all__ = ["Attention", "CrossAttention", "normed_and_turned"]

Layout = TokenLayout | LayoutIndex | None


def normed_and_turned(
    attention: "Attention", q: Float[Tensor, "*lead hd"], k: Float[Tensor, "*lead hkd"], rope: Rotary | None
) -> tuple[Float[Tensor, "*lead h d"], Float[Tensor, "*lead hk d"]]:
    """Queries and keys from their projections: normed, split into heads, and rotated where there are rotations.

    What :func:`tubelet.fused.use_kernels` replaces by one kernel.

    Example:
        >>> q, k = normed_and_turned(Attention(8, 2), torch.randn(3, 8), torch.randn(3, 8), None)
        >>> q.shape
        torch.Size([3, 2, 4])
    """
    q = normed_heads(attention.q_norm, q, attention.norm_widths[0], attention.head_dim)
    k = normed_heads(attention.k_norm, k, attention.norm_widths[1], attention.head_dim)
    return (q, k) if rope is None else (apply_rope(q, rope), apply_rope(k, rope))


class Attention(nn.Module):
    """Multi-head self-attention: ``Attention(384, heads=6)(x)`` on ``(b, n, 384)`` needs nothing else.

    Args:
        dim: width of the tokens.
        heads: number of query heads.
        kv_heads: number of key and value heads; None means ``heads``.
        head_dim: width of a head; None means ``dim // heads``.
        bias: give the projections a bias.
        qk_norm: makes the norm of queries and keys from its width, e.g. ``RMSNorm``; None for none.
        across_heads: that width is of all the heads together instead of ``head_dim``.
        out_bias: give the last projection a bias; None means ``bias``.
        out: project the heads' results back to ``dim``; without, they come out end to end.
        pattern, backend: as in :func:`tubelet.attend`.
        relative: makes the bias of the scores when it is called, such as :class:`RelativePositions`; None for none.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, the width of an input is another than the module's, or what the bias refuses.

    Example:
        >>> Attention(384, heads=6)(torch.randn(2, 10, 384)).shape
        torch.Size([2, 10, 384])
    """

    normed_and_turned: Callable[..., tuple[Tensor, Tensor]] = staticmethod(normed_and_turned)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        across_heads: bool = False,
        out_bias: bool | None = None,
        out: bool = True,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        backend: str = "auto",
        relative: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = width_of_heads(dim, heads, head_dim)
        kv_heads = key_heads(heads, kv_heads)
        self.head_dim, self.pattern, self.backend, self.relative = head_dim, pattern, backend, relative
        self.q_proj = nn.Linear(dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        out_bias = bias if out_bias is None else out_bias
        self.out_proj = nn.Linear(heads * head_dim, dim, out_bias, device=device, dtype=dtype) if out else nn.Identity()
        self.norm_widths = (heads * head_dim, kv_heads * head_dim) if across_heads else (head_dim, head_dim)
        self.q_norm, self.k_norm = qk_norms(qk_norm, self.norm_widths, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias (DiT's initialisation)."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        xavier_(*(each for each in projections if isinstance(each, nn.Linear)))

    def forward(
        self, x: Float[Tensor, "*lead d"], layout: Layout = None, rope: Rotary | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Attend inside each sample of ``layout``; ``rope`` rotates queries and keys after their norm."""
        bias = None if self.relative is None else self.relative()
        out = attend(*self.qkv(x, rope), pattern=self.pattern, layout=layout, backend=self.backend, bias=bias)
        return project(self.out_proj, out)

    def stream(
        self, x: Float[Tensor, "*b n d"], cache: FrameCache, tokens: int | None, rope: Rotary | None = None
    ) -> tuple[Float[Tensor, "*b n d"], FrameCache]:
        """The next frames, of ``tokens`` tokens each, or the text before them (``tokens=None``), and the next cache.

        A text and its frames in any portions equal :meth:`forward` on all of them; ``rope`` holds the rotations of
        these tokens.

        Raises:
            ValueError: the cache is for another pattern than the module's, text comes late, frames are not whole, or
                the module has relative positions, which a cache does not serve.

        Example:
            >>> from tubelet.attention.patterns import FrameCausal
            >>> attention = Attention(16, heads=2, pattern=FrameCausal(window=3))
            >>> y, cache = attention.stream(torch.randn(1, 8, 16), FrameCache(attention.pattern), tokens=4)
            >>> y.shape, cache.seen
            (torch.Size([1, 8, 16]), 2)
        """
        if cache.pattern != self.pattern:
            raise ValueError(f"cache is for {cache.pattern}, but the module attends by {self.pattern}")
        if self.relative is not None:
            raise ValueError(f"relative={self.relative} adds a bias, which attention frame by frame does not serve")
        qkv = self.qkv(x, rope)
        out, cache = cache.prefix(*qkv) if tokens is None else cache.frames(*qkv, tokens)
        return project(self.out_proj, out), cache

    def qkv(
        self, x: Float[Tensor, "*lead d"], rope: Rotary | None = None
    ) -> tuple[Float[Tensor, "*lead h e"], Float[Tensor, "*lead hk e"], Float[Tensor, "*lead hk e"]]:
        """Queries, keys and values: projected, normed and rotated."""
        check_width("x", x, self.q_proj)
        q, k = self.normed_and_turned(self, self.q_proj(x), self.k_proj(x), rope)
        v = split(self.v_proj(x), self.head_dim)
        return q.to(v.dtype), k.to(v.dtype), v

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], layout: Layout = None, rope: Rotary | None = None
        ) -> Float[Tensor, "*lead d"]: ...


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context (text) of the same samples.

    Args:
        dim: width of the tokens.
        heads: number of query heads.
        context_dim: width of the context's tokens; None means ``dim``.
        kv_heads, head_dim, bias, qk_norm, across_heads, backend: as in :class:`Attention`.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, the width of an input is another than the module's.

    Example:
        >>> CrossAttention(32, heads=4, context_dim=16)(torch.randn(2, 10, 32), torch.randn(2, 3, 16)).shape
        torch.Size([2, 10, 32])
    """

    normed_heads: Callable[..., Tensor] = staticmethod(normed_heads)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        kv_heads: int | None = None,
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
        head_dim = width_of_heads(dim, heads, head_dim)
        kv_heads = key_heads(heads, kv_heads)
        self.head_dim, self.backend = head_dim, backend
        self.q_proj = nn.Linear(dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(context_dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(context_dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(heads * head_dim, dim, bias, device=device, dtype=dtype)
        self.norm_widths = (heads * head_dim, kv_heads * head_dim) if across_heads else (head_dim, head_dim)
        self.q_norm, self.k_norm = qk_norms(qk_norm, self.norm_widths, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias."""
        xavier_(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        text: Float[Tensor, "*text_lead c"],
        layout: Layout = None,
        text_layout: Layout = None,
    ) -> Float[Tensor, "*lead d"]:
        """Attend from the tokens of each sample to its ``text``."""
        check_width("x", x, self.q_proj)
        check_width("text", text, self.k_proj)
        q = self.normed_heads(self.q_norm, self.q_proj(x), self.norm_widths[0], self.head_dim)
        k = self.normed_heads(self.k_norm, self.k_proj(text), self.norm_widths[1], self.head_dim)
        v = split(self.v_proj(text), self.head_dim)
        out = attend(q.to(v.dtype), k.to(v.dtype), v, layout=layout, kv_layout=text_layout, backend=self.backend)
        return project(self.out_proj, out)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            text: Float[Tensor, "*text_lead c"],
            layout: Layout = None,
            text_layout: Layout = None,
        ) -> Float[Tensor, "*lead d"]: ...
