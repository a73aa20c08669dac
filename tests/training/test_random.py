"""Random states return through a file."""

import random

import numpy as np
import pytest
import torch

from tubelet.training import load_checkpoint, restore_rng_state, rng_state, save_checkpoint


def _draw(generator):
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002
        torch.rand(1).item(),
        torch.randn(3).tolist(),
        torch.rand(1, generator=generator).item(),
    ]


def test_all_generators_return_through_a_file(tmp_path):
    generator = torch.Generator().manual_seed(5)
    _draw(generator)
    file = save_checkpoint(tmp_path / "rng.safetensors", rng_state({"noise": generator}))
    expected = _draw(generator)
    assert _draw(generator) != expected
    other = torch.Generator().manual_seed(99)
    restore_rng_state(load_checkpoint(file), {"noise": other})
    assert _draw(other) == expected


def test_another_set_of_generators_is_an_error():
    state = rng_state({"noise": torch.Generator()})
    with pytest.raises(ValueError, match=r"generators are \['data'\], but the state has \['noise'\]"):
        restore_rng_state(state, {"data": torch.Generator()})


def test_another_number_of_cuda_devices_is_an_error():
    state = rng_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 99}
    with pytest.raises(ValueError, match="the state has 99 CUDA generators"):
        restore_rng_state(state)
