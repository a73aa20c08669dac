"""A plan is a product of names, checked when it is made."""

import pytest

from tubelet.bench.plan import CPU_SCALE, Cell, Group, Plan
from tubelet.bench.run import key

NAMES = {"shapes": ("1x2x2/1x8",), "patterns": ("joint",), "backends": ("sdpa",)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shapes": ("nothing",)}, "nothing"),
        ({"shapes": ()}, "shapes must name one or more"),
        ({"backends": ("sdpa", "sdpa")}, "each once"),
        ({"patterns": ("dance",)}, "dance"),
        ({"dtypes": ("int8",)}, "int8"),
        ({"directions": ("backward",)}, "backward"),
        ({"caches": ("hot",)}, "hot"),
        ({"modes": ("fast",)}, "fast"),
        ({"modes": ("graph",)}, "'cpu'"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"rounds": 0}, "rounds"),
        ({"budget": float("inf")}, "budget"),
        ({"check_rows": -1}, "check_rows"),
        ({"batches": (0,)}, "batches"),
    ],
)
def test_mistakes_are_named(changes, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Plan(**{**NAMES, **changes})
    assert says in str(caught.value)


def test_the_product_holds_every_combination_once() -> None:
    plan = Plan(
        shapes=("1x2x2/1x8", "1x2x3/1x8"), patterns=("joint",), backends=("sdpa",), batches=(1, 2),
        dtypes=("float32", "float64"), directions=("forward", "forward+backward"), caches=("warm", "cold"),
    )  # fmt: skip
    keys = [key(group, cell, "sdpa") for group in plan.groups() for cell in plan.cells()]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2 * 2 * 2


def test_models_are_scaled_on_a_cpu_where_nothing_is_asked() -> None:
    def scales(**changes) -> list[float]:
        plan = Plan(**{**NAMES, "shapes": ("ltx-512", "1x2x2/1x8", "mix:navit"), **changes})
        return [group.scale for group in plan.groups()]

    assert scales() == [CPU_SCALE, 1, 1]
    assert scales(device="cuda") == [1, 1, 1]
    assert scales(scale=0.5) == [0.5] * 3
    assert Group("ltx-512", 0.25, 1, "joint", "float32").shape().tokens == 4 * 4 * 6


def test_a_key_names_the_row() -> None:
    one = key(Group("ltx-512", 0.25, 2, "joint", "float32"), Cell("forward", "cold", "eager"), "sdpa")
    assert one == "ltx-512 4x4x6/32x64 b2 joint float32 forward cold eager sdpa"
