"""U-ViT's files: the published model against its definition, and weights that return bit by bit."""

import pytest
import torch
import uvits
from parity import error

from tubelet.hub.uvit import uvit_published_keys
from tubelet.layout import Grid, TokenLayout
from tubelet.models import UViT
from tubelet.patchify import fold, unfold


@pytest.mark.parametrize("kind", uvits.KINDS)
def test_the_published_files_make_the_published_model(kind: str) -> None:
    """In float64 against its definition, in float32 against that; outputs, gradients of all weights, and the file."""
    config, grid = uvits.tiny(kind), Grid(1, 3, 3)
    state = uvits.published(config)
    keys, side = uvit_published_keys(config), 3 * config.patch[1]
    model = UViT(config, dtype=torch.float64)
    model.load_state_dict(keys.to_ours(state))
    z, level = torch.randn(2, 2, side, side).double(), torch.tensor([0.25, 0.9]).double()
    inputs, condition = {}, None
    if config.classes is not None:
        condition = inputs["labels"] = torch.tensor([3, 1 + 3 * config.null_class])
    if config.text_dim is not None:
        condition = inputs["text"] = torch.randn(2, 3, 5).double()
        inputs["text_layout"] = TokenLayout.padded([3, 3], 3)
    layout = TokenLayout.dense(2, grid)
    patches = model(fold(z[:, :, None], config.patch), layout.rows(level, "sample"), layout, **inputs)
    got = unfold(patches, grid, config.patch)[:, :, 0]
    file = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    expected = uvits.by_definition(file, config, z, 1000 * level, condition)
    assert error(got, expected) <= 1e-12
    got.square().sum().backward()
    expected.square().sum().backward()
    grads = keys.to_ours({name: tensor.grad for name, tensor in file.items()})
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # the same for all keys: softmax does not see it
            assert error(parameter.grad, grads[name]) <= 1e-10, name
    back = keys.to_theirs(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_models_of_videos_have_no_such_file() -> None:
    for change, says in (({"patch": (2, 2, 2)}, "square and of one frame"), ({"grid": (2, 3, 3)}, "no frames")):
        with pytest.raises(ValueError, match=says):
            uvit_published_keys(uvits.tiny("plain", **change))
