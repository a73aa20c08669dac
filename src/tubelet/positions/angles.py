"""What every kind of position shares: angles in float64, and nothing for text."""

import torch
from torch import Tensor

__all__: list[str] = []


def angles(position: Tensor, dim: int, base: float) -> Tensor:
    """``position · base^(-2i/dim)`` for ``i < dim/2``, in float64 where the device has it."""
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    position = widened(position)
    exponents = torch.arange(0, dim, 2, device=position.device, dtype=position.dtype) / max(dim, 1)
    return position.unsqueeze(-1) * base**-exponents


def widened(x: Tensor) -> Tensor:
    """``x`` in float64 where the device has it, else in float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def zero_text(coords: Tensor, values: Tensor) -> Tensor:
    """Zeros where the frame index is below 0: text, registers and padding have no place in the grid."""
    return torch.where(coords[..., :1] < 0, 0.0, values)
