"""Predicted peaks of convolutions against those measured."""

import pytest
import small_vaes
import torch
from torch import nn

from tubelet.bench.memory import peak_bytes
from tubelet.kernels import linear
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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("rows", "deep", "columns"), [(8, 27, 512), (512, 1100, 192), (40, 432, 100), (300, 81, 1024)])
def test_a_product_holds_what_is_predicted(
    rows: int, deep: int, columns: int, dense: bool, dtype: torch.dtype, threads: int
) -> None:
    """oneDNN's, of a second factor whose rows or columns lie dense, and PyTorch's own, in bfloat16 oneDNN's too."""
    weight = nn.Linear(deep, rows, bias=False, dtype=dtype).requires_grad_(False)
    shape = (deep, columns) if dense else (columns, deep)

    def call(x: torch.Tensor) -> torch.Tensor:
        return linear(weight.weight, x.t() if dense else x)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return weight.weight @ (x if dense else x.t())

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for product in (call, plain):
            x = torch.randn(shape).to(dtype)
            measured, _ = peak_bytes(lambda product=product, x=x: product(x), torch.device("cpu"))
            assert measured is not None
            assert measured <= predicted_peak(weight, product, shape) <= 1.25 * measured + 2**10
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", small_vaes.NAMES)
def test_no_family_holds_more_than_predicted_or_much_less(name: str, dtype: torch.dtype) -> None:
    """Both ways at odd sides; buffers of fixed sizes count where peaks are below 300 kB."""
    vae = small_vaes.small(name).to(dtype).requires_grad_(False)
    z = torch.randn(1, vae.config.latent_channels, 3, 9, 7).to(dtype)
    for call, x in ((vae.decode, z), (vae.encode, vae.decode(z))):
        call(x)
        measured, _ = peak_bytes(lambda call=call, x=x: call(x), torch.device("cpu"))
        assert measured is not None
        predicted = predicted_peak(vae, call, tuple(x.shape))
        assert measured <= predicted <= max(1.25 * measured, measured + 75_000)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel"), [(64, 64, (1, 3, 3)), (64, 16, (1, 3, 3)), (24, 24, (3, 5, 5))]
)
def test_a_convolution_of_groups_holds_what_is_predicted(
    channels: int, groups: int, kernel: tuple[int, int, int], layout: torch.memory_format
) -> None:
    padding = tuple(side // 2 for side in kernel)
    conv = nn.Conv3d(channels, channels, kernel, padding=padding, groups=groups).requires_grad_(False)
    conv = conv.to(memory_format=layout)
    x = torch.randn(1, channels, 3, 20, 26)

    def call(x: torch.Tensor) -> torch.Tensor:
        return conv(x.contiguous(memory_format=layout))

    call(x)
    measured, _ = peak_bytes(lambda: call(x), torch.device("cpu"))
    assert measured is not None
    assert measured <= predicted_peak(conv, call, tuple(x.shape)) <= 1.1 * measured
