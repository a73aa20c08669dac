"""Attention inside each of several packed samples: segments, one masked call, or a Python loop.

``sdpa`` is what `tubelet.attend` runs on a packed layout (segments of the axis); ``masked`` (of
:mod:`benchmarks.baselines`) is one `scaled_dot_product_attention` over the whole axis with a block-diagonal boolean
mask; ``loop`` calls it once a sample. The last two are backends of this folder alone, as anyone can add them: ``tubelet
bench attention --import benchmarks.attention`` knows them too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import benchmarks.baselines  # noqa: F401 - registers masked
from tubelet.attention import Joint
from tubelet.bench import Plan, backend
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["plan"]


def plan(device: str, rounds: int) -> Plan:
    """Both mixtures, forward and with backward."""
    return Plan(
        shapes=("mix:navit", "mix:short-clips"),
        patterns=("joint",),
        backends=("sdpa", "masked", "loop"),
        directions=("forward", "forward+backward"),
        device=device,
        rounds=rounds,
    )


def _packed_joint(request: AttentionRequest) -> Answer:
    if isinstance(request.pattern, Joint) and request.index is not None and len(request.shape) == 3:
        return Answer()
    return Answer("serves Joint() on packed layouts")


@backend("loop", _packed_joint)
def loop(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """One call a sample."""
    assert request.index is not None
    lengths = request.index.table[:, 1].tolist()
    parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
    return torch.cat([_sdpa(*part) for part in parts])


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
