"""Wan's autoencoders: equal to diffusers' with the same weights, as a stream, and at their real sizes."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import wan_vaes
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size

from tubelet.hub.wan_vae import wan_vae_config_to_diffusers
from tubelet.layout import Grid
from tubelet.testing import check_autoencoder
from tubelet.vae import decode_stream, encode_stream
from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2

F64 = torch.float64
SIZES = [(1, 2, 3), (3, 1, 2)]
BOTH = pytest.mark.parametrize("kind", ["2.1", "2.2"])


@pytest.mark.parametrize("latent", SIZES, ids=["image", "clip"])
@pytest.mark.parametrize("kind", wan_vaes.KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (F64, 1e-12)])
def test_equal_to_diffusers(
    kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wan_vaes.lift(monkeypatch)
    peer = wan_vaes.peer(kind, seed=len(kind))
    vae = wan_vaes.ours(peer).to(dtype)
    peer.to(dtype)
    x, z = wan_vaes.video(vae, latent).to(dtype), wan_vaes.latents(vae, latent).to(dtype)
    with torch.no_grad():
        expected, got = peer.encode(x).latent_dist, vae.encode(x)
        assert error(got.mean, expected.mean) <= bound
        assert error(got.logvar, expected.logvar) <= bound
        decoded = peer.decode(z).sample
        assert decoded.abs().ge(1).double().mean() < 0.05, "clamped pixels compare nothing"
        assert error(vae.decode(z), decoded) <= bound


@pytest.mark.parametrize("kind", wan_vaes.KINDS)
def test_gradients_of_every_weight_are_the_peers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wan_vaes.lift(monkeypatch)
    peer = wan_vaes.peer(kind).double()
    vae = wan_vaes.ours(peer)
    x = wan_vaes.video(vae, (3, 1, 2))
    theirs = peer.encode(x).latent_dist
    (peer.decode(theirs.mean).sample.sin().sum() + theirs.logvar.cos().sum()).backward()
    posterior = vae.encode(x)
    (vae.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()).backward()
    keys = wan_vaes.from_theirs(vae.config, {name: p.grad for name, p in peer.named_parameters()})
    assert keys.keys() == dict(vae.named_parameters()).keys()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(parameter.grad, keys[name], rtol=1e-9, atol=1e-9, msg=name)


@BOTH
def test_bfloat16_errs_no_more_than_the_peer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = wan_vaes.peer(kind)
    vae = wan_vaes.ours(peer)
    x, z = wan_vaes.video(vae, (2, 2, 2)), wan_vaes.latents(vae, (2, 2, 2))
    with torch.no_grad():
        exact = [vae.double().encode(x).mean, vae.decode(z)]
        half = torch.bfloat16
        theirs = [peer.to(half).encode(x.to(half)).latent_dist.mean, peer.decode(z.to(half)).sample]
        got = [vae.to(half).encode(x.to(half)).mean, vae.decode(z.to(half))]
    for a, b, c in zip(got, theirs, exact, strict=True):
        assert a.dtype == half
        assert error(a, c) <= 1.5 * error(b, c)


@pytest.mark.parametrize(("config", "parameters"), [(wan_vae_2_1(), 126_892_531), (wan_vae_2_2(), 704_688_668)])
def test_the_real_sizes(config: WanAutoencoderConfig, parameters: int) -> None:
    vae = WanAutoencoder(config, device="meta")
    large = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2}
    large |= {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    with torch.device("meta"):
        peer = AutoencoderKLWan(**(large if config.patch == 2 else {}))
    assert size(vae) == size(peer) == parameters
    assert vae.latent_grid(17, 64, 96) == Grid(5, 64 // config.factors.spatial, 96 // config.factors.spatial)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "side"), [(wan_vae_2_1(), 4), (wan_vae_2_2(), 2)], ids=["2.1", "2.2"])
def test_a_full_width_decode_is_the_peers(config: WanAutoencoderConfig, side: int) -> None:
    torch.manual_seed(0)
    if config.decoder_widths is not None:
        widths = tuple(8 * width // config.widths[0] for width in config.widths)
        config = replace(config, widths=widths)  # nothing is encoded
    peer = AutoencoderKLWan(**wan_vae_config_to_diffusers(config)).eval()
    vae = wan_vaes.ours(peer)
    z = torch.randn(1, config.latent_channels, 2, side, side)
    with torch.no_grad():
        assert error(vae.decode(z), peer.decode(z).sample) <= 1e-4


@BOTH
@settings(max_examples=5)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4), latent_plan=st.permutations([1, 1, 2]))
def test_any_chunk_plan_equals_the_whole(kind: str, plan: list[int], latent_plan: list[int]) -> None:
    vae = tiny(kind)
    temporal = vae.config.factors.temporal
    plan = [*plan, -(sum(plan) - 1) % temporal]
    x, z = wan_vaes.video(vae, (1 + (sum(plan) - 1) // temporal, 1, 2)), wan_vaes.latents(vae, (4, 2, 1))
    with torch.no_grad():
        whole, parts = vae.encode(x), list(encode_stream(vae, x.split([n for n in plan if n], 2)))
        assert error(torch.cat([p.mean for p in parts], 2), whole.mean) <= 1e-11
        assert error(torch.cat([p.logvar for p in parts], 2), whole.logvar) <= 1e-11
        frames = torch.cat(list(decode_stream(vae, z.split(latent_plan, 2))), 2)
        assert error(frames, vae.decode(z)) <= 1e-11


@BOTH
def test_float32_streams_to_rounding(kind: str) -> None:
    vae = wan_vaes.ours(wan_vaes.peer(kind))
    x, z = wan_vaes.video(vae, (4, 1, 2)).float(), wan_vaes.latents(vae, (4, 2, 1)).float()
    with torch.no_grad():
        means = [p.mean for p in encode_stream(vae, x.split(3, 2))]
        assert error(torch.cat(means, 2), vae.encode(x).mean) <= 1e-5
        assert error(torch.cat(list(decode_stream(vae, z.split(1, 2))), 2), vae.decode(z)) <= 1e-5


@BOTH
def test_the_state_has_constant_size_and_can_be_stored(kind: str) -> None:
    vae = tiny(kind)
    z, x = wan_vaes.latents(vae, (5, 1, 2)), wan_vaes.video(vae, (4, 1, 2))
    with torch.no_grad():
        stored = []
        for chunk in (z[:, :, :1], z[:, :, :2], z[:, :, :4]):
            video, state = vae.decode_chunk(chunk)
            stored.append(pickle.dumps(state))
        assert len({len(each) for each in stored}) == 1
        tail, _ = vae.decode_chunk(z[:, :, 4:], pickle.loads(stored[-1]))
        assert error(torch.cat([video, tail], 2), vae.decode(z)) <= 1e-11
        frames = vae.config.factors.temporal
        lengths = {len(pickle.dumps(vae.encode_chunk(x[:, :, : 1 + k * frames])[1])) for k in range(3)}
        assert len(lengths) == 1


@BOTH
@pytest.mark.parametrize("k", [1, 2, 3])
def test_first_latents_decode_to_the_prefix(kind: str, k: int) -> None:
    vae = tiny(kind)
    z, temporal = wan_vaes.latents(vae, (4, 1, 2)), vae.config.factors.temporal
    with torch.no_grad():
        whole = vae.decode(z)
        assert error(vae.decode(z[:, :, :k]), whole[:, :, : 1 + temporal * (k - 1)]) <= 1e-12
        moved = (vae.decode(z + (torch.arange(4) >= k).double().reshape(-1, 1, 1)) - whole).abs().amax((0, 1, 3, 4))
        assert not moved[: 1 + temporal * (k - 1)].any()
        assert moved[1 + temporal * (k - 1)] > 1e-4


@BOTH
def test_latents_see_no_later_frame(kind: str) -> None:
    vae = tiny(kind)
    x, temporal = wan_vaes.video(vae, (3, 1, 2)), vae.config.factors.temporal
    with torch.no_grad():
        whole = vae.encode(x).mean
        for frame in range(1, 1 + 2 * temporal):
            changed = x.clone()
            changed[:, :, frame] += 1
            moved = (vae.encode(changed).mean - whole).abs().amax((0, 1, 3, 4))
            own = 1 + (frame - 1) // temporal
            assert not moved[:own].any()
            assert moved[own] > 1e-5


def test_frames_that_diffusers_loses_are_refused_or_padded() -> None:
    peer = wan_vaes.peer("2.1")
    vae = wan_vaes.ours(peer)
    odd = torch.rand(1, 3, 4, 13, 20) * 2 - 1
    with torch.no_grad():
        lost = peer(odd).sample
        assert lost.shape == (1, 3, 1, 8, 16), "three of four frames and the edges are gone"
        padded = vae.config.factors.padded(odd)
        assert padded.shape == (1, 3, 5, 16, 24)
        assert torch.equal(padded[:, :, :4, :13, :20], odd)
        assert torch.equal(padded[:, :, 4], padded[:, :, 3])
        assert torch.equal(padded[..., 20:], padded[..., 19:20].expand(-1, -1, -1, -1, 4))
        assert vae(padded)[:, :, :4, :13, :20].shape == odd.shape
        with pytest.raises(RuntimeError):
            peer.encode(odd[..., :7, :])
        with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k, not 4"):
            vae.encode(odd)
        with pytest.raises(ValueError, match="height must be a multiple of the spatial factor 8, not 13"):
            vae.encode(odd[:, :, :1])


def test_latents_in_the_numbers_of_the_diffusion_model() -> None:
    peer = wan_vaes.peer("2.1")
    vae = wan_vaes.ours(peer)
    z = wan_vaes.latents(vae, (1, 1, 2)).float()
    mean, std = (torch.tensor(peer.config[name]).reshape(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(vae.scale(z), (z - mean) / std)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)
    assert "latent_mean" not in vae.state_dict()
    plain = torch.randn(1, 16, 1, 1, 2)
    assert torch.equal(WanAutoencoder(small()).scale(plain), plain)


def test_it_plugs_in() -> None:
    torch.manual_seed(0)
    check_autoencoder(WanAutoencoder(small()), channels=3)


@BOTH
def test_meta_construction_and_reset(kind: str) -> None:
    config = double(kind).config
    vae = WanAutoencoder(config, device="meta").to_empty(device="cpu")
    for tensor in (*vae.parameters(), *vae.buffers()):
        torch.nn.init.constant_(tensor, torch.nan)
    vae.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*vae.parameters(), *vae.buffers()))
    assert torch.equal(vae.latent_std, WanAutoencoder(config).latent_std)


@pytest.mark.graph
def test_one_graph() -> None:
    vae = tiny("2.2")
    z = wan_vaes.latents(vae, (3, 1, 2))
    with torch.no_grad():
        decode = torch.compile(vae.decode_chunk, backend="eager", fullgraph=True)
        head, state = decode(z[:, :, :2])
        tail, _ = decode(z[:, :, 2:], state)
        assert error(torch.cat([head, tail], 2), vae.decode(z)) <= 1e-12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"shortcuts": 1}, "shortcuts must hold True and False in a tuple, or be one of them, not 1"),
        ({"latent_mean": (float("nan"),) * 16}, "latent_mean must be finite numbers in a tuple"),
        ({"patch": 0}, "patch must be a positive whole number, not 0"),
        ({"widths": ()}, r"widths \(\) must"),
        ({"decoder_widths": (4, 4)}, r"decoder_widths \(4, 4\) must be a positive whole number for each of 4 scales"),
        ({"decoder_widths": (4, 4, 5, 4)}, r"decoder_widths \(4, 4, 5, 4\) must be even"),
        ({"halve_time": (True,)}, r"halve_time \(True,\) must say yes or no between 4 scales"),
        ({"latent_mean": (1.0,)}, "latent_mean has 1 values for 16 latent channels"),
        ({"latent_std": (0.0,) * 16}, "latent_std must be positive, not 0.0"),
    ],
)
@pytest.mark.graph  # without the tests' own checks of types, which come first
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WanAutoencoderConfig(**change)


def test_bad_input_is_named() -> None:
    vae = WanAutoencoder(small())
    with pytest.raises(ValueError, match="video must have 3 channels, not 1"):
        vae.encode(torch.zeros(1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="z must have 16 channels, not 3"):
        vae.decode(torch.zeros(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="state must hold the states of 7 layers, not of 1"):
        vae.decode_chunk(torch.zeros(1, 16, 1, 4, 4), ((),))
    with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k together, but 2 are left over"):
        list(encode_stream(vae, torch.zeros(1, 3, 3, 4, 4).split(1, 2)))


def small() -> WanAutoencoderConfig:
    return WanAutoencoderConfig(widths=(4, 6, 8), depth=1, halve_time=(True, True))


def tiny(kind: str) -> WanAutoencoder:
    """Two halvings of 2.1's kind, one of 2.2's, and as few blocks as can be."""
    halvings = [True] if kind == "2.2" else [True, True]
    sizes = {"num_res_blocks": 1, "dim_mult": [1, *[1] * len(halvings)], "temperal_downsample": halvings, "base_dim": 4}
    return wan_vaes.ours(wan_vaes.peer(kind, **sizes).double())


def double(kind: str) -> WanAutoencoder:
    return wan_vaes.ours(wan_vaes.peer(kind).double())
