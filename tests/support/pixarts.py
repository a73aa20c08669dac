"""What the tests of PixArt-alpha's descendants share: a peer made calm, the exact sinusoid, gradients, masks."""

from typing import Any

import torch
from mixtures import F64
from torch import Tensor, nn


def calm(model: nn.Module) -> nn.Module:
    """A random peer with smaller queries to its text: tokens without a norm would leave no softmax a gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn2.to_q" in name:
                parameter.mul_(0.1)
    return model


def exact_sinusoid(time: Tensor, dim: int = 256) -> Tensor:
    """Cosines, then sines, by the formula in float64."""
    frequencies = torch.tensor([10000.0 ** (-2 * i / dim) for i in range(dim // 2)], **F64)
    angles = time.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def assert_same_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Of every weight; a key's bias without rotation moves no softmax, so its zero is measured by its weight's."""
    for name, parameter in model.named_parameters():
        got, right = parameter.grad, expected[name]
        against = expected[name.replace("k_proj.bias", "k_proj.weight")]
        assert (got - right).norm() <= 1e-10 * against.norm(), name


class Masked(nn.Module):
    """A self-attention by its definition, under a mask of all pairs of tokens: ``(q, k)``, or ``(heads, q, k)``."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, x: Tensor, layout: Any, rope: Any = None) -> Tensor:
        q, k, v = self.inner.qkv(x, rope)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.allowed, -torch.inf).softmax(-1)
        return self.inner.out_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
