"""What attention should give, in float64: chosen query rows against all their keys, and the gradients they cause.

The rows of an output, and of the gradient of q, need nothing but the same rows of q and of the cotangent. The gradients
of k and v gather from every query; with a cotangent that is zero outside the chosen rows they are sums over these rows
alone, and exact for every key. So long layouts are checked without an n² of work.

Shapes: q, k, v, cotangent ``(*lead, heads, head_dim)`` with the layout's tokens as ``lead``; rows number the flattened
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.bench.pairs import attended
from tubelet.layout import TokenInfo, TokenLayout
from tubelet.protocols import Pattern

__all__ = ["TOLERANCES", "Exact", "choose_rows", "exact_rows"]

WORST = 4
"""How many times the tolerance one row of the output may be off, of its own norm or the usual norm of a row."""

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-2,
}
"""The largest error that counts as right, of the norm; gradients may have twice as much."""


@dataclass(frozen=True)
class Exact:
    """Float64 results: of ``rows`` for ``out`` and ``dq``, of every token for ``dk`` and ``dv``.

    ``dk`` and ``dv`` belong to a cotangent that is zero outside ``rows``; the gradients are None without backward.
    ``unit`` is the norm of that cotangent: a gradient that is nothing beside it (of q and k where a query has one key)
    is compared with it instead of with itself.

    Example:
        >>> nothing = torch.zeros(2, 1, 4, dtype=torch.float64)
        >>> Exact(torch.tensor([0, 1]), nothing, None, None, None).errors((nothing,))
        {'out': 0.0, 'row': 0.0}
    """

    rows: Int[Tensor, " r"]
    out: Float[Tensor, "r h e"]
    dq: Float[Tensor, "r h d"] | None
    dk: Float[Tensor, "m h d"] | None
    dv: Float[Tensor, "m h e"] | None
    unit: float = 0.0

    def errors(self, results: tuple[Tensor, ...], masked: tuple[Tensor, ...] | None = None) -> dict[str, float]:
        """Relative errors of a call's ``(out,)`` or ``(out, dq, dk, dv)``; ``row`` is that of the worst output row.

        Args:
            results: of the call that is timed; its ``out`` and ``dq`` are compared on the rows.
            masked: of the call with the masked cotangent; its ``dk`` and ``dv`` are compared whole.
        """
        out = _flat(results[0])[self.rows]
        found = {"out": _relative(out, self.out, 0.0), "row": _worst_row(out, self.out)}
        if self.dq is not None and len(results) > 1:
            found["dq"] = _relative(_flat(results[1])[self.rows], self.dq, self.unit)
        if self.dk is not None and self.dv is not None and masked is not None:
            found["dk"] = _relative(_flat(masked[2]), self.dk, self.unit)
            found["dv"] = _relative(_flat(masked[3]), self.dv, self.unit)
        return found


def choose_rows(layout: TokenLayout, most: int, seed: int) -> Int[Tensor, " r"]:
    """Which query rows are checked: all of them up to ``most``, else each sample's ends and random others, sorted.

    The ends are where blocks of a kernel are incomplete; they take at most half of ``most``.

    Example:
        >>> choose_rows(TokenLayout.padded([9, 9], 9), 5, seed=0)[0].item()
        0
    """
    spans = [(start, start + n) for start, n in zip(layout.starts, layout.lengths, strict=True) if n]
    everything = torch.cat([torch.arange(*span) for span in spans])
    if len(everything) <= most:
        return everything
    ends = torch.tensor(sorted({place for start, stop in spans for place in (start, stop - 1)}))
    generator = torch.Generator().manual_seed(seed)
    ends = ends[torch.randperm(len(ends), generator=generator)[: most // 2]].sort().values
    others = everything[~torch.isin(everything, ends)]
    drawn = others[torch.randperm(len(others), generator=generator)[: most - len(ends)]]
    return torch.cat([ends, drawn]).sort().values


def exact_rows(
    q: Float[Tensor, "*lead h d"],
    k: Float[Tensor, "*lead h d"],
    v: Float[Tensor, "*lead h e"],
    cotangent: Float[Tensor, "*lead h e"] | None,
    pattern: Pattern,
    layout: TokenLayout,
    rows: Int[Tensor, " r"],
) -> Exact:
    """Attention of the chosen rows by its definition, and its gradients where there is a cotangent.

    Args:
        q, k, v: of any dtype; the scores' factor is ``1/sqrt(d)``.
        cotangent: of the output.
        pattern: whose predicate decides.
        layout: of the tokens.
        rows: from :func:`choose_rows`.

    Example:
        >>> from tubelet.attention import Joint
        >>> layout, x = TokenLayout.padded([3], 3), torch.eye(3).view(1, 3, 1, 3)
        >>> exact_rows(x, x, x, None, Joint(), layout, torch.tensor([1])).out.shape
        torch.Size([1, 1, 3])
    """
    rows = rows.to(q.device)
    index = layout.on(q.device)
    info = TokenInfo(*(index.coords.view(-1, 3), index.extent.view(-1, 3), index.kind.view(-1), index.sample.view(-1)))
    out = torch.zeros_like(_flat(v)[rows], dtype=torch.float64)
    grads = [torch.zeros_like(x, dtype=torch.float64) for x in (_flat(q)[rows], _flat(k), _flat(v))]
    for start, n in zip(layout.starts, layout.lengths, strict=True):
        mine = ((rows >= start) & (rows < start + n)).nonzero().flatten()
        keys = slice(start, start + n)
        for head in range(q.shape[-2]) if len(mine) else ():
            number = torch.tensor([head], device=q.device)
            allowed = attended(pattern, _take(info, rows[mine]), _take(info, keys), number)
            qs, ks, vs = (_flat(x)[where, head].double() for x, where in ((q, rows[mine]), (k, keys), (v, keys)))
            weights = _softmax(qs @ ks.T * q.shape[-1] ** -0.5, allowed.expand(1, len(mine), n)[0])
            out[mine, head] = weights @ vs
            if cotangent is not None:
                upstream = _flat(cotangent)[rows[mine], head].double()
                _add_gradients(grads, mine, keys, head, (qs, ks, vs), weights, upstream)
    if cotangent is None:
        return Exact(rows, out, None, None, None)
    unit = float(_flat(cotangent)[rows].double().norm())
    return Exact(rows, out, grads[0], grads[1], grads[2], unit)


def _add_gradients(
    grads: list[Tensor],
    mine: Tensor,
    keys: slice,
    head: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    weights: Tensor,
    upstream: Tensor,
) -> None:
    """The gradients of one sample and head, in closed form: ``ds = p·(dp - Σ p·dp)``."""
    q, k, v = qkv
    d_weights = upstream @ v.T
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    grads[0][mine, head] = d_scores @ k
    grads[1][keys, head] += d_scores.T @ q
    grads[2][keys, head] += weights.T @ upstream


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Over the allowed keys; a row without any is 0."""
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _take(info: TokenInfo, where: Tensor | slice) -> TokenInfo:
    return TokenInfo(*(field[where] for field in info))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _worst_row(got: Tensor, want: Tensor) -> float:
    """The largest error of one query and head, of the larger of its norm and the root mean square of all norms."""
    norms = want.norm(dim=-1)
    unit = norms.clamp(min=max(float(norms.square().mean().sqrt()), torch.finfo(torch.float64).tiny))
    return float(((got.detach().double() - want).norm(dim=-1) / unit).max())


def _relative(got: Tensor, want: Tensor, unit: float) -> float:
    norm = float(want.norm())
    difference = float((got.detach().double() - want).norm())
    if difference == 0.0:
        return 0.0
    return difference / max(norm if norm > 1e-9 * unit else unit, torch.finfo(torch.float64).tiny)
