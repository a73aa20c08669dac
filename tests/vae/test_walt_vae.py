"""W.A.L.T's autoencoder: what each latent frame depends on, any chunks, and its way up by the definition."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, randomise, size
from torch import Tensor

from tubelet import hub
from tubelet.layout import Grid
from tubelet.testing import check_autoencoder
from tubelet.vae import ShuffleUp, decode_stream, encode_stream
from tubelet.vae.families import WaltAutoencoder, WaltAutoencoderConfig, walt_vae

F64 = torch.float64
SMALL = WaltAutoencoderConfig(widths=(3, 4, 4, 5), depth=1)


def tiny(config: WaltAutoencoderConfig = SMALL) -> WaltAutoencoder:
    """Every weight random, of a size that keeps signals alive."""
    vae = randomise(WaltAutoencoder(config, dtype=F64))
    for parameter in vae.parameters():
        if parameter.ndim > 1:
            parameter.data *= parameter[0].numel() ** -0.5 / 0.3
    return vae


def video(latent_frames: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4 * latent_frames - 3, 8, 16, generator=draw, dtype=F64)


def moved(after: Tensor, before: Tensor) -> list[bool]:
    """Which frames differ, to the bit."""
    return (after != before).flatten(3).any(-1).any(0).any(0).tolist()


@torch.no_grad()
def test_seventeen_frames_are_five_latents_of_eight_channels() -> None:
    vae = tiny()
    z = vae.encode(video(5)).mean
    assert z.shape == (2, 8, 5, 1, 2)
    assert vae.decode(z).shape == (2, 3, 17, 8, 16)
    assert vae.latent_grid(17, 128, 128) == Grid(5, 16, 16)
    assert walt_vae().factors == vae.config.factors


@torch.no_grad()
def test_the_first_latent_is_that_of_the_first_frame() -> None:
    vae, x = tiny(), video(3)
    assert error(vae.encode(x).mean[:, :, :1], vae.encode(x[:, :, :1]).mean) <= 1e-13
    z = vae.encode(x).mean
    assert error(vae.decode(z)[:, :, :1], vae.decode(z[:, :, :1])) <= 1e-13


@torch.no_grad()
def test_a_frame_changes_no_latent_before_its_own() -> None:
    """Frame j reaches latents from ceil(j/4) on, and that one for certain."""
    vae, x = tiny(), video(4)
    whole = vae.encode(x).mean
    for frame in range(13):
        changed = x.clone()
        changed[:, :, frame] += 1
        first = math.ceil(frame / 4)
        differs = moved(vae.encode(changed).mean, whole)
        assert differs[:first] == [False] * first and differs[first], frame


@torch.no_grad()
def test_a_latent_changes_no_frame_before_its_own() -> None:
    vae = tiny()
    z = torch.randn(1, 8, 4, 1, 2, dtype=F64)
    whole = vae.decode(z)
    for latent in range(4):
        changed = z.clone()
        changed[:, :, latent] += 1
        first = max(0, 4 * latent - 3)
        differs = moved(vae.decode(changed), whole)
        assert differs[:first] == [False] * first and differs[first], latent
        assert error(vae.decode(z[:, :, : latent + 1]), whole[:, :, : 4 * latent + 1]) <= 1e-12


@settings(max_examples=5)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4), latent_plan=st.permutations([1, 1, 2]))
def test_any_chunk_plan_equals_the_whole(plan: list[int], latent_plan: list[int]) -> None:
    vae = tiny()
    plan = [n for n in (*plan, -(sum(plan) - 1) % 4) if n]
    x, z = video(1 + (sum(plan) - 1) // 4), torch.randn(1, 8, 4, 1, 2, dtype=F64)
    with torch.no_grad():
        whole, parts = vae.encode(x), list(encode_stream(vae, x.split(plan, 2)))
        assert error(torch.cat([p.mean for p in parts], 2), whole.mean) <= 1e-11
        assert error(torch.cat([p.logvar for p in parts], 2), whole.logvar) <= 1e-11
        assert error(torch.cat(list(decode_stream(vae, z.split(latent_plan, 2))), 2), vae.decode(z)) <= 1e-11


@torch.no_grad()
def test_the_state_has_constant_size_and_can_be_stored() -> None:
    vae, x, z = tiny(), video(4), torch.randn(1, 8, 4, 1, 2, dtype=F64)
    assert len({len(pickle.dumps(vae.encode_chunk(x[:, :, : 1 + 4 * k])[1])) for k in range(3)}) == 1
    assert len({len(pickle.dumps(vae.decode_chunk(z[:, :, :k])[1])) for k in (1, 2, 4)}) == 1


@pytest.mark.parametrize(("temporal", "spatial"), [(1, 2), (2, 2), (2, 1)])
def test_the_way_up_is_depth_to_space(temporal: int, spatial: int) -> None:
    """Position by position; of the first frame the last of its copies alone is kept."""
    up = ShuffleUp(3, 2, temporal, spatial, dtype=F64)
    x = torch.randn(1, 3, 3, 2, 3, dtype=F64)
    y, _ = up(x)
    deep = up.conv(x)[0].unflatten(1, (temporal, spatial, spatial, 2))
    assert y.shape == (1, 2, 1 + 2 * temporal, 2 * spatial, 3 * spatial)
    for t in range(y.shape[2]):
        frame, copy = divmod(t + temporal - 1, temporal)
        for h in range(y.shape[3]):
            for w in range(y.shape[4]):
                (row, dh), (column, dw) = divmod(h, spatial), divmod(w, spatial)
                assert torch.equal(y[0, :, t, h, w], deep[0, copy, dh, dw, :, frame, row, column])
    with pytest.raises(ValueError, match="temporal and spatial must be at least 1, got 0 and 2"):
        ShuffleUp(3, 2, 0, 2)


def test_it_plugs_in() -> None:
    check_autoencoder(WaltAutoencoder(WaltAutoencoderConfig(widths=(4, 6, 8), depth=1, halve_time=(True, True))), 3)


def test_the_real_size() -> None:
    """By the convolutions' own count: 27 numbers a pair of channels, a number a channel for biases and norms."""

    def conv(a: int, b: int, kernel: int = 27) -> int:
        return kernel * a * b + b

    def block(a: int, b: int) -> int:
        return a + conv(a, b) + b + conv(b, b) + (0 if a == b else conv(a, b, 1))

    w = [128, 256, 256, 512]
    scales = [block(a, b) + 3 * block(b, b) for a, b in zip([128, *w[:-1]], w, strict=True)]
    down = [conv(width, width) for width in w[:-1]]
    coder = conv(3, 128) + sum(scales) + sum(down) + 4 * block(512, 512) + 512 + conv(512, 16)
    scales = [block(a, b) + 3 * block(b, b) for a, b in zip([*w[1:], 512], w, strict=True)]
    up = [conv(width, width * copies) for width, copies in zip(w[1:], (4, 8, 8), strict=True)]
    decoder = conv(8, 512) + sum(scales) + sum(up) + 4 * block(512, 512) + 128 + conv(128, 3)
    vae = WaltAutoencoder(walt_vae(), device="meta")
    assert (size(vae.encoder), size(vae.decoder)) == (coder, decoder)
    assert size(vae) == 370_563_347


