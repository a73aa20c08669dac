"""Weights by step: phases, ramps, what is frozen, and schedules that cannot be."""

import pytest

from tubelet.vae.objectives import LossPhase, LossSchedule

SCHEDULE = LossSchedule(
    (
        LossPhase(0, {"l1": 1.0, "kl": 0.5}),
        LossPhase(10, {"l1": 2.0, "lpips": 1.0}, ramp=4),
        LossPhase(20, {"l1": 2.0, "lpips": 1.0, "frames": 0.0}, frozen=("encoder",)),
    )
)


def test_weights_move_on_lines_and_then_stay() -> None:
    assert SCHEDULE.weights(0) == SCHEDULE.weights(9) == {"l1": 1.0, "kl": 0.5}
    assert SCHEDULE.weights(10) == {"l1": 1.0, "kl": 0.5, "lpips": 0.0}
    assert SCHEDULE.weights(11) == {"l1": 1.25, "kl": 0.375, "lpips": 0.25}
    assert SCHEDULE.weights(13) == {"l1": 1.75, "kl": 0.125, "lpips": 0.75}
    assert SCHEDULE.weights(14) == SCHEDULE.weights(19) == {"l1": 2.0, "lpips": 1.0}
    assert SCHEDULE.weights(20) == SCHEDULE.weights(10**9) == {"l1": 2.0, "lpips": 1.0, "frames": 0.0}


def test_parts_are_frozen_from_their_phase_on() -> None:
    assert [SCHEDULE.frozen(step) for step in (0, 19, 20, 21)] == [(), (), ("encoder",), ("encoder",)]
    assert SCHEDULE.names == {"l1", "kl", "lpips", "frames"}


def test_weights_are_the_callers_own() -> None:
    SCHEDULE.weights(0)["l1"] = 7.0
    assert SCHEDULE.weights(0)["l1"] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSchedule(()), r"begin at step 0, got starts \[\]"),
        (lambda: LossSchedule((LossPhase(3, {}),)), r"begin at step 0, got starts \[3\]"),
        (lambda: LossSchedule((LossPhase(0, {}, ramp=5),)), "no weights to move from, but a ramp of 5"),
        (lambda: LossSchedule((*SCHEDULE.phases[:2], LossPhase(13, {}))), "step 13, .* step 10 with a ramp of 4"),
        (lambda: LossSchedule((LossPhase(0, {}), LossPhase(0, {}))), "step 0, .* step 0 with a ramp of 0"),
        (lambda: LossPhase(-1, {}), "start must be a whole number of at least 0, got -1"),
        (lambda: LossPhase(0, {}, ramp=-2), "ramp must be a whole number of at least 0, got -2"),
        (lambda: LossPhase(0, {"kl": -0.1}), "kl must be a finite number of at least 0, got -0.1"),
        (lambda: LossPhase(0, {"kl": float("nan")}), "kl must be a finite number of at least 0, got nan"),
        (lambda: SCHEDULE.weights(-1), "step must not be negative, got -1"),
    ],
)
def test_what_cannot_be_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
