"""Predicted peaks of convolutions against those measured."""

import pytest
import torch
from torch import nn

from tubelet.bench.memory import peak_bytes
from tubelet.vae.memory import predicted_peak

CASES = {
    "blocks": (torch.float32, (3, 64, 64, 3), (5, 32, 32)),
    "few_in": (torch.bfloat16, (3, 3, 48, 3), (5, 32, 32)),
    "few_out": (torch.bfloat16, (3, 48, 3, 3), (5, 32, 32)),
    "one_position": (torch.bfloat16, (3, 64, 32, 1), (3, 32, 32)),
    "small": (torch.float32, (3, 16, 16, 3), (2, 8, 8)),
    "double": (torch.float64, (3, 16, 16, 3), (3, 16, 16)),
    "pictures": (torch.bfloat16, (2, 64, 96, 3), (32, 32)),
}


@pytest.mark.parametrize("formats", ["both", "weights", "input", "none"])
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_holds_what_is_predicted_in_every_format(case: str, formats: str) -> None:
    dtype, (rank, before, width, side), sides = CASES[case]
    make, layout = (nn.Conv2d, torch.channels_last) if rank == 2 else (nn.Conv3d, torch.channels_last_3d)
    conv = make(before, width, side, padding=side // 2).to(dtype).requires_grad_(False)
    if formats in ("both", "weights"):
        conv = conv.to(memory_format=layout)
    given = layout if formats in ("both", "input") else torch.contiguous_format
    x = torch.randn(1, before, *sides).to(dtype)

    def call(x: torch.Tensor) -> torch.Tensor:
        return conv(x.to(memory_format=given))

    call(x)
    measured, _ = peak_bytes(lambda: call(x), torch.device("cpu"))
    assert measured is not None
    assert measured <= predicted_peak(conv, call, x.shape) <= 1.25 * measured + 2**14
