"""How near a kernel must come to what is exact: its largest error, and all its errors together."""

from torch import Tensor

TOLERANCE = 2e-6
"""Of kernels in float32."""
GRADIENT = 4e-6
"""Of attention's gradients in float32, whose parts are sums of a head's products and may cancel to nothing."""
HALF = {"output": 8e-4, "gradient": 3e-3}
"""Of kernels in float16; test_grouped_attention proves what they still see."""


def near(got: Tensor, exact: Tensor, what: str, tolerance: float) -> None:
    """The largest error of the largest number, and the norm of the errors of the norm, within ``tolerance``.

    Where numbers of size 1 cancel, errors are theirs: nothing counts as smaller than 1, and the norm not as less than
    that of numbers of 0.3.
    """
    assert got.shape == exact.shape, f"{what}: {tuple(got.shape)}, not {tuple(exact.shape)}"
    if not got.numel():
        return
    errors, exact = (got.detach().double() - exact.detach()).abs(), exact.detach()
    largest = errors.max() / exact.abs().max().clamp(min=1)
    together = errors.norm() / exact.norm().clamp(min=0.3 * exact.numel() ** 0.5)
    assert largest <= tolerance, f"{what}: the largest error is {largest:.1e}"
    assert together <= tolerance, f"{what}: the errors together are {together:.1e}"
