"""Dropped conditions: InstructPix2Pix's rule from the same numbers, independent shares, and nulls."""

import math

import pytest
import torch

from tubelet.diffusion import draw_dropped, independent_drops, nulled

PIX2PIX = {("text",): 0.05, ("text", "image"): 0.05, ("image",): 0.05}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_instruct_pix2pix_from_one_number_a_sample() -> None:
    """Text is lost below .10, the image from .05 to .15 (arXiv:2211.09800)."""
    dropped = draw_dropped(PIX2PIX, 20_000, seeded())
    r = torch.rand(20_000, generator=seeded(), dtype=torch.float64)
    assert torch.equal(dropped["text"], r < 0.10)
    assert torch.equal(dropped["image"], (r >= 0.05) & (r < 0.05 + 0.05 + 0.05))
    text, image = dropped["text"], dropped["image"]
    for event in (text & ~image, text & image, image & ~text):
        assert abs(float(event.double().mean()) - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 20_000)


def test_independent_conditions_have_their_shares_and_no_correlation() -> None:
    shares = {"text": 0.1, "image": 0.3, "motion": 0.5}
    events = independent_drops(**shares)
    assert len(events) == 7
    assert math.fsum(events.values()) == pytest.approx(1 - 0.9 * 0.7 * 0.5)
    dropped = draw_dropped(events, 40_000, seeded())
    for name, share in shares.items():
        assert abs(float(dropped[name].double().mean()) - share) < 5 * 0.5 / 200
    flags = torch.stack([dropped[name].double() for name in shares])
    assert float((torch.corrcoef(flags) - torch.eye(3)).abs().max()) < 5 / 200


def test_shares_of_one_and_none_are_certain() -> None:
    assert bool(draw_dropped({("a",): 1.0}, 100, seeded())["a"].all())
    assert not bool(draw_dropped({("a",): 0.0}, 100, seeded())["a"].any())
    assert draw_dropped({}, 3) == {}
    assert bool(draw_dropped(independent_drops(a=1.0, b=0.0), 50, seeded())["a"].all())


def test_nulls_replace_whole_samples_and_stop_their_gradient() -> None:
    values = torch.randn(3, 2, 4, requires_grad=True)
    null = torch.randn(4, requires_grad=True)
    got = nulled(values, torch.tensor([False, True, False]), null)
    assert torch.equal(got[[0, 2]], values[[0, 2]])
    assert torch.equal(got[1], null.expand(2, 4))
    got.sum().backward()
    assert values.grad is not None
    assert null.grad is not None
    assert (values.grad[1] == 0).all()
    assert null.grad.tolist() == [2.0] * 4


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1 at most, got \[0.7, 0.4\]"):
        draw_dropped({("a",): 0.7, ("b",): 0.4}, 2)
    with pytest.raises(ValueError, match=r"add up to 1 at most, got \[-0.1\]"):
        draw_dropped({("a",): -0.1}, 2)
    with pytest.raises(ValueError, match=r"shares must lie in \[0, 1\], got \{'a': 1.5\}"):
        independent_drops(a=1.5)
    with pytest.raises(ValueError, match=r"dropped has shape \(2,\), but there are 3 samples"):
        nulled(torch.ones(3, 1), torch.zeros(2, dtype=torch.bool), torch.zeros(1))


@pytest.mark.parametrize("null", [torch.zeros(4, 2, 3), torch.zeros(2, 3), torch.zeros(2)])
def test_what_is_no_condition_of_one_sample_is_refused(null: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"null has shape .*, but one condition has \(3,\)"):
        nulled(torch.ones(2, 3), torch.tensor([True, False]), null)
    with pytest.raises(ValueError, match=r"null holds torch.float32, but values hold torch.int64"):
        nulled(torch.ones(2, 3, dtype=torch.long), torch.tensor([True, False]), torch.zeros(3))
    assert nulled(torch.ones(0, 3), torch.zeros(0, dtype=torch.bool), torch.zeros(3)).shape == (0, 3)
