"""Tiled attention takes as long to compile as all the rest."""

import pytest
from shipped import check


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "backward_queries", "backward_keys"])
def test_all_shipped_kernels_pass(kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("triton.knobs.cache.dir", str(tmp_path))
    check(f"tiled.{kernel} ", least=40)
