"""The weights of exponential integrators: a polynomial through predictions, integrated exactly along log(alpha/sigma).

With ``lambda = log(alpha/sigma)`` and a step ``h`` from ``t`` to ``s`` the solution of the sampling equation is

    x_s = sigma_s/sigma_t·x_t + alpha_s·h·∫ exp(-(1 - u)·h)·x0(u) du,   u = (lambda - lambda_t)/h from 0 to 1

(Lu et al., 2022, arXiv:2211.01095, proposition 4.1). The same holds for the noise with alpha and sigma exchanged and
the sign of ``h`` turned (arXiv:2206.00927, proposition 3.1). Solvers put a polynomial through what they know in place
of ``x0(u)``, in Newton's form, whose terms come one by one: a row that knows less leaves some out. Shapes: ``(r,)``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Node", "halved", "moments", "node", "weights"]


class Node(NamedTuple):
    """Where a prediction was made, ``u`` of the step, and the rows for which it is of use.

    Example:
        >>> Node(torch.tensor([-1.0]), torch.tensor([True])).use
        tensor([True])
    """

    u: Float[Tensor, " r"]
    use: Bool[Tensor, " r"]


def moments(h: Float[Tensor, " r"], count: int) -> list[Float[Tensor, " r"]]:
    """``h·∫ exp(-(1 - u)·h)·u^j du`` from 0 to 1 for j below ``count``; ``h`` is not 0.

    An error of the j-th moment grows as ``h^-j`` for small steps, which is what its term shrinks by.

    Example:
        >>> [round(float(each), 4) for each in moments(torch.tensor([1.0]), 3)]
        [0.6321, 0.3679, 0.2642]
    """
    found = [-torch.expm1(-h)]
    for power in range(1, count):
        found.append(1 - power * found[-1] / h)
    return found


def halved(
    moment: Sequence[Float[Tensor, " r"]], nodes: Sequence[Node], half: Float[Tensor, " r"]
) -> list[Float[Tensor, " r"]]:
    """The moments with the first one replaced by ``half`` in rows that know no more than a line, as is published.

    Example:
        >>> yes, u = torch.tensor([True]), torch.tensor([0.0])
        >>> halved(moments(torch.tensor([1.0]), 2), [Node(u, yes), Node(u - 1, yes)], torch.tensor([0.5]))[1]
        tensor([0.5000])
    """
    if len(nodes) < 3:
        return [*moment[:1], *(half for _ in moment[1:])]
    return [moment[0], torch.where(nodes[2].use, moment[1], half), *moment[2:]]


def node(h: Float[Tensor, " r"], distance: Float[Tensor, " r"], before: Node) -> Node:
    """An earlier prediction, at a ``distance`` from the step's begin; of use if it lies behind all that were before.

    A row that paused, turned round, began at pure noise or ends on clean data has no earlier prediction of use.

    Example:
        >>> first = Node(torch.tensor([0.0]), torch.tensor([True]))
        >>> node(torch.tensor([0.5]), torch.tensor([-0.25]), first).u
        tensor([-0.5000])
    """
    u = distance / h
    use = before.use & u.isfinite() & (u < before.u.clamp(max=0))
    return Node(torch.where(use, u, before.u.clamp(max=0) - 1), use)


def weights(moment: Sequence[Float[Tensor, " r"]], nodes: Sequence[Node]) -> list[Float[Tensor, " r"]]:
    """The weight of each prediction in the integral of Newton's polynomial through those at the nodes.

    Args:
        moment: integrals of 1, u, u², ..., as many as nodes.
        nodes: where predictions were made; where one is of no use, none behind it is.

    Example:
        >>> yes = torch.tensor([True])
        >>> begin, end = Node(torch.tensor([0.0]), yes), Node(torch.tensor([1.0]), yes)
        >>> [float(w) for w in weights([torch.tensor([1.0]), torch.tensor([0.5])], [begin, end])]
        [0.5, 0.5]
    """
    found = [torch.zeros_like(moment[0]) for _ in nodes]
    basis = [torch.ones_like(moment[0])]  # the coefficients of (u - u_0)...(u - u_{k-1})
    for k, (u, use) in enumerate(nodes):
        integral = torch.where(use, sum(c * m for c, m in zip(basis, moment, strict=False)), 0.0)
        for i in range(k + 1):
            found[i] = found[i] + integral / _distances(nodes[: k + 1], i)
        shifted, scaled = [torch.zeros_like(u), *basis], [*(-u * c for c in basis), torch.zeros_like(u)]
        basis = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return found


def _distances(nodes: Sequence[Node], i: int) -> Float[Tensor, " r"]:
    """The product of the distances of a node from the others."""
    product = torch.ones_like(nodes[i].u)
    for j, other in enumerate(nodes):
        product = product * (nodes[i].u - other.u) if j != i else product
    return product
