"""What becomes of NaN and infinity in one sample of a pack: which backends keep them from the other samples."""

import pytest
import torch
from torch import Tensor

from tubelet.attention import Joint, Neighborhood, Spatial, Temporal, attend
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import Pattern

LAYOUT = TokenLayout.packed([Grid(2, 2, 3), Grid(2, 3, 2), Grid(2, 2, 3)], [2, 1, 0], capacity=40)
PATTERNS = [Joint(), Spatial(), Neighborhood((1, 1, 2)), Spatial() | Temporal()]


def drawn(dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip("qkv", torch.randn(3, *LAYOUT.shape, 2, 4).to(dtype).unbind(0), strict=True))


def outputs(pattern: Pattern, backend: str, name: str, value: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The other samples' outputs before and after one sample's q, k or v was spoiled, and the gradients after."""
    index = LAYOUT.on("cpu")
    spoiled, others = index.sample == 1, (index.sample == 0) | (index.sample == 2)
    inputs = drawn(torch.bfloat16 if backend == "chunked" else torch.float32)
    before = attend(**inputs, pattern=pattern, layout=index, backend=backend)
    inputs[name] = torch.where(spoiled[:, None, None], value, inputs[name])
    if backend == "flex":
        return before[others], attend(**inputs, pattern=pattern, layout=index, backend=backend)[others], []
    leaves = {key: x.requires_grad_() for key, x in inputs.items()}
    after = attend(**leaves, pattern=pattern, layout=index, backend=backend)
    grads = torch.autograd.grad(after[others].float().sum(), list(leaves.values()))
    return before[others], after[others].detach(), [grad[others] for grad in grads]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
def test_plans_read_one_sample_at_a_time(pattern: Pattern, value: float, name: str, backend: str) -> None:
    before, after, grads = outputs(pattern, backend, name, value)
    assert torch.equal(before, after)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.graph
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", ["reference", "flex"])
def test_masked_products_let_values_through(pattern: Pattern, value: float, backend: str) -> None:
    """As the page says: zero times NaN is NaN; scores are replaced where they are masked, so that q and k are kept."""
    for name in "qk":
        before, after, _ = outputs(pattern, backend, name, value)
        assert torch.equal(before, after)
    before, after, _ = outputs(pattern, backend, "v", value)
    assert before.isfinite().all()
    assert after.isnan().any()
