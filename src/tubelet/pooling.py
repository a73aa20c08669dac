"""One vector, or a few, for each sample of a batch: attention pooling, by learned queries or the mean, and the mean.

In attention pooling learned queries attend the tokens of a sample (Set Transformer's PMA, Lee et al. 2019,
arXiv:1810.00825; the MAP head of Zhai et al. 2022, arXiv:2106.04560). NaViT (arXiv:2307.06304, section 2.1) does so
within each sample of a pack.

Shapes: tokens ``(*lead, d)`` to ``(s, q, d)`` or ``(s, d)``, with ``s`` samples. In a layout with a capacity ``s`` is
its padded number of samples, so that compiled code serves every layout of the capacity; rows of no sample, and of
samples without tokens, are 0.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import CrossAttention
from tubelet.attention.projections import project, split, width_of_heads, xavier_
from tubelet.layout import Kind, LayoutIndex, TokenLayout

__all__ = ["AttentionPool", "MeanQueryPool", "mean_pool"]

Layout = TokenLayout | LayoutIndex | None


class AttentionPool(nn.Module):
    """Learned queries that attend the tokens of each sample.

    Args:
        dim: width of the tokens.
        heads: number of heads.
        queries: how many vectors a sample becomes.
        head_dim, bias, qk_norm, backend: as in :class:`tubelet.CrossAttention`.

    Raises:
        ValueError: sizes are not positive, or ``dim`` is not a multiple of ``heads`` where ``head_dim`` is None; at the
            call, tokens of another width, or that do not lie as the layout says.

    Example:
        >>> from tubelet import Grid
        >>> pool = AttentionPool(32, heads=4, queries=2)
        >>> pool(torch.randn(3, 10, 32)).shape
        torch.Size([3, 2, 32])
        >>> pool(torch.randn(7, 32), TokenLayout.packed([Grid(1, 2, 2), Grid(3, 1, 1)])).shape
        torch.Size([2, 2, 32])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        queries: int = 1,
        *,
        head_dim: int | None = None,
        bias: bool = True,
        qk_norm: Callable[..., nn.Module] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if queries < 1:
            raise ValueError(f"queries must be at least 1, got queries={queries} for heads={heads}")
        self.queries = nn.Parameter(torch.empty(queries, dim, device=device, dtype=dtype))
        self.attention = CrossAttention(
            dim, heads, head_dim=head_dim, bias=bias, qk_norm=qk_norm, backend=backend, device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal queries of deviation 0.02, Xavier-uniform projections."""
        nn.init.normal_(self.queries, std=0.02)
        self.attention.reset_parameters()

    def forward(self, x: Float[Tensor, "*lead d"], layout: Layout = None) -> Float[Tensor, "s q d"]:
        """Pool the tokens of each sample; without a layout each row is one sample."""
        index = _index(x, layout)
        samples, queries = index.seqlens.shape[0], self.queries.shape[0]
        asking = index.prefix(queries)
        q = self.queries.expand(samples, -1, -1).reshape(*asking.shape, -1)
        pooled = self.attention(q, x, asking, index).reshape(samples, queries, -1)
        return torch.where((index.seqlens > 0)[:, None, None], pooled, 0)

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"], layout: Layout = None) -> Float[Tensor, "s q d"]: ...


class MeanQueryPool(nn.Module):
    """The mean of a sample's tokens attends to itself and the tokens (CLIP's pooling of images; Mochi's of text).

    Radford et al., 2021 (arXiv:2103.00020, section 2.4), without positions. A sample without tokens has a mean of 0.

    Args:
        dim: width of the tokens.
        heads: number of heads, which divides ``dim``.
        out: width of the result; None means ``dim``.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``; at the call, tokens that do not lie as the layout says.

    Example:
        >>> MeanQueryPool(32, heads=4, out=8)(torch.randn(7, 32), TokenLayout.packed([None, None], [3, 4])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        out: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = width_of_heads(dim, heads, None)
        self.q_proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.k_proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.v_proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.out_proj = nn.Linear(dim, dim if out is None else out, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        xavier_(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(self, x: Float[Tensor, "*lead d"], layout: Layout = None) -> Float[Tensor, "s e"]:
        """Pool the tokens of each sample; without a layout each row is one sample."""
        index = _index(x, layout)
        means, owner = mean_pool(x, index), index.sample.flatten().clamp(min=0)
        wide = torch.promote_types(x.dtype, torch.float32)
        keys = torch.cat([means, index.zero_padding(x).reshape(-1, x.shape[-1])])
        q, k, v = (split(each, self.head_dim) for each in (self.q_proj(means), self.k_proj(keys), self.v_proj(keys)))
        # keys are the means, one per sample, then the tokens; one softmax for each sample and head
        samples = torch.cat([torch.arange(len(means), device=x.device), owner])
        scores = (q[samples] * k).sum(-1, dtype=wide) / math.sqrt(self.head_dim)
        counted = torch.cat([index.valid.new_ones(len(means)), index.valid.flatten()])
        scores = torch.where(counted[:, None], scores, -math.inf)
        spread = samples[:, None].expand_as(scores)
        highest = scores.detach()[: len(means)].scatter_reduce(0, spread, scores.detach(), "amax")
        weights = (scores - highest[samples]).exp()
        total = torch.zeros_like(highest).index_add(0, samples, weights)
        mixed = v.new_zeros(q.shape, dtype=wide).index_add(0, samples, weights[..., None] * v)
        return project(self.out_proj, (mixed / total[..., None]).to(x.dtype))

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"], layout: Layout = None) -> Float[Tensor, "s e"]: ...


def mean_pool(x: Float[Tensor, "*lead d"], layout: Layout = None, *, text: bool = True) -> Float[Tensor, "s d"]:
    """The mean of the tokens of each sample; padding counts for nothing.

    Args:
        x: tokens.
        layout: how they lie; None means that each row is one sample.
        text: count text tokens, too.

    Returns:
        ``(s, d)``; zeros for samples without tokens. Half precisions are summed in float32.

    Raises:
        ValueError: the tokens do not lie as the layout says.

    Example:
        >>> from tubelet import Grid
        >>> layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)])
        >>> mean_pool(torch.tensor([[1.0], [2.0], [5.0]]), layout).tolist()
        [[1.5], [5.0]]
    """
    index = _index(x, layout)
    counted = index.valid if text else index.kind == Kind.GRID
    wide = torch.promote_types(x.dtype, torch.float32)
    tokens = torch.where(counted[..., None], x, 0).reshape(-1, x.shape[-1]).to(wide)
    owner = index.sample.flatten().clamp(min=0)
    sums = tokens.new_zeros(index.seqlens.shape[0], x.shape[-1]).index_add(0, owner, tokens)
    counts = tokens.new_zeros(index.seqlens.shape[0]).index_add(0, owner, counted.flatten().to(wide))
    return (sums / counts.clamp(min=1)[:, None]).to(x.dtype)


def _index(x: Tensor, layout: Layout) -> LayoutIndex:
    if layout is None:
        rows, n = (1, x.shape[0]) if x.ndim == 2 else (x.shape[0], x.shape[1])
        layout = TokenLayout.padded([n] * rows, n) if x.ndim == 3 else TokenLayout.packed([None], [n])
    index = layout.on(x.device) if isinstance(layout, TokenLayout) else layout
    if tuple(x.shape[:-1]) != index.shape:
        raise ValueError(f"x has tokens {tuple(x.shape[:-1])}, but layout has {index.shape}")
    return index
