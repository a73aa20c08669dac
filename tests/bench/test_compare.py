"""Ratios with intervals that hold the truth as often as they say, and refusals to compare what differs."""

import copy

import numpy as np
import pytest

from tubelet.bench import Change, compare, comparison, ratio_interval


def run_of(rows: dict[str, list[float] | None], name: str = "one", dtype: str = "float32") -> dict:
    return {
        "environment": {"hardware": {"device": "cpu", "name": name}},
        "rows": [{"key": f"{key} {dtype} forward", "dtype": dtype, "seconds": values} for key, values in rows.items()],
    }


def samples(scale: float, count: int, seed: int) -> list[float]:
    return (scale * np.random.default_rng(seed).lognormal(0, 0.1, count)).tolist()


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_about_95_times_in_100(truth: float) -> None:
    held = 0
    for seed in range(200):
        first, second = samples(1.0, 30, 2 * seed), samples(truth, 30, 2 * seed + 1)
        ratio, low, high = ratio_interval(first, second, draws=500, seed=seed)
        assert low <= ratio <= high
        held += low <= truth <= high
    assert 0.90 <= held / 200 <= 0.99


def test_more_samples_narrow_the_interval() -> None:
    widths = []
    for count in (10, 40, 160):
        _, low, high = ratio_interval(samples(1.0, count, 0), samples(1.0, count, 1))
        widths.append(high - low)
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.4 * widths[2]


def test_verdicts() -> None:
    a, b, c = (samples(1, 30, seed) for seed in range(3))
    first = run_of({"a": a, "b": b, "c": c, "d": [1.0], "e": None, "f": None})
    a, b, c = samples(1, 30, 3), samples(2, 30, 4), samples(0.5, 30, 5)
    second = run_of({"a": a, "b": b, "c": c, "d": None, "e": [1.0], "f": None, "g": [1.0]})
    changes = compare(first, second)
    assert [change.verdict for change in changes] == ["same", "slower", "faster", "lost", "gained", "untimed"]
    assert changes[1].ratio == pytest.approx(2, rel=0.1)
    assert [change.regressed(1.05) for change in changes] == [False, True, False, True, False, False]
    assert not changes[1].regressed(2.5)
    lines = comparison(changes).splitlines()
    assert len(lines) == 2 + 6
    assert len({len(line) for line in lines}) == 1


def test_a_ratio_whose_interval_holds_1_is_no_change() -> None:
    first, second = [1.0, 1.3, 0.8, 1.1, 0.9], [1.1, 0.9, 1.4, 0.8, 1.2]
    for one, other in ((first, second), (second, first)):
        [change] = compare(run_of({"a": one}), run_of({"a": other}))
        assert change.ratio not in (None, 1.0)
        assert change.verdict == "same"


def test_a_slow_row_within_its_scatter_is_no_regression() -> None:
    assert not Change("row", 1.5, 0.9, 2.0, "same").regressed(1.05)


def test_other_hardware_needs_force() -> None:
    first, second = run_of({"a": [1.0] * 5}), run_of({"a": [2.0] * 5}, name="two")
    with pytest.raises(ValueError, match="name is 'one' in the first, 'two' in the second; --force"):
        compare(first, second)
    assert compare(first, second, force=True)[0].ratio == 2.0


def test_other_dtypes_need_force() -> None:
    first, second = run_of({"a": [1.0] * 5}), run_of({"a": [0.5] * 5}, dtype="bfloat16")
    with pytest.raises(ValueError, match="first run is of float32, the second of bfloat16; --force"):
        compare(first, second)
    [change] = compare(first, second, force=True)
    assert (change.key, change.ratio, change.verdict) == ("a forward", 0.5, "faster")


def test_runs_without_a_common_row_are_refused() -> None:
    with pytest.raises(ValueError, match="no row in common: 1 and 1 rows"):
        compare(run_of({"a": [1.0]}), run_of({"b": [1.0]}))


def test_the_same_run_is_the_same(small) -> None:
    changes = compare(small, copy.deepcopy(small))
    assert {change.verdict for change in changes} == {"same"}
    assert {change.ratio for change in changes} == {1.0}
