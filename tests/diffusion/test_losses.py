"""Losses against numpy."""

import numpy as np
import pytest
import torch

from tubelet.diffusion import Process, masked_mean, squared_error
from tubelet.layout import Rows


def test_masked_mean_of_squared_errors_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 4))
    mask = rng.random((3, 5)) < 0.5
    error = squared_error(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(error.numpy(), ((a - b) ** 2).mean(-1), rtol=1e-14)
    got = masked_mean(error, torch.from_numpy(mask))
    np.testing.assert_allclose(float(got), ((a - b) ** 2).mean(-1)[mask].mean(), rtol=1e-14)
    np.testing.assert_allclose(float(masked_mean(error)), ((a - b) ** 2).mean(), rtol=1e-14)


def test_half_precision_is_widened() -> None:
    big = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert float(squared_error(big, torch.zeros(1, 2))) == 90000.0


def test_masked_values_reach_neither_the_loss_nor_its_gradient() -> None:
    values = torch.tensor([1.0, 5.0, float("inf")], requires_grad=True)
    loss = masked_mean(values, torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == 3.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 0.0]


def test_an_empty_mask_gives_zero() -> None:
    assert float(masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool))) == 0.0


@pytest.mark.graph  # run-time shape checks off, as for users
def test_shapes_that_only_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(5,\).*\(3, 5\)"):
        masked_mean(torch.ones(3, 5), torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 3\)"):
        squared_error(torch.ones(4, 1), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"\(3,\).*\(4, 3\)"):
        squared_error(torch.ones(4, 3), torch.ones(4, 3), torch.ones(3, dtype=torch.bool))


def test_what_is_masked_reaches_no_gradient_of_a_prediction() -> None:
    prediction = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    x0 = torch.tensor([[0.0], [0.0], [float("nan")]])
    mask = torch.tensor([True, True, False])
    loss = Process().loss(prediction, x0, torch.zeros(3, 1), Rows(torch.tensor([0.5])), mask)
    loss.backward()
    assert loss.item() == 2.5
    assert prediction.grad is not None
    assert prediction.grad.flatten().tolist() == [1.0, 2.0, 0.0]


def test_an_empty_batch_is_refused() -> None:
    for mask in (None, torch.zeros(0, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"empty, got shape \(0,\)"):
            masked_mean(torch.zeros(0), mask)
