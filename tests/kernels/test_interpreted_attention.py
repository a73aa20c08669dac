"""Attention in Triton's interpreter; the other operations have a file of their own, so that workers share them."""

import pytest
from interpreting import run


@pytest.mark.parametrize("operation", ["grouped_attention", "tiled_attention"])
def test_kernels_in_tritons_interpreter(operation: str) -> None:
    run("few", operation)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["grouped_attention", "tiled_attention"])
def test_kernels_in_tritons_interpreter_on_many_shapes(operation: str) -> None:
    run("many", operation)
