"""Autoencoders of HunyuanVideo, CogVideoX and Mochi: equal to diffusers' with the same weights; streams; real sizes."""

import pickle
from typing import Any

import peer_vaes
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, AutoencoderKLMochi
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size
from torch import Tensor, nn

from tubelet.hub import to_diffusers
from tubelet.testing import check_autoencoder
from tubelet.vae import FrameGroupNorm, VideoAutoencoder, decode_stream, encode_stream
from tubelet.vae.families import (
    CogVideoXAutoencoder,
    HunyuanAutoencoder,
    MochiAutoencoder,
    cogvideox_vae_2b,
    hunyuan_vae,
    mochi_vae,
)

F64 = torch.float64
ALL = pytest.mark.parametrize("family", list(peer_vaes.PEERS))
REAL = {
    "hunyuan": (HunyuanAutoencoder, hunyuan_vae(), AutoencoderKLHunyuanVideo, 246_478_803),
    "cogvideox": (CogVideoXAutoencoder, cogvideox_vae_2b(), AutoencoderKLCogVideoX, 215_583_907),
    "mochi": (MochiAutoencoder, mochi_vae(), AutoencoderKLMochi, 459_748_611),
}


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 2, 2)], ids=["image", "clip"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-11)], ids=["float32", "float64"])
@ALL
def test_equal_to_diffusers(
    family: str,
    dtype: torch.dtype,
    bound: float,
    seed: int,
    latent: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if dtype == F64:
        peer_vaes.lift(monkeypatch)
    peer = peer_vaes.PEERS[family](seed).to(dtype)
    vae = peer_vaes.ours(peer)
    x, z = peer_vaes.video(vae, latent).to(dtype), peer_vaes.latents(vae, latent).to(dtype)
    with torch.no_grad():
        expected, got = peer.encode(x).latent_dist, vae.encode(x)
        assert error(got.mean, expected.mean) <= bound
        assert error(got.logvar, expected.logvar) <= bound
        assert error(vae.decode(z), peer.decode(z).sample) <= bound


@ALL
def test_gradients_of_every_weight_are_the_peers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_vaes.lift(monkeypatch)
    peer = peer_vaes.PEERS[family](1).double()
    vae = peer_vaes.ours(peer)
    x = peer_vaes.video(vae, (3, 1, 1), batch=1)
    theirs = peer.encode(x).latent_dist
    (peer.decode(theirs.mean).sample.sin().sum() + theirs.logvar.cos().sum()).backward()
    posterior = vae.encode(x)
    (vae.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()).backward()
    grads = {name: p.grad for name, p in vae.named_parameters()}
    for parameter, grad in zip(vae.parameters(), grads.values(), strict=True):
        parameter.data = grad
    _, named = to_diffusers(vae)
    expected = {name: p.grad for name, p in peer.named_parameters()}
    assert named.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(named[name], grad, rtol=1e-8, atol=1e-8, msg=name)


@ALL
def test_the_real_sizes(family: str) -> None:
    make, config, peer, parameters = REAL[family]
    with torch.device("meta"):
        assert size(make(config)) == size(peer()) == parameters


@pytest.mark.slow
@ALL
def test_the_real_sizes_decode_as_diffusers_do(family: str) -> None:
    peer = peer_vaes.drawn_weights(REAL[family][2]())
    vae = peer_vaes.ours(peer)
    z = peer_vaes.latents(vae, (3, 3, 2), batch=1).float()
    with torch.no_grad():
        assert error(vae.decode(z), peer.decode(z).sample) <= 1e-4


@settings(max_examples=5)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4), latent_plan=st.permutations([1, 1, 2]))
def test_mochi_streams_by_any_plan(plan: list[int], latent_plan: list[int]) -> None:
    vae = mochi()
    check_any_plan(vae, plan, latent_plan)


@settings(max_examples=4)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4), latent_plan=st.permutations([1, 1, 2]))
@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
def test_but_for_the_group_norms_the_others_stream_too(family: str, plan: list[int], latent_plan: list[int]) -> None:
    vae = tiny(family)
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                each = FrameGroupNorm(child.num_groups, child.num_channels, child.eps)
                each.norm = child
                setattr(module, name, each)
    vae.chunks = type(vae.chunks)()
    check_any_plan(vae, plan, latent_plan)


