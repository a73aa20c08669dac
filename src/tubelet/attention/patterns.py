"""Attention patterns: values defined by one predicate on what a query and a key are.

A pattern says nothing of samples and padding (those belong to the layout) and nothing of backends. A user's own pattern
needs only :meth:`attends`; the ``reference`` backend serves any of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.layout import TokenInfo

__all__ = ["Joint"]


@dataclass(frozen=True)
class Joint:
    """Every token attends every token of its sample: joint space-time attention (ViViT's model 1, arXiv:2103.15691).

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> q = k = v = torch.randn(6, 1, 4)
        >>> attend(q, k, v, pattern=Joint(), layout=TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)])).shape
        torch.Size([6, 1, 4])
    """

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True for every pair."""
        return torch.ones((), dtype=torch.bool, device=q.kind.device)
