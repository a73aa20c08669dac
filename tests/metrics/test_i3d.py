"""I3D against a plain transcription with batch norms of its own, on random weights in the published form."""

import pytest
import torch
from metric_trees import i3d, i3d_tree

from tubelet.metrics import I3D, i3d_tensors


@pytest.fixture(scope="module")
def networks() -> tuple[I3D, dict]:
    tree = i3d_tree()
    ours = I3D()
    ours.load_state_dict(i3d_tensors(tree))
    return ours.double(), tree


@pytest.mark.parametrize("shape", [(9, 32, 32), (17, 45, 33), (16, 24, 50)])
def test_it_is_the_published_network(networks: tuple[I3D, dict], shape: tuple[int, int, int]) -> None:
    ours, tree = networks
    video = torch.rand(1, 3, *shape, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = i3d(tree, video)
        error = (ours(video) - expected).norm() / expected.norm()
    assert expected.std() > 0.1  # activations have kept their size, so no branch is lost in rounding
    assert error < 1e-6, error  # the folded weights are rounded to float32


def test_logits_are_linear_in_the_features(networks: tuple[I3D, dict]) -> None:
    ours, _ = networks
    video = torch.rand(2, 3, 9, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.head(ours.features(video)), ours(video))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"at least 9 frames, got c, t = \(3, 8\)"):
        I3D()(torch.zeros(1, 3, 8, 16, 16))
    with pytest.raises(ValueError, match=r"3 channels and at least 9 frames, got c, t = \(1, 9\)"):
        I3D()(torch.zeros(1, 1, 9, 16, 16))