def check_any_plan(vae: VideoAutoencoder, plan: list[int], latent_plan: list[int]) -> None:
    temporal = vae.config.factors.temporal
    plan = [*plan, -(sum(plan) - 1) % temporal]
    latent = (1 + (sum(plan) - 1) // temporal, 1, 2)
    x, z = peer_vaes.video(vae, latent, batch=1), peer_vaes.latents(vae, (4, 2, 1), batch=1)
    with torch.no_grad():
        whole, parts = vae.encode(x), list(encode_stream(vae, x.split([n for n in plan if n], 2)))
        assert error(torch.cat([p.mean for p in parts], 2), whole.mean) <= 1e-11
        assert error(torch.cat([p.logvar for p in parts], 2), whole.logvar) <= 1e-11
        frames = torch.cat(list(decode_stream(vae, z.split(latent_plan, 2))), 2)
        assert error(frames, vae.decode(z)) <= 1e-11


def test_float32_streams_to_rounding() -> None:
    vae = mochi().float()
    z = peer_vaes.latents(vae, (4, 2, 1)).float()
    with torch.no_grad():
        assert error(torch.cat(list(decode_stream(vae, z.split(1, 2))), 2), vae.decode(z)) <= 1e-5


def test_mochis_decoder_has_a_state_of_constant_size_and_its_encoder_the_keys_of_all_frames() -> None:
    vae = mochi()
    z, x = peer_vaes.latents(vae, (4, 1, 2)), peer_vaes.video(vae, (4, 1, 2))
    six = vae.config.factors.temporal
    with torch.no_grad():
        assert len({len(pickle.dumps(vae.decode_chunk(z[:, :, :k])[1])) for k in (1, 2, 4)}) == 1
        sizes = [held(vae.encode_chunk(x[:, :, : 1 + k * six])[1]) for k in (1, 2, 3)]
        assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0
        _, state = vae.encode_chunk(x[:, :, : 1 + 2 * six])
        tail, _ = vae.encode_chunk(x[:, :, 1 + 2 * six :], pickle.loads(pickle.dumps(state)))
        assert error(tail.mean, vae.encode(x).mean[:, :, 3:]) <= 1e-11


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mochis_first_latents_decode_to_the_prefix(k: int) -> None:
    vae = mochi()
    z, six = peer_vaes.latents(vae, (4, 1, 2)), vae.config.factors.temporal
    with torch.no_grad():
        whole = vae.decode(z)
        assert error(vae.decode(z[:, :, :k]), whole[:, :, : 1 + six * (k - 1)]) <= 1e-12
        moved = (vae.decode(z + (torch.arange(4) >= k).double().reshape(-1, 1, 1)) - whole).abs().amax((0, 1, 3, 4))
        assert not moved[: 1 + six * (k - 1)].any()
        assert moved[1 + six * (k - 1)] > 1e-4


def test_every_frame_of_hunyuans_depends_on_every_latent() -> None:
    vae = tiny("hunyuan")
    z = peer_vaes.latents(vae, (3, 2, 1))
    with torch.no_grad():
        moved = vae.decode(z + torch.tensor([0.0, 0.0, 1.0]).reshape(-1, 1, 1)) - vae.decode(z)
        assert moved[:, :, 0].abs().max() > 1e-4
        head, _ = vae.decode_chunk(z[:, :, :2])
        assert torch.equal(head, vae.decode(z[:, :, :2]))
        assert error(head, vae.decode(z)[:, :, :5]) > 1e-3


def test_hunyuans_peer_changes_its_answer_for_long_videos() -> None:
    peer = peer_vaes.hunyuan(0).double()
    vae = peer_vaes.ours(peer)
    x, z = peer_vaes.video(vae, (6, 1, 1)), peer_vaes.latents(vae, (6, 1, 1))
    with torch.no_grad():
        assert error(vae.encode(x).mean, peer.encode(x).latent_dist.mean) > 1e-2
        assert error(vae.decode(z), peer.decode(z).sample) > 1e-2
        peer.use_framewise_encoding = peer.use_framewise_decoding = False
        assert error(vae.encode(x).mean, peer.encode(x).latent_dist.mean) <= 1e-11
        assert error(vae.decode(z), peer.decode(z).sample) <= 1e-11


@pytest.mark.parametrize(("frames", "latents"), [(5, 3), (9, 3), (13, 5), (17, 5), (21, 7), (25, 7)])
def test_cogvideox_is_cut_as_the_peer_cuts(frames: int, latents: int) -> None:
    peer = peer_vaes.cogvideox(0).double()
    vae = peer_vaes.ours(peer)
    assert vae.config.factors.temporal == 4
    x, z = peer_vaes.video(vae, (1 + frames // 4, 1, 1)), peer_vaes.latents(vae, (latents, 1, 1))
    with torch.no_grad():
        assert error(vae.encode(x).mean, peer.encode(x).latent_dist.mean) <= 1e-11
        whole = vae.decode(z)
        assert error(whole, peer.decode(z).sample) <= 1e-11
        parts = torch.cat(list(decode_stream(vae, z.split([3, *[2] * ((latents - 3) // 2)], 2))), 2)
        assert torch.equal(parts, whole)
        if latents > 3:
            first, *_ = decode_stream(vae, [z])
            assert error(first, whole) > 1e-3, "another cut is another answer"
            assert torch.equal(vae.decode(z[:, :, : latents - 2]), whole[:, :, :-8]), "no chunk depends on a later one"


def test_even_numbers_of_cogvideox_latents_decode_to_what_was_encoded() -> None:
    peer = peer_vaes.cogvideox(0).double()
    vae = peer_vaes.ours(peer)
    x = peer_vaes.video(vae, (2, 1, 1))
    with torch.no_grad():
        z = peer.encode(x).latent_dist.mean
        assert (x.shape[2], z.shape[2], peer.decode(z).sample.shape[2]) == (5, 2, 8)
        assert vae.decode(z).shape == x.shape


@ALL
def test_odd_sizes_are_refused_or_padded(family: str) -> None:
    vae = tiny(family)
    with torch.no_grad():
        odd = torch.rand(1, 3, 4, 13, 21, dtype=F64)
        padded = vae.config.factors.padded(odd)
        assert vae(padded)[:, :, :4, :13, :21].shape == odd.shape
        with pytest.raises(ValueError, match="height must be a multiple of the spatial factor|frames must be"):
            vae.encode(odd)


@ALL
def test_latents_in_the_numbers_of_the_diffusion_model(family: str) -> None:
    peer = peer_vaes.PEERS[family](0)
    vae, c = peer_vaes.ours(peer), peer.config
    z = peer_vaes.latents(vae, (1, 1, 2)).float()
    if family == "mochi":
        mean, std = (torch.tensor(c[name]).reshape(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        torch.testing.assert_close(vae.scale(z), (z - mean) / std)
    else:
        torch.testing.assert_close(vae.scale(z), z * c.scaling_factor)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)


@pytest.mark.parametrize(("family", "frames"), [("mochi", 5), ("hunyuan", 1), ("cogvideox", 1)])
def test_it_plugs_in(family: str, frames: int) -> None:
    """With frames beside it, the first frame is normalised otherwise, but for Mochi's."""
    check_autoencoder(tiny(family).float(), channels=3, size=(frames, 16, 16))


@ALL
def test_meta_construction_and_reset(family: str) -> None:
    like = tiny(family)
    vae = type(like)(like.config, device="meta").to_empty(device="cpu")
    for tensor in (*vae.parameters(), *vae.buffers()):
        torch.nn.init.constant_(tensor, torch.nan)
    vae.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*vae.parameters(), *vae.buffers()))


@ALL
def test_bfloat16_errs_no_more_than_the_peer(family: str) -> None:
    peer = peer_vaes.PEERS[family](2)
    vae = peer_vaes.ours(peer)
    z = peer_vaes.latents(vae, (3, 2, 2))
    half = torch.bfloat16
    with torch.no_grad():
        exact = vae.double().decode(z)
        theirs, got = peer.to(half).decode(z.to(half)).sample, vae.to(half).decode(z.to(half))
        assert got.dtype == half
        assert error(got, exact) <= 1.5 * error(theirs, exact)


def tiny(family: str) -> Any:
    return peer_vaes.ours(peer_vaes.PEERS[family](0).double())


def mochi() -> MochiAutoencoder:
    """Three scales, attention after most blocks."""
    return peer_vaes.ours(
        peer_vaes.mochi(
            3,
            encoder_block_out_channels=[32, 32, 32],
            decoder_block_out_channels=[32, 32, 64],
            layers_per_block=[1, 1, 1, 1],
            temporal_expansions=[3, 2],
            add_attention_block=[False, True, True, True],
        ).double()
    )


def held(state: Any) -> int:
    """How many numbers a state holds."""
    if isinstance(state, Tensor):
        return state.numel()
    if isinstance(state, tuple):
        return sum(map(held, state))
    return held((*state.sink, *state.recent))
