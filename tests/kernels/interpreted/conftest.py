"""Everything here runs kernels in Triton's interpreter, on the CPU, with uninitialised memory full of NaN."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _nan_filled_memory() -> Iterator[None]:
    """Whatever a kernel does not write stays NaN; an operation that is not deterministic raises."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
