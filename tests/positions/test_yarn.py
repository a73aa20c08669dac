"""YaRN's frequencies pair by pair from the formula, and what it does to a rotation."""

import math

import pytest
import torch

from tubelet.positions import Rope3d, Yarn

AXES, THETA = (8, 6, 4), 1000.0


def test_frequencies_are_the_papers_pair_by_pair() -> None:
    yarn = Yarn((1.0, 2.0, 4.0), (9, 300, 20), slow=1.0, fast=8.0)
    expected = []
    for width, factor, length in zip(AXES, yarn.factors, yarn.lengths, strict=True):
        for pair in range(width // 2):
            frequency = THETA ** (-2 * pair / width)
            turns = length / (2 * math.pi / frequency)
            ramp = 0.0 if turns < 1 else 1.0 if turns > 8 else (turns - 1) / 7
            expected.append(((1 - ramp) * frequency / factor + ramp * frequency) / frequency)
    got = yarn.shares(AXES, THETA)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert {float(got.min()), float(got.max())} == {0.25, 1.0}  # some interpolated whole, some not at all
    assert any(0.3 < share < 0.95 for share in got.tolist())
    assert torch.equal(yarn.shares(AXES, (THETA,) * 3), got)


def test_rotations_turn_by_them_and_grow() -> None:
    yarn = Yarn((1.0, 2.0, 2.0), (9, 30, 52))
    coords = torch.tensor([[0, 1, 2], [3, 4, 5], [-1, 0, 0]])
    plain, scaled = (Rope3d(18, AXES, THETA, yarn=each, dtype=torch.float64)(coords) for each in (None, yarn))
    angle = torch.atan2(plain.sin, plain.cos)
    small = angle[:1, 4:] * yarn.shares(AXES, THETA)[4:]  # a row whose angles do not wrap
    torch.testing.assert_close(torch.atan2(scaled.sin, scaled.cos)[:1, 4:], small, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(scaled.cos.hypot(scaled.sin), torch.full((3, 9), 0.1 * math.log(4) + 1).double())
    same = Rope3d(18, AXES, THETA, yarn=Yarn((1.0, 1.0, 1.0), (9, 30, 52)), dtype=torch.float64)(coords)
    assert torch.equal(same.cos, plain.cos) and torch.equal(same.sin, plain.sin)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"factors": (1.0, 0.0, 1.0)}, r"positive, got \(1.0, 0.0, 1.0\)"),
        ({"lengths": (0, 1, 1)}, r"and \(0, 1, 1\)"),
        ({"slow": 9.0, "fast": 9.0}, "slow must be below fast, got 9.0 and 9.0"),
    ],
)
def test_what_makes_no_sense_is_named(args: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Yarn(**{"factors": (1.0, 1.0, 1.0), "lengths": (1, 1, 1)} | args)  # type: ignore[arg-type]


def test_a_smaller_grid_is_not_blunted() -> None:
    assert Yarn((0.5, 0.5, 1.0), (4, 4, 4)).magnitude == 1.0
    assert Yarn((0.5, 1.0, 8.0), (4, 4, 4)).magnitude == pytest.approx(1 + 0.1 * math.log(4))
