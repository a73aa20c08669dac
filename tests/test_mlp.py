"""MLPs against their formulas in float64 and diffusers' FeedForward with mapped random weights."""

import math

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import Tensor

from tubelet.mlp import MLP, SwiGLU

LAYERS = [MLP, SwiGLU]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def test_mlp_is_its_formula_in_float64() -> None:
    mlp = randomised(MLP(4, 6, dtype=torch.float64))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    h = x @ mlp.up.weight.T + mlp.up.bias
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(mlp(x), gelu @ mlp.down.weight.T + mlp.down.bias, rtol=1e-12, atol=1e-12)


def test_swiglu_is_its_formula_in_float64() -> None:
    layer = randomised(SwiGLU(4, 6, dtype=torch.float64))
    x = torch.randn(5, 4, dtype=torch.float64)
    gate = x @ layer.gate.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ layer.up.weight.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "act"), [("gelu-approximate", None), ("gelu", torch.nn.GELU()), ("linear-silu", torch.nn.functional.silu)]
)
def test_mlp_equals_diffusers(name: str, act: torch.nn.Module | None) -> None:
    ours, theirs = randomised(MLP(8, act=act)), FeedForward(8, activation_fn=name)
    theirs.net[0].proj.load_state_dict(ours.up.state_dict())
    theirs.net[2].load_state_dict(ours.down.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_a_projection_to_another_width_equals_diffusers() -> None:
    ours, theirs = randomised(MLP(8, 6, out=5)), PixArtAlphaTextProjection(8, 6, 5)
    theirs.linear_1.load_state_dict(ours.up.state_dict())
    theirs.linear_2.load_state_dict(ours.down.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_equals_diffusers(bias: bool) -> None:
    ours, theirs = randomised(SwiGLU(8, 20, bias=bias)), FeedForward(8, inner_dim=20, activation_fn="swiglu", bias=bias)
    stacked = {k: torch.cat([v, ours.gate.state_dict()[k]]) for k, v in ours.up.state_dict().items()}
    theirs.net[0].proj.load_state_dict(stacked)
    theirs.net[2].load_state_dict(ours.down.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_default_widths_have_the_same_number_of_weights() -> None:
    mlp, swiglu = MLP(24, bias=False), SwiGLU(24)
    assert mlp.up.out_features == 96
    assert swiglu.up.out_features == 64
    assert sum(p.numel() for p in mlp.parameters()) == sum(p.numel() for p in swiglu.parameters()) == 8 * 24**2


def test_an_injected_module_is_a_child_and_a_function_is_called() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    x = torch.randn(3, 4)
    with_module, with_function = MLP(4, act=Scale()), MLP(4, act=lambda h: h * 2)
    assert "act.factor" in with_module.state_dict()
    with_function.load_state_dict(with_module.state_dict(), strict=False)
    assert torch.equal(with_module(x), with_function(x))


@pytest.mark.parametrize("layer_class", LAYERS)
def test_meta_construction_then_reset_is_xavier(layer_class: type) -> None:
    layer = layer_class(64, 128, bias=True, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    bound = math.sqrt(6 / (64 + 128))
    for name, parameter in layer.named_parameters():
        largest = parameter.abs().max().item()
        assert largest == 0 if name.endswith("bias") else 0.95 * bound < largest <= bound


@pytest.mark.parametrize("layer_class", LAYERS)
def test_tokens_are_independent_and_packed_equals_dense(layer_class: type) -> None:
    layer, x = randomised(layer_class(8, dtype=torch.float64)), torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x.reshape(10, 8)).reshape(2, 5, 8), layer(x), rtol=1e-12, atol=1e-12)
    changed = x.clone()
    changed[0, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1) > 1e-9
    assert moved.nonzero().tolist() == [[0, 2]]
