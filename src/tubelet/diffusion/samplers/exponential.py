"""The weights of exponential integrators: a polynomial through predictions, integrated exactly along log(alpha/sigma).

With ``lambda = log(alpha/sigma)`` and a step ``h`` from ``t`` to ``s`` the solution of the sampling equation is

    x_s = sigma_s/sigma_t·x_t + alpha_s·h·∫ exp(-(1 - u)·h)·x0(u) du,   u = (lambda - lambda_t)/h from 0 to 1

(Lu et al., 2022, arXiv:2211.01095, proposition 4.1). The same holds for the noise with alpha and sigma exchanged and
the sign of ``h`` turned (arXiv:2206.00927, proposition 3.1). Solvers put a polynomial through what they know in place
of ``x0(u)``, in Newton's form, whose terms come one by one: a row that knows less leaves some out. Shapes: ``(r,)``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
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
    found, one = [-torch.expm1(-h)], torch.ones_like(h)
    for power in range(1, count):
        found.append(torch.addcdiv(one, found[-1], h, value=-power))
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
    u, bound = distance / h, before.u.clamp(max=0)
    use = before.use & (u < bound) & (u > -math.inf)
    return Node(torch.where(use, u, bound - 1), use)


def weights(moment: Sequence[Float[Tensor, " r"]], nodes: Sequence[Node]) -> list[Float[Tensor, " r"]]:
    """The weights of all predictions but the first in the integral of Newton's polynomial through those at the nodes.

    They count from the first prediction: its own weight is what remains of the integral of 1.

    Args:
        moment: integrals of 1, u, u², ..., as many as nodes.
        nodes: where predictions were made, the first at 0; where one is of no use, none behind it is.

    Example:
        >>> yes = torch.tensor([True])
        >>> begin, end = Node(torch.tensor([0.0]), yes), Node(torch.tensor([1.0]), yes)
        >>> [float(w) for w in weights([torch.tensor([1.0]), torch.tensor([0.5])], [begin, end])]
        [0.5]
    """
    found, integrals = [], _newton(moment, nodes[1:])
    for k, (u, _) in enumerate(nodes[1:]):
        product = u
        for other in nodes[1 : k + 1]:
            product = product * (u - other.u)
        weight = integrals[k] / product
        for integral, other in zip(integrals[k + 1 :], nodes[k + 2 :], strict=True):
            product = product * (u - other.u)
            weight = weight + integral / product
        found.append(weight)
    return found


def _newton(moment: Sequence[Float[Tensor, " r"]], nodes: Sequence[Node]) -> list[Float[Tensor, " r"]]:
    """The integrals of u, u·(u - u_1), u·(u - u_1)·(u - u_2), ...; 0 in rows for which the last node is of no use."""
    found, rest = [], list(moment[1:])
    for u, use in nodes:
        found.append(torch.where(use, rest[0], 0.0))
        rest = [after - u * integral for integral, after in pairwise(rest)]
    return found
