"""Every model with norms or rotations of queries and keys: what ``use_kernels`` changes, and that nothing else does."""

import pytest
import torch
from parity import error
from tiny_models import MODELS, tiny_inputs, tiny_model
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.fused import unfused, use_kernels


def results(model: torch.nn.Module, name: str, dtype: torch.dtype) -> list[Tensor]:
    """The answer, and its gradients of every parameter and of the input."""
    given = tiny_inputs(name, dtype)
    out = model(**given)
    grads = torch.autograd.grad(out.square().sum(), [given["x"], *model.parameters()], allow_unused=True)
    return [out.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_with_kernels_equals_the_eager_one(name: str) -> None:
    """In float64 with gradients, of which some are exactly 0; in float32 what comes out."""
    model, single = tiny_model(name, torch.float64), tiny_model(name, torch.float32)
    eager, eager_single = results(model, name, torch.float64), single(**tiny_inputs(name, torch.float32))
    changed = use_kernels(model)
    assert changed == use_kernels(single)
    assert unfused(model) == {}
    for path, module in model.named_modules():
        if isinstance(module, Attention) or not isinstance(getattr(module, "q_norm", nn.Identity()), nn.Identity):
            assert path in changed
    got = results(model, name, torch.float64)
    largest = max(float(each.abs().max()) for each in eager)
    for ours, expected in zip(got, eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12 * largest)
    assert error(single(**tiny_inputs(name, torch.float32)), eager_single) <= 1e-5
