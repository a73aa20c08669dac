"""Self- and cross-attention as plain modules: projections, optional qk-norm and rotary positions around ``attend``.

Multi-head attention is Vaswani et al., 2017 (arXiv:1706.03762, section 3.2.2); per-head RMS norm of queries and keys as
in Stable Diffusion 3 (arXiv:2403.03206, section 5.3.2). All projections are ``nn.Linear`` with the names that PEFT and
torchao look for. Dense in, dense out; packed in, packed out: only ``attend`` reads the rank.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.cache import FrameCache
from tubelet.attention.dispatch import attend
from tubelet.attention.patterns import Joint
from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.positions import Rotary, apply_rope
from tubelet.protocols import Pattern

__all__ = ["Attention", "CrossAttention"]

Layout = TokenLayout | LayoutIndex | None


class Attention(nn.Module):
    """Multi-head self-attention: ``Attention(384, heads=6)(x)`` on ``(b, n, 384)`` needs nothing else.

    Args:
        dim: width of the tokens.
        heads: number of query heads.
        kv_heads: number of key and value heads; None means ``heads``.
        head_dim: width of a head; None means ``dim // heads``.
        bias: give the projections a bias.
        qk_norm: makes the norm of queries and keys from ``head_dim``, e.g. ``RMSNorm``; None for none.
        pattern, backend: as in :func:`tubelet.attend`.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, the width of an input is another than the module's.

    Example:
        >>> Attention(384, heads=6)(torch.randn(2, 10, 384)).shape
        torch.Size([2, 10, 384])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        head_dim = _head_dim(dim, heads, head_dim)
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"heads={heads} is not a multiple of kv_heads={kv_heads}")
        self.head_dim, self.pattern, self.backend = head_dim, pattern, backend
        self.q_proj = nn.Linear(dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(heads * head_dim, dim, bias, device=device, dtype=dtype)
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(head_dim, device=device, dtype=dtype)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(head_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias (DiT's initialisation)."""
        _xavier_(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(
        self, x: Float[Tensor, "*lead d"], layout: Layout = None, rope: Rotary | None = None
    ) -> Float[Tensor, "*lead d"]:
        """Attend inside each sample of ``layout``; ``rope`` rotates queries and keys after their norm."""
        out = attend(*self._qkv(x, rope), pattern=self.pattern, layout=layout, backend=self.backend)
        return _project(self.out_proj, out)

    def stream(
        self, x: Float[Tensor, "*b n d"], cache: FrameCache, tokens: int | None = None, rope: Rotary | None = None
    ) -> tuple[Float[Tensor, "*b n d"], FrameCache]:
        """The next frames, of ``tokens`` tokens each, or the text before them (``tokens=None``), and the next cache.

        A text and its frames in any portions equal :meth:`forward` on all of them; ``rope`` holds the rotations of
        these tokens.

        Raises:
            ValueError: the cache is for another pattern than the module's, text comes late, or frames are not whole.

        Example:
            >>> from tubelet.attention.patterns import FrameCausal
            >>> attention = Attention(16, heads=2, pattern=FrameCausal(window=3))
            >>> y, cache = attention.stream(torch.randn(1, 8, 16), FrameCache(attention.pattern), tokens=4)
            >>> y.shape, cache.seen
            (torch.Size([1, 8, 16]), 2)
        """
        if cache.pattern != self.pattern:
            raise ValueError(f"cache is for {cache.pattern}, but the module attends by {self.pattern}")
        qkv = self._qkv(x, rope)
        out, cache = cache.prefix(*qkv) if tokens is None else cache.frames(*qkv, tokens)
        return _project(self.out_proj, out), cache

    def _qkv(self, x: Tensor, rope: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Projected, normed and rotated."""
        _check_width("x", x, self.q_proj)
        q, k, v = (_split(p(x), self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        return q.to(v.dtype), k.to(v.dtype), v

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], layout: Layout = None, rope: Rotary | None = None
        ) -> Float[Tensor, "*lead d"]: ...


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context (text) of the same samples.

    Args:
        dim: width of the tokens.
        heads: number of heads.
        context_dim: width of the context's tokens; None means ``dim``.
        head_dim, bias, qk_norm, backend: as in :class:`Attention`.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, the width of an input is another than the module's.

    Example:
        >>> CrossAttention(32, heads=4, context_dim=16)(torch.randn(2, 10, 32), torch.randn(2, 3, 16)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        head_dim = _head_dim(dim, heads, head_dim)
        self.head_dim, self.backend = head_dim, backend
        self.q_proj = nn.Linear(dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(context_dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(context_dim, heads * head_dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(heads * head_dim, dim, bias, device=device, dtype=dtype)
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(head_dim, device=device, dtype=dtype)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(head_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections with zero bias."""
        _xavier_(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        text: Float[Tensor, "*text_lead c"],
        layout: Layout = None,
        text_layout: Layout = None,
    ) -> Float[Tensor, "*lead d"]:
        """Attend from the tokens of each sample to its ``text``."""
        _check_width("x", x, self.q_proj)
        _check_width("text", text, self.k_proj)
        q = _split(self.q_proj(x), self.head_dim)
        k, v = (_split(p(text), self.head_dim) for p in (self.k_proj, self.v_proj))
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        out = attend(q, k, v, layout=layout, kv_layout=text_layout, backend=self.backend)
        return _project(self.out_proj, out)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            text: Float[Tensor, "*text_lead c"],
            layout: Layout = None,
            text_layout: Layout = None,
        ) -> Float[Tensor, "*lead d"]: ...


def _head_dim(dim: int, heads: int, head_dim: int | None) -> int:
    if heads < 1 or dim < 1 or (head_dim is not None and head_dim < 1):
        raise ValueError(f"dim, heads and head_dim must be positive, got dim={dim}, heads={heads}, head_dim={head_dim}")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim={dim} is not a multiple of heads={heads}; give head_dim")
    return dim // heads if head_dim is None else head_dim


def _check_width(name: str, x: Tensor, proj: nn.Module) -> None:
    """A clear error instead of a matrix product's; a replaced projection (quantised, adapted) checks for itself."""
    if isinstance(proj, nn.Linear) and x.shape[-1] != proj.in_features:
        raise ValueError(f"{name} has width {x.shape[-1]}, but the module was made for {proj.in_features}")


def _split(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def _project(proj: nn.Linear, x: Tensor) -> Tensor:
    out: Tensor = proj(x.reshape(*x.shape[:-2], proj.in_features))
    return out


def _xavier_(*projections: nn.Linear) -> None:
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
