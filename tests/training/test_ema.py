"""The moving average against its formula in float64."""

import pytest
import torch
from torch import nn

from tubelet.training import EMA


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_the_formula(warmup):
    model = nn.Linear(3, 2)
    ema = EMA(model, decay=0.6, warmup=warmup)
    expected = model.weight.detach().double().clone()
    for n in range(20):
        with torch.no_grad():
            model.weight.normal_()
        ema.update(model)
        decay = min(0.6, (1 + n) / (10 + n)) if warmup else 0.6
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_warm_up_starts_at_a_tenth_and_reaches_the_decay():
    ema = EMA(nn.Linear(1, 1), decay=0.99)
    assert ema.current_decay == pytest.approx(0.1)
    ema.updates = 890
    assert ema.current_decay == pytest.approx(0.99)
    ema.updates = 10_000
    assert ema.current_decay == 0.99


def test_average_of_low_precision_weights_is_kept_in_float32():
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9999, warmup=False)
    nn.init.ones_(model.weight)
    for _ in range(10):
        ema.update(model)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].mean().item() == pytest.approx(1 - 0.9999**10, rel=1e-4)


def test_swapped_restores_to_the_bit_even_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def fail_inside():
        with ema.swapped(model) as averaged:
            assert averaged is model
            torch.testing.assert_close(model[0].weight, ema.average["0.weight"], rtol=0, atol=0)
            assert not torch.equal(model[0].weight, before["0.weight"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_copy_to_and_state_dict_move_the_average_to_a_new_object():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = EMA(model, decay=0.9)
    nn.init.ones_(model.weight)
    ema.update(model)
    restored = EMA(other, decay=0.9)
    restored.load_state_dict(ema.state_dict())
    restored.copy_to(other)
    assert restored.updates == 1
    assert torch.equal(other.weight, ema.average["weight"])
    ema.update(model)
    assert torch.equal(other.weight, restored.average["weight"])


def test_average_does_not_alias_the_model():
    model = nn.Linear(2, 2)
    ema = EMA(model)
    nn.init.constant_(model.weight, 7.0)
    assert not (ema.average["weight"] == 7.0).any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="ReLU has no parameters to average"):
        EMA(nn.ReLU())
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        EMA(nn.Linear(1, 1), decay=1.0)
    with pytest.raises(
        ValueError, match=r"model has 1 parameters, EMA averages 2; these differ: bias missing, expected \(1,\)"
    ):
        EMA(nn.Linear(1, 1)).update(nn.Linear(1, 1, bias=False))
    with pytest.raises(ValueError, match=r"these differ: weight \(1, 2\), expected \(1, 1\)"):
        EMA(nn.Linear(1, 1, bias=False)).load_state_dict(EMA(nn.Linear(2, 1, bias=False)).state_dict())
