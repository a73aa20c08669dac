"""Everything but attention in Triton's interpreter."""

import pytest
from interpreting import FOLDER, run

OPERATIONS = ["gate_residual", "norm_modulate", "norm_silu_pad", "qk_norm_rope"]


def test_kernels_in_tritons_interpreter() -> None:
    run("few", *OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernels_in_tritons_interpreter_on_many_shapes(operation: str) -> None:
    run("many", operation)


def test_no_operation_is_left_out() -> None:
    found = {path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py")}
    assert found == {*OPERATIONS, "grouped_attention", "tiled_attention"}
