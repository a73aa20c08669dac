"""The kit's check of blocks: ours passes, and each fault is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention, FrameCausal
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero
from tubelet.layout import Rows
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm
from tubelet.protocols import Pattern
from tubelet.testing import check_block, matrix_patterns


def modulated(pattern: Pattern | None = None, **on: object) -> TransformerBlock:
    inner = Attention(8, 4, **on) if pattern is None else Attention(8, 4, pattern=pattern, **on)
    attention = Branch(inner, LayerNorm(8, **on), modulation=AdaLNZero(8, 6, **on), takes=["layout"])
    return TransformerBlock([attention, Branch(MLP(8, **on), LayerNorm(8, **on))])


def test_our_block_passes() -> None:
    check_block(modulated, 8, cond_dim=6)


@pytest.mark.parametrize("name", matrix_patterns())
def test_whole_blocks_pass_with_every_pattern(name: str) -> None:
    """Packed equals separate to 1e-11 in outputs and gradients, and samples never meet."""
    pattern = matrix_patterns()[name]
    check_block(lambda **on: TransformerBlock([Branch(Attention(8, 4, pattern=pattern, **on), takes=["layout"])]), 8)


@pytest.mark.graph
def test_our_block_passes_compiled() -> None:
    check_block(lambda **on: modulated(FrameCausal(), **on), 8, cond_dim=6, compiled=True)


class Faulty(nn.Module):
    """A linear layer per token, with one fault."""

    def __init__(self, fault: str, device: Any, dtype: Any) -> None:
        super().__init__()
        on = {"device": "cpu" if fault == "not on meta" else device, "dtype": dtype}
        self.fault, self.proj = fault, nn.Linear(8, 8, **on)
        self.scale = nn.Parameter(torch.ones(8, **on))
        self.register_buffer("table", torch.ones(8, **on), persistent=False)
        self.drop = nn.Dropout(0.5 if fault == "dropout" else 0.0)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.table)
        if self.fault != "not initialised":
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor, cond: Rows | None = None, context: Any = None) -> Tensor:
        h = self.drop(self.proj(x) * self.scale * self.table)
        if self.fault == "over the axis":
            h = h + h.mean(dim=-2, keepdim=True)
        if self.fault == "spills":
            h = h + 1e-15 * x.detach().mean()
        if self.fault == "explodes":
            h = h + 0 * (self.scale - self.scale).sqrt()
        if self.fault == "compiled" and torch.compiler.is_compiling():
            h = 1.001 * h
        if self.fault == "many graphs" and torch.compiler.is_compiling():
            h = h + 0 * context["layout"].samples
        if self.fault == "double":
            return x + h.double()
        if self.fault == "bfloat16":
            return x + h.float()
        return (x + h).to(self.proj(x).dtype) if self.fault == "autocast" else x + h


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not on meta", r"these parameters are real: \['scale', 'proj.weight', 'proj.bias'\]"),
        ("not initialised", r"after to_empty\(\) and reset_parameters\(\), these are not initialised: \['scale'\]"),
        ("over the axis", "layout 'packed', conditioning per sample: sample 0 packed and alone differs"),
        ("spills", "other numbers in sample 2 change the output of other samples"),
        ("explodes", "gradient of scale is not finite"),
        ("dropout", "sample 0 packed and alone differs"),
        ("double", "a float32 block gives torch.float64 from float32 tokens"),
        ("bfloat16", "a bfloat16 block gives torch.float32 from bfloat16 tokens"),
        ("autocast", "under autocast a float32 block gives torch.bfloat16"),
    ],
)
def test_bad_blocks_are_named(fault: str, message: str) -> None:
    check_block(lambda **on: Faulty("none", **on), 8)
    with pytest.raises(AssertionError, match=message):
        check_block(lambda **on: Faulty(fault, **on), 8)


class Modal(Faulty):
    """Evaluation is another function."""

    def forward(self, x: Tensor, cond: Rows | None = None, context: Any = None) -> Tensor:
        return super().forward(x) * (1.0 if self.training else 1.5)


def test_a_block_with_two_modes_is_named() -> None:
    with pytest.raises(AssertionError, match=r"the block in eval\(\) and in train\(\) differs"):
        check_block(lambda **on: Modal("none", **on), 8)


@pytest.mark.graph
@pytest.mark.parametrize(
    ("fault", "message"),
    [("compiled", r"compiled, grids .* the output differs"), ("many graphs", "graphs for 3 layouts of one capacity")],
)
def test_blocks_that_compile_badly_are_named(fault: str, message: str) -> None:
    make: Callable[..., nn.Module] = lambda **on: Faulty(fault, **on)  # noqa: E731
    check_block(make, 8)
    with pytest.raises(AssertionError, match=message):
        check_block(make, 8, compiled=True)