def test_meta_construction_and_reset() -> None:
    vae = WaltAutoencoder(SMALL, device="meta").to_empty(device="cpu")
    for tensor in (*vae.parameters(), *vae.buffers()):
        torch.nn.init.constant_(tensor, torch.nan)
    vae.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*vae.parameters(), *vae.buffers()))


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    statistics = {"latent_mean": tuple(map(float, range(8))), "latent_std": (2.0,) * 8}
    vae = tiny(WaltAutoencoderConfig(widths=(3, 4), depth=1, halve_time=(True,), **statistics))
    hub.save(vae, tmp_path / "vae")
    again, x = hub.load(tmp_path / "vae"), video(2)
    assert again.config == vae.config
    with torch.no_grad():
        z = vae.encode(x).mean
        assert torch.equal(again.encode(x).mean, z)
        assert torch.equal(again.decode(z), vae.decode(z))
        assert torch.equal(again.scale(z), (z - torch.arange(8.0).reshape(-1, 1, 1, 1)) / 2)


@pytest.mark.graph
def test_one_graph() -> None:
    vae, z = tiny(), torch.randn(1, 8, 4, 1, 2, dtype=F64)
    with torch.no_grad():
        decode = torch.compile(vae.decode_chunk, backend="eager", fullgraph=True)
        head, state = decode(z[:, :, :2])
        tail, _ = decode(z[:, :, 2:], state)
        assert error(torch.cat([head, tail], 2), vae.decode(z)) <= 1e-12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"depth": True}, "depth must be a positive whole number, not True"),
        ({"latent_channels": 8.0}, "latent_channels must be a positive whole number, not 8.0"),
        ({"widths": [128, 256, 256, 512]}, r"widths must be a tuple, not \[128"),
        ({"widths": (8.0, 8, 8, 8)}, r"widths \(8.0, 8, 8, 8\) must be a positive whole number for each"),
        ({"halve_time": (0, 1, 1)}, r"halve_time must hold True and False in a tuple, .* not \(0, 1, 1\)"),
        ({"halve_time": [False, True, True]}, r"halve_time must hold True and False in a tuple, .* not \[False"),
        ({"halve_time": True}, "halve_time True must say yes or no between 4 scales"),
        ({"latent_mean": (math.nan,) * 8}, r"latent_mean must be finite numbers in a tuple, not \(nan"),
        ({"latent_std": (math.inf,) * 8}, r"latent_std must be finite numbers in a tuple, not \(inf"),
        ({"latent_std": [1.0] * 8}, r"latent_std must be finite numbers in a tuple, not \[1.0"),
        ({"latent_mean": (0.0,) * 16}, "latent_mean has 16 values for 8 latent channels"),
        ({"widths": ()}, r"widths \(\) must"),
        ({"halve_time": (True,)}, r"halve_time \(True,\) must say yes or no between 4 scales"),
        ({"latent_mean": (1.0,)}, "latent_mean has 1 values for 8 latent channels"),
        ({"latent_std": (0.0,) * 8}, "latent_std must be positive, not 0.0"),
    ],
)
@pytest.mark.graph  # without the tests' own checks of types, which come first
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WaltAutoencoderConfig(**change)


def test_bad_input_is_named() -> None:
    vae = WaltAutoencoder(SMALL)
    with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k, not 16"):
        vae.encode(torch.zeros(1, 3, 16, 8, 8))
    with pytest.raises(ValueError, match="z must have 8 channels, not 3"):
        vae.decode(torch.zeros(1, 3, 1, 4, 4))
