"""What ships besides tiled attention, which has a file of its own."""

import pytest
from shipped import check


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["grouped", "modulation", "padded", "residual", "rotation"])
def test_all_shipped_kernels_pass(operation: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("triton.knobs.cache.dir", str(tmp_path))
    check(f"{operation}.", least=40)
