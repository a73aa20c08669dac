"""LPIPS against a plain transcription of its equation, on random weights in the published form."""

import pytest
import torch
from metric_trees import lpips, lpips_tree

from tubelet.metrics import LPIPS, VGG16, lpips_tensors

NARROW = (8, 16, 32, 64, 64)


def network(seed: int = 0) -> tuple[LPIPS, dict]:
    tree = lpips_tree(seed, divide=8)
    ours = LPIPS(NARROW)
    ours.load_state_dict(lpips_tensors(tree))
    return ours.double(), tree


def test_it_is_the_published_network() -> None:
    ours, tree = network()
    x, y = torch.rand(2, 2, 3, 3, 24, 37, dtype=torch.float64) * 2 - 1
    expected = [lpips(tree, a.transpose(0, 1), b.transpose(0, 1)).mean() for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(ours(x, y), torch.stack(expected), rtol=1e-8, atol=1e-12)


def test_the_published_network_has_as_many_weights_as_the_paper_s() -> None:
    convolutions = sum(p.numel() for p in VGG16().parameters())
    assert convolutions == 138_357_544 - (25_088 + 1) * 4096 - (4096 + 1) * 4096 - (4096 + 1) * 1000
    assert sum(p.numel() for p in LPIPS().parameters()) == convolutions + 1472


def test_it_is_a_distance() -> None:
    ours, _ = network()
    x = torch.rand(2, 3, 2, 16, 16, dtype=torch.float64) * 2 - 1
    near, far = x + 0.05 * torch.randn_like(x), x + 0.5 * torch.randn_like(x)
    assert ours(x, x).tolist() == [0.0, 0.0]
    torch.testing.assert_close(ours(x, far), ours(far, x), rtol=1e-12, atol=0.0)
    assert bool((ours(x, near) < ours(x, far)).all())


def test_gradients_are_those_of_differences() -> None:
    ours, _ = network()
    x, y = torch.rand(2, 1, 3, 1, 16, 16, dtype=torch.float64) * 2 - 1
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(ours(x.requires_grad_(), y).sum(), x)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (ours(x + step, y) - ours(x - step, y)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope.sum(), rtol=1e-4, atol=1e-9)


def test_gradients_are_finite_where_features_vanish() -> None:
    ours, _ = network()
    for stage in ours.trunk.stages:
        torch.nn.init.constant_(stage[-2].bias, -100.0)
    x, y = torch.rand(2, 1, 3, 1, 16, 16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours(x.requires_grad_(), y).sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_named() -> None:
    ours, _ = network()
    x = torch.zeros(1, 3, 1, 16, 16).double()
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 16, 16\) and \(1, 3, 1, 16, 8\)"):
        ours(x, x[..., :8])
    with pytest.raises(ValueError, match=r"one shape \(b, 3, t, h, w\)"):
        ours(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match=r"at least 16 pixels, got h, w = \(16, 15\)"):
        ours(x[..., :15], x[..., :15])
    with pytest.raises(ValueError, match=r"widths must be 5 numbers, one a stage, not \(8, 8\)"):
        LPIPS((8, 8))
