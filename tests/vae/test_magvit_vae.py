"""EasyAnimate's autoencoder: equal to diffusers' with the same weights, as a stream, and at its real size."""

import pickle
import random
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLMagvit
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size
from torch import Tensor

from tubelet.layout import Grid
from tubelet.testing import check_autoencoder
from tubelet.vae.families import MagvitAutoencoder, MagvitAutoencoderConfig, magvit_vae

F64 = torch.float64
KINDS = ("5.1", "late", "short")
"""As released; time halved and doubled at other scales; two scales."""


def peer(kind: str, seed: int = 0, **sizes: Any) -> AutoencoderKLMagvit:
    """A tiny model of diffusers' whose every parameter is random."""
    draw = random.Random(seed)
    space, both = "Spatial{}Block3D", "SpatialTemporal{}Block3D"
    widths = draw.choice([(4, 8, 12, 8), (8, 4, 4, 8)])
    down, up = [space, both, both, both], [space, both, both, both]
    if kind == "late":
        widths, down, up = widths[:3], [both, space, space], [both, space, both]
    if kind == "short":
        widths, down, up = widths[:2], [both, both], [both, both]
    drawn: dict[str, Any] = {"block_out_channels": widths, "layers_per_block": draw.randint(1, 2)}
    drawn |= {"latent_channels": draw.randint(2, 3), "norm_num_groups": draw.choice([2, 4])}
    drawn["in_channels"] = drawn["out_channels"] = draw.choice([1, 3])
    drawn |= {"down_block_types": [name.format("Down") for name in down]}
    drawn |= {"up_block_types": [name.format("Up") for name in up]}
    model = vaes.drawn(AutoencoderKLMagvit(**drawn | sizes), seed)
    model.num_sample_frames_batch_size = 2 ** sum(both == name for name in down[:-1])  # a latent frame at a time
    return model


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 3, 2)], ids=["image", "clip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    for seed in range(3):
        theirs = peer(kind, seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs.to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            expected, got = theirs.encode(x).latent_dist, vae.encode(x)
            assert error(got.mean, expected.mean) <= bound
            assert error(got.logvar, expected.logvar) <= bound
            assert error(vae.decode(z), theirs.decode(z).sample) <= bound


def test_gradients_of_every_weight_are_the_peers() -> None:
    theirs = peer("5.1").double()
    vae = vaes.ours(theirs)
    x = vaes.video(vae, (3, 2, 1))

    def loss(model: Any) -> Tensor:
        posterior = model.encode(x)
        return model.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()

    def their_loss(model: Any) -> Tensor:
        posterior = model.encode(x).latent_dist
        return model.decode(posterior.mean).sample.sin().sum() + posterior.logvar.cos().sum()

    vaes.check_gradients(theirs, vae, loss, their_loss)


def test_the_size_released() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKLMagvit()
    vae = MagvitAutoencoder(magvit_vae(), device="meta")
    assert size(vae) == size(theirs) == 244_375_507
    assert vae.latent_grid(17, 64, 96) == Grid(5, 8, 12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_chunk_plan_equals_the_whole(kind: str, plan: list[int]) -> None:
    vae = vaes.ours(peer(kind).double())
    vaes.check_plan(vae, vaes.video(vae, (4, 1, 2)), vaes.latents(vae, (4, 2, 1)), plan, 1e-11)


def test_the_state_has_constant_size_and_no_frame_sees_a_later_one() -> None:
    vae = vaes.ours(peer("5.1").double())
    z, x = vaes.latents(vae, (4, 1, 2)), vaes.video(vae, (3, 1, 2))
    with torch.no_grad():
        whole = vae.decode(z)
        stored = [pickle.dumps(vae.decode_chunk(z[:, :, :k])[1]) for k in (1, 2, 3)]
        assert len({len(each) for each in stored}) == 1
        tail, _ = vae.decode_chunk(z[:, :, 3:], pickle.loads(stored[-1]))
        assert error(tail, whole[:, :, 9:]) <= 1e-11
        for k in (1, 2, 3):
            assert error(vae.decode(z[:, :, :k]), whole[:, :, : 1 + 4 * (k - 1)]) <= 1e-12
        changed = x.clone()
        changed[:, :, 5] += 1
        moved = (vae.encode(changed).mean - vae.encode(x).mean).abs().amax((0, 1, 3, 4))
        assert not moved[:2].any() and moved[2] > 1e-5


def test_sizes_that_diffusers_changes_are_refused_or_padded() -> None:
    theirs = peer("5.1")
    vae = vaes.ours(theirs)
    odd = torch.rand(1, vae.config.in_channels, 4, 36, 8) * 2 - 1
    with torch.no_grad():
        assert theirs(odd[:, :, :1]).sample.shape[3] == 32, "the edges are gone"
        with pytest.raises(ValueError, match="non-empty"):
            theirs(odd)
        assert vae(vae.config.factors.padded(odd))[:, :, :4, :36].shape == odd.shape
        with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k, not 4"):
            vae.encode(odd)


def test_it_plugs_in() -> None:
    config = MagvitAutoencoderConfig(widths=(4, 8), depth=1, groups=2, halve_time=(True,), double_time=(True,))
    check_autoencoder(MagvitAutoencoder(config), channels=3)


@pytest.mark.slow
def test_a_full_width_decode_is_the_peers() -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKLMagvit().eval()
    vae = vaes.ours(theirs)
    z = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        assert error(vae.decode(z), theirs.decode(z).sample) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"groups": 48}, "must be multiples of groups 48"),
        ({"halve_time": (True,)}, r"halve_time \(True,\) must say yes or no between 4 scales"),
        ({"halve_time": (True,) * 3}, "must be as many"),
        ({"latent_std": (1.0,)}, "latent_std has 1 values for 16 latent channels"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MagvitAutoencoderConfig(**change)
