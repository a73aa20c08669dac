"""Joint attention of several token streams, and attention beside an MLP: what MM-DiT and its single-stream blocks need.

In MM-DiT (Esser et al., 2024, arXiv:2403.03206, figure 2b) text and video have weights of their own, also of different
widths (Mochi), and meet only in the attention. The single-stream blocks that follow in Flux and HunyuanVideo
(arXiv:2412.03603, section 4.3) have one axis for both and compute attention and MLP side by side (ViT-22B, Dehghani et
al., 2023, arXiv:2302.05442, section 2).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.dispatch import attend
from tubelet.attention.modules import Attention
from tubelet.attention.patterns import Joint
from tubelet.attention.projections import project
from tubelet.layout import JointIndex, LayoutIndex, TokenLayout
from tubelet.mlp import raised
from tubelet.positions import Rotary
from tubelet.protocols import Pattern

__all__ = ["JointAttention", "ParallelAttention"]


class JointAttention(nn.Module):
    """Several streams of the same samples attend to each other; each has projections and norms of its own.

    Args:
        streams: one :class:`Attention` per stream, in the order of the joint layout, with equal heads of equal width;
            of each only the projections and the norms are used.
        pattern, backend: as in :func:`tubelet.attend`, on the merged axis.

    Raises:
        ValueError: the streams differ in heads or their width; at the call, as many tensors as streams are not given.

    Example:
        >>> from tubelet.layout import Grid, JointLayout
        >>> attention = JointAttention([Attention(6, heads=2, head_dim=4), Attention(8, heads=2)])
        >>> layout = JointLayout((TokenLayout.packed([None], [3]), TokenLayout.packed([Grid(1, 2, 2)])))
        >>> text, video = attention(torch.randn(3, 6), torch.randn(4, 8), joint=layout.on("cpu"))
        >>> text.shape, video.shape
        (torch.Size([3, 6]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        streams: Sequence[Attention],
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        backend: str = "auto",
    ) -> None:
        super().__init__()
        shapes = [(s.q_proj.out_features, s.k_proj.out_features, s.head_dim) for s in streams]
        if len(set(shapes)) != 1:
            raise ValueError(f"streams must have equal heads, got (query, key and head widths) {shapes}")
        self.streams = nn.ModuleList(streams)
        self.pattern, self.backend = pattern, backend

    def forward(
        self, *streams: Float[Tensor, "..."], joint: JointIndex, ropes: Sequence[Rotary | None] | None = None
    ) -> tuple[Float[Tensor, "..."], ...]:
        """Attend over the merged axis; ``ropes`` rotates the queries and keys of each stream, None none."""
        ropes = [None] * len(self.streams) if ropes is None else ropes
        if not len(streams) == len(ropes) == len(self.streams):
            found = f"{len(streams)} tensors and {len(ropes)} ropes"
            raise ValueError(f"streams got {found}, but the module has {len(self.streams)} streams")
        own: list[Attention] = list(self.streams)  # type: ignore[arg-type]
        heads = [module.qkv(x, rope) for module, x, rope in zip(own, streams, ropes, strict=True)]
        q, k, v = (joint.merge(*parts) for parts in zip(*heads, strict=True))
        out = attend(q, k, v, pattern=self.pattern, layout=joint.index, backend=self.backend)
        parts = zip(own, joint.split(out), strict=True)
        return tuple(project(module.out_proj, part) for module, part in parts)


class ParallelAttention(nn.Module):
    """``down([attention(x), act(up(x))])``: attention and MLP on the same tokens, through one projection back.

    Args:
        attention: without a projection of its own (``out=False``).
        dim: width of the tokens.
        mlp_dim: width inside the MLP.
        act: its activation; None means ``nn.GELU(approximate="tanh")``.
        bias: give ``up`` and ``down`` a bias.

    Raises:
        ValueError: the attention projects its result itself.

    Example:
        >>> block = ParallelAttention(Attention(8, heads=2, out=False), 8, mlp_dim=32)
        >>> block(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    raised: Callable[..., Tensor] = staticmethod(raised)

    def __init__(
        self,
        attention: Attention,
        dim: int,
        mlp_dim: int,
        *,
        act: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(attention.out_proj, nn.Identity):
            raise ValueError(f"attention has out_proj={attention.out_proj}, but must be made with out=False")
        self.attention = attention
        self.up = nn.Linear(dim, mlp_dim, bias, device=device, dtype=dtype)
        self.act = nn.GELU(approximate="tanh") if act is None else act
        self.down = nn.Linear(attention.q_proj.out_features + mlp_dim, dim, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead d"],
        layout: TokenLayout | LayoutIndex | None = None,
        rope: Rotary | None = None,
    ) -> Float[Tensor, "*lead d"]:
        """As :class:`Attention`: inside each sample of ``layout``, with queries and keys turned by ``rope``."""
        wide = self.raised(self.up, self.act, x)
        out: Tensor = self.down(torch.cat([self.attention(x, layout, rope), wide], dim=-1))
        return out

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead d"],
            layout: TokenLayout | LayoutIndex | None = None,
            rope: Rotary | None = None,
        ) -> Float[Tensor, "*lead d"]: ...
