"""What residual branches compute with kernels: alone, in turn, and in several streams."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch  # noqa: F401 - the examples use it
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.blocks import Branch, gated
from tubelet.blocks import norm_modulate as modulated
from tubelet.fused._layers import plain_norm
from tubelet.hooks import heard
from tubelet.kernels import Norm, gate_residual, norm_modulate, residual_norm_modulate
from tubelet.layout import Rows
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.streams import JointBranch, StreamBranches

__all__ = ["gated_residual", "joined_in_turn", "joined_streams", "norm_modulated", "pays"]

Streams = tuple[Float[Tensor, "..."], ...]  # each stream (*lead, d) of its own


def norm_modulated(norm: nn.Module, x: Float[Tensor, "*lead d"], shift: Rows, scale: Rows) -> Float[Tensor, "*lead d"]:
    """What a branch computes before its inner module; hooks may have come since.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> norm_modulated(RMSNorm(2, affine=False), torch.ones(3, 2), one, one).round(decimals=3).unique()
        tensor([3.])
    """
    if not plain_norm(norm):
        return modulated(norm, x, shift, scale)
    assert isinstance(norm, LayerNorm | RMSNorm)
    return norm_modulate(x, shift, scale, **_described(norm), dtype=x.dtype)


def _described(norm: nn.Module) -> dict[str, Any]:
    """A plain norm as the arguments of an operation."""
    assert isinstance(norm, LayerNorm | RMSNorm)
    kind: Norm = "layer" if isinstance(norm, LayerNorm) else "rms"
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    return {"norm": kind, "weight": norm.weight, "bias": bias, "eps": norm.eps}


def gated_residual(
    x: Float[Tensor, "*lead d"], update: Float[Tensor, "*lead d"], gate: Rows | None
) -> Float[Tensor, "*lead d"]:
    """What a branch computes after its inner module.

    Example:
        >>> gated_residual(torch.ones(1, 2), torch.ones(1, 2), Rows(torch.ones(1, 2))).tolist()
        [[2.0, 2.0]]
    """
    if gate is None or not (pays(x) or gate.index is not None or gate.values.dtype != x.dtype):
        return gated(x, update, gate)
    return gate_residual(x, update, gate)


def joined_in_turn(
    branches: Iterable[nn.Module], x: Float[Tensor, "*lead d"], cond: Rows | None, context: Mapping[str, Any] | None
) -> Float[Tensor, "*lead d"]:
    """Branches in turn, neighbours joined where they can be.

    Example:
        >>> joined_in_turn([Branch(nn.Identity()), Branch(nn.Identity())], torch.ones(1, 2), None, None).tolist()
        [[4.0, 4.0]]
    """
    entered: tuple[Tensor, Rows | None] | None = None
    followed: list[nn.Module | None] = [*branches, None]
    for branch, following in pairwise(followed):
        assert branch is not None
        joined = pays(x) and _joined(branch, following)
        if entered is None and not joined:
            x = branch(x, cond, context)
            continue
        assert isinstance(branch, Branch)
        h, gate = branch.enter(x, cond) if entered is None else entered
        update = branch.run(h, context)
        if joined:
            assert isinstance(following, Branch)
            x, entered = _left_and_entered(branch, following, x, update, gate, cond)
        else:
            x, entered = branch.leave(x, update, gate), None
    return x


def joined_streams(
    branches: Iterable[nn.Module], streams: Streams, conds: Sequence[Rows | None], context: Mapping[str, Any] | None
) -> Streams:
    """Branches of several streams in turn; in each stream one that all share is joined with its own that follows.

    Example:
        >>> each = StreamBranches([Branch(nn.Identity()), None])
        >>> joined_streams([each], (torch.ones(1), torch.ones(1)), (None, None), None)
        (tensor([2.]), tensor([1.]))
    """
    rest = list(branches)
    while rest:
        branch = rest.pop(0)
        if rest and _joint(branch, rest[0]) and pays(streams[0]):
            streams = _joint_and_each(branch, rest.pop(0), streams, conds, context)
        else:
            streams = branch(streams, conds, context)
    return streams


def _joint_and_each(
    joint: nn.Module,
    following: nn.Module,
    streams: Streams,
    conds: Sequence[Rows | None],
    context: Mapping[str, Any] | None,
) -> Streams:
    assert isinstance(joint, JointBranch) and isinstance(following, StreamBranches)
    updates, gates = joint.run(streams, conds, context)
    out = []
    for i, (x, update, gate, cond) in enumerate(zip(streams, updates, gates, conds, strict=True)):
        ending, own = joint.branches[i], following.of(i)
        assert isinstance(ending, Branch)
        if joint.updates[i] and _joined(ending, own):
            assert isinstance(own, Branch)
            x, (h, gate) = _left_and_entered(ending, own, x, update, gate, cond)
            x = own.leave(x, own.run(h, context), gate)
        else:
            x = ending.leave(x, update, gate) if joint.updates[i] else x
            x = x if own is None else own(x, cond, context)
        out.append(x)
    return tuple(out)


def _joint(branch: nn.Module, following: nn.Module) -> bool:
    """Whether a branch that all streams share is followed by one of each, and nobody listens to either."""
    kinds = type(branch) is JointBranch and type(following) is StreamBranches
    return kinds and not heard(branch) and not heard(following)


def _left_and_entered(
    branch: Branch, following: Branch, x: Tensor, update: Tensor, gate: Rows | None, cond: Rows | None
) -> tuple[Tensor, tuple[Tensor, Rows | None]]:
    """The tokens between two branches; what the second's inner module is given, and its gate."""
    rows = following.rows(cond)
    modulation = (rows.get("shift"), rows.get("scale"))
    update = branch.post_norm(update)
    y, h = residual_norm_modulate(x, update, gate, *modulation, **_described(following.norm))
    return y, (h, rows.get("gate"))


def _joined(branch: nn.Module, following: nn.Module | None) -> bool:
    """Whether one kernel ends a branch and begins the next: both use kernels, and nobody listens to either."""
    if not (type(branch) is type(following) is Branch and plain_norm(following.norm)):
        return False
    if following.norm_modulate not in (modulated, norm_modulated):
        return False
    return all(each.gated is gated_residual and not heard(each) for each in (branch, following))


def pays(x: Tensor) -> bool:
    """Whether a residual of rows as wide as the tokens has a kernel: on the CPU it would save no pass over them.

    Example:
        >>> pays(torch.ones(1))
        False
    """
    return x.is_cuda
