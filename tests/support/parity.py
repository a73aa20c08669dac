"""What every comparison with a peer shares: errors, counts, random weights, a peer as it is loaded in bfloat16."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def error(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of the expected."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


def size(model: nn.Module) -> int:
    """How many parameters."""
    return sum(math.prod(p.shape) for p in model.parameters())


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, biases and norms too, so that none can be missed; in eval mode."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1.0, generator=draw)
    return model.eval()


def in_bfloat16(model: nn.Module, wide: Sequence[str] = ()) -> nn.Module:
    """The peer in bfloat16, but for modules whose names are in its ``_keep_in_fp32_modules``."""
    kept = {name: p.data.clone() for name, p in model.named_parameters() if set(name.split(".")) & set(wide)}
    model.to(torch.bfloat16)
    for name, value in kept.items():
        model.get_parameter(name).data = value
    return model
