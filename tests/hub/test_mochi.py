"""Mochi's adapter: configs both ways, and weights that return bit by bit."""

import dataclasses
from typing import Any

import mochis
import pytest
import torch

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.mochi import mochi_config_from_diffusers, mochi_config_to_diffusers
from tubelet.models import mochi_10b


def test_our_config_returns() -> None:
    assert mochi_config_from_diffusers(mochi_config_to_diffusers(mochi_10b())) == mochi_10b()


@pytest.mark.parametrize("seed", range(2))
def test_their_configs_and_weights_return_bit_by_bit(seed: int) -> None:
    theirs = mochis.peer(seed)
    state = theirs.state_dict()
    config, back = to_diffusers(from_diffusers(dict(theirs.config) | {"_class_name": type(theirs).__name__}, state))
    assert config == {"_class_name": "MochiTransformer3DModel"} | {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"qk_norm": None}, "qk_norm=None, but Mochi's is 'rms_norm'"),
        ({"activation_fn": "gelu"}, "activation_fn='gelu'"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=12"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mochi_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_scale": 1.0}, "time_scale=1.0, but diffusers' class has 1000"),
        ({"pool_heads": 4}, "pool_heads=4"),
        ({"area": 1.0}, "area=1.0"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
    ],
)
def test_what_their_config_cannot_say_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mochi_config_to_diffusers(dataclasses.replace(mochi_10b(), **change))
