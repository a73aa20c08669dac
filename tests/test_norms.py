"""Norms against their formulas in float64, torch's functions and diffusers' modules."""

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch.nn import functional as F

from tubelet.norms import LayerNorm, RMSNorm

NORMS = [LayerNorm, RMSNorm]


def randomised(norm: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return norm


def test_layer_norm_is_its_formula_in_float64() -> None:
    x = torch.randn(2, 5, 7, dtype=torch.float64) * 3 + 1
    norm = randomised(LayerNorm(7, eps=1e-3, dtype=torch.float64))
    variance = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    expected = (x - x.mean(-1, keepdim=True)) / (variance + 1e-3).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_rms_norm_is_its_formula_in_float64() -> None:
    x = torch.randn(2, 5, 3, 7, dtype=torch.float64) * 3 + 1
    norm = randomised(RMSNorm(7, eps=1e-3, dtype=torch.float64))
    expected = x / ((x**2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_equal_to_torch_functions() -> None:
    x = torch.randn(4, 6)
    layer, rms = randomised(LayerNorm(6)), randomised(RMSNorm(6))
    assert torch.equal(layer(x), F.layer_norm(x, (6,), layer.weight, layer.bias, 1e-6))
    assert torch.equal(rms(x), F.rms_norm(x, (6,), rms.weight, 1e-6))
    assert torch.equal(LayerNorm(6, affine=False)(x), F.layer_norm(x, (6,), eps=1e-6))
    assert torch.equal(RMSNorm(6, affine=False)(x), F.rms_norm(x, (6,), eps=1e-6))


def test_a_layer_norm_may_have_a_weight_alone() -> None:
    norm, x = randomised(LayerNorm(6, bias=False)), torch.randn(4, 6)
    assert list(norm.state_dict()) == ["weight"]
    assert torch.equal(norm(x), F.layer_norm(x, (6,), norm.weight, None, 1e-6))
    assert repr(norm) == "LayerNorm(6, eps=1e-06, affine=True, bias=False)"
    norm.reset_parameters()
    assert torch.equal(norm.weight, torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_norm_equals_diffusers_bit_for_bit(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 9, 8) * 20 + 50).to(dtype)
    ours, theirs = randomised(LayerNorm(8)), FP32LayerNorm(8, eps=1e-6)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).dtype == dtype


def test_rms_norm_equals_diffusers() -> None:
    x = torch.randn(3, 9, 8)
    ours, theirs = randomised(RMSNorm(8, 1e-5)), DiffusersRMSNorm(8, 1e-5)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    plain = RMSNorm(8, 1e-5, affine=False)(x.bfloat16())
    torch.testing.assert_close(plain, DiffusersRMSNorm(8, 1e-5, elementwise_affine=False)(x.bfloat16()))


@pytest.mark.parametrize("norm_class", NORMS)
@pytest.mark.parametrize("affine", [True, False])
def test_low_precision_input_loses_only_the_last_rounding(norm_class: type, affine: bool) -> None:
    norm = randomised(norm_class(16, affine=affine))
    x = (torch.randn(4, 16) * 30 + 100).bfloat16()
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x.float()), norm.forward(x.float()))
        assert norm(x.float()).dtype == torch.float32
        assert norm(x).dtype == torch.bfloat16
        autocast = norm(x.float())
    assert torch.equal(autocast, norm(x.float()))


@pytest.mark.parametrize("norm_class", NORMS)
def test_bfloat16_weights_are_used_at_full_precision(norm_class: type) -> None:
    low, high = randomised(norm_class(8, dtype=torch.bfloat16)), norm_class(8)
    high.load_state_dict(low.state_dict())
    x = torch.randn(4, 8)
    assert torch.equal(low(x), high(x))


@pytest.mark.parametrize("norm_class", NORMS)
def test_gradients(norm_class: type) -> None:
    norm = randomised(norm_class(5, dtype=torch.float64))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("norm_class", NORMS)
def test_meta_construction_then_reset_is_the_plain_initialisation(norm_class: type) -> None:
    norm = norm_class(4, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in norm.parameters())
    norm = norm.to_empty(device="cpu")
    norm.reset_parameters()
    assert all(torch.equal(norm.state_dict()[k].float(), v) for k, v in norm_class(4).state_dict().items())
    assert not list(norm_class(4, affine=False).parameters())


@pytest.mark.parametrize("norm_class", NORMS)
def test_wrong_width_names_both(norm_class: type) -> None:
    with pytest.raises(ValueError, match=r"width 1.*dim=4"):
        norm_class(4)(torch.randn(2, 1))


def test_repr_says_the_sizes() -> None:
    assert repr(LayerNorm(4, affine=False)) == "LayerNorm(4, eps=1e-06, affine=False)"
    assert repr(RMSNorm(4, 1e-5)) == "RMSNorm(4, eps=1e-05, affine=True)"
