"""Schedules against torch's own schedulers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.training import set_lr, warmup_cosine, warmup_linear_decay


def _torch_factors(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_equals_torch():
    expected = _torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 16, eta_min=0.1), 16)
    ours = [warmup_cosine(4 + s, 20, warmup=4, floor=0.1) for s in range(17)]
    assert ours == pytest.approx(expected, abs=1e-9)


def test_linear_decay_equals_torch():
    expected = _torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=8), 8)
    ours = [warmup_linear_decay(12 + s, 20, warmup=3, decay=8, floor=0.2) for s in range(9)]
    assert ours == pytest.approx(expected, abs=1e-9)
    assert [warmup_linear_decay(s, 20, warmup=3, decay=8, floor=0.2) for s in range(3, 12)] == [1.0] * 9


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_linear_decay])
@given(steps=st.integers(1, 50), data=st.data())
def test_warm_up_then_down_to_the_floor(schedule, steps, data):
    warmup = data.draw(st.integers(0, steps))
    extra = {"decay": steps - warmup} if schedule is warmup_linear_decay else {}
    factors = [schedule(s, steps, warmup=warmup, floor=0.25, **extra) for s in range(steps + 5)]
    assert factors[:warmup] == pytest.approx([(s + 1) / warmup for s in range(warmup)])
    assert all(a >= b - 1e-12 for a, b in zip(factors[warmup:], factors[warmup + 1 :], strict=False))
    if warmup < steps:
        assert factors[warmup] == pytest.approx(1.0)
        assert factors[steps:] == pytest.approx([0.25] * 5)


def test_no_decay_stays_constant():
    assert [warmup_linear_decay(s, 5) for s in range(8)] == [1.0] * 8


def test_set_lr_scales_each_group_from_its_base_and_survives_a_state_dict():
    def make():
        a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
        return torch.optim.AdamW([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}])

    optimizer = make()
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.0025])
    resumed = make()
    resumed.load_state_dict(optimizer.state_dict())
    set_lr(resumed, 1.0)
    assert [g["lr"] for g in resumed.param_groups] == pytest.approx([0.1, 0.01])


def test_bad_arguments():
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        warmup_cosine(-1, 10)
    with pytest.raises(ValueError, match="warmup=11 must be between 0 and steps=10"):
        warmup_cosine(0, 10, warmup=11)
    with pytest.raises(ValueError, match=r"warmup \+ decay=12 must be between 0 and steps=10"):
        warmup_linear_decay(0, 10, warmup=6, decay=6)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_factor_that_would_ruin_the_weights_is_refused(factor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=f"factor must be at least 0 and finite, got {factor}"):
        set_lr(optimizer, factor)


@pytest.mark.parametrize("floor", [-0.1, 3.0, math.nan])
def test_floors_outside_zero_and_one_are_refused(floor: float) -> None:
    for schedule in (warmup_cosine, warmup_linear_decay):
        with pytest.raises(ValueError, match=rf"floor must be in \[0, 1\], got {floor}"):
            schedule(1, 10, floor=floor)
