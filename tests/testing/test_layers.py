"""The kit's checks of blocks, modulation and positions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero
from tubelet.layout import Rows
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm
from tubelet.positions import SinCos3d
from tubelet.testing import check_block, check_modulation, check_positions


def modulated(**on: object) -> TransformerBlock:
    attention = Branch(Attention(8, 2, **on), LayerNorm(8, **on), modulation=AdaLNZero(8, 6, **on), takes=["layout"])
    return TransformerBlock([attention, Branch(MLP(8, **on), LayerNorm(8, **on))])


def test_our_block_passes() -> None:
    check_block(modulated, 8, cond_dim=6)


class OverTheAxis(nn.Module):
    """A layer that mixes whatever lies on the token axis."""

    def __init__(self, device: object, dtype: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, dtype=dtype))

    def forward(self, x: Tensor, cond: Rows | None = None, context: object = None) -> Tensor:
        return x + x.mean(dim=-2, keepdim=True) * self.weight.to(x.dtype)


class Single(nn.Module):
    def __init__(self, device: object = None, dtype: object = None) -> None:
        super().__init__()

    def forward(self, x: Tensor, cond: Rows | None = None, context: object = None) -> Tensor:
        return x.double()


class Exploding(nn.Module):
    def __init__(self, device: object = None, dtype: object = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor, cond: Rows | None = None, context: object = None) -> Tensor:
        return x + 0 * (self.weight - self.weight).sqrt()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **on: OverTheAxis(**{**on, "device": "cpu"}), r"these parameters are real: \['weight'\]"),
        (lambda **on: OverTheAxis(**on).to(on["device"]), "sample 0 packed and alone differs"),
        (Single, "float32 block gives torch.float64"),
        (Exploding, "gradient of weight is not finite"),
    ],
)
def test_bad_blocks_are_named(make: Callable[..., nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_block(make, 8)


class Mean(nn.Module):
    def forward(self, cond: Rows) -> Rows:
        return cond.map(lambda c: c - c.mean(0))


def test_modulation() -> None:
    source = AdaLNZero(8, 6)
    check_modulation(source, 6, 24)
    assert not any(p.any() or p.grad is not None for p in source.parameters())  # yours is left as it was
    with pytest.raises(AssertionError, match=r"shape \(4, 24\), expected \(4, 16\)"):
        check_modulation(source, 6, 16)
    with pytest.raises(AssertionError, match="row 0 alone differs"):
        check_modulation(Mean(), 6, 6)
    with pytest.raises(AssertionError, match="lost their index"):
        check_modulation(lambda cond: Rows(cond.values), 6, 6)


def test_positions() -> None:
    check_positions(SinCos3d(32), 32)
    with pytest.raises(AssertionError, match="differ in one axis have the same position"):
        check_positions(lambda coords: SinCos3d(32)(coords * torch.tensor([1, 1, 0])), 32)
    with pytest.raises(AssertionError, match="tokens in another order differs"):
        check_positions(lambda coords: SinCos3d(32)(coords).cumsum(-2), 32)
    with pytest.raises(AssertionError, match="for 16 features"):
        check_positions(SinCos3d(32), 16)
