"""LTX-Video's autoencoders: equal to diffusers' with the same weights; any chunks give what the whole gives."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ltx_vaes
import pytest
import small_vaes
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLLTXVideo
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tubelet.bench.memory import peak_bytes
from tubelet.hub.ltx_vae import ltx_vae_config_to_diffusers
from tubelet.layout import Grid
from tubelet.vae import decode_stream, decoder_reach
from tubelet.vae.families import LTXAutoencoder, LTXAutoencoderConfig, ltx_vae_0_9, ltx_vae_0_9_1, ltx_vae_0_9_5

F64 = torch.float64


def seeded(run: Callable[..., Any], *given: Any) -> Any:
    """The noise of decoders comes from the global generator, in the order of the layers."""
    torch.manual_seed(5)
    return run(*given)


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 1, 2)], ids=["image", "clip"])
@pytest.mark.parametrize("kind", ltx_vaes.KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(
    kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == F64:
        ltx_vaes.lift(monkeypatch)
    for seed in range(3):
        peer = ltx_vaes.peer(kind, seed)
        vae = vaes.ours(peer).to(dtype)
        peer.to(dtype)
        x, z, time = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype), ltx_vaes.time(peer)
        time = None if time is None else time.to(dtype)
        with torch.no_grad():
            expected, got = peer.encode(x).latent_dist, vae.encode(x)
            assert error(got.mean, expected.mean) <= bound
            assert error(got.logvar, expected.logvar) <= bound
            assert error(seeded(vae.decode, z, time), seeded(peer.decode, z, time).sample) <= bound
            torch.testing.assert_close(vae.scale(z), (z - statistic(peer, "mean")) / statistic(peer, "std"))


def statistic(peer: Any, name: str) -> Tensor:
    return getattr(peer, f"latents_{name}").reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", ltx_vaes.KINDS)
def test_gradients_of_every_weight_are_the_peers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ltx_vaes.lift(monkeypatch)
    peer = ltx_vaes.peer(kind).double()
    vae = vaes.ours(peer)
    x, time = vaes.video(vae, (2, 1, 2)), ltx_vaes.time(peer)
    time = None if time is None else time.double()

    def loss(model: Any) -> Tensor:
        posterior = model.encode(x)
        return seeded(model.decode, posterior.mean, time).sin().sum() + posterior.logvar.cos().sum()

    def their_loss(model: Any) -> Tensor:
        posterior = model.encode(x).latent_dist
        return seeded(model.decode, posterior.mean, time).sample.sin().sum() + posterior.logvar.cos().sum()

    vaes.check_gradients(peer, vae, loss, their_loss)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(ltx_vae_0_9(), 419_193_649), (ltx_vae_0_9_1(), 934_976_434), (ltx_vae_0_9_5(), 1_246_913_522)],
    ids=["0.9", "0.9.1", "0.9.5"],
)
def test_the_real_sizes(config: LTXAutoencoderConfig, parameters: int) -> None:
    vae = LTXAutoencoder(config, device="meta")
    with torch.device("meta"):
        peer = AutoencoderKLLTXVideo(**ltx_vae_config_to_diffusers(config))
    assert size(vae) == size(peer) == parameters
    assert vae.latent_grid(17, 64, 96) == Grid(3, 2, 3)
    assert (peer.temporal_compression_ratio, peer.spatial_compression_ratio) == (8, 32)


def test_without_a_time_latents_are_clean() -> None:
    vae = vaes.ours(ltx_vaes.peer("0.9.5"))
    z = vaes.latents(vae, (2, 1, 2)).float()
    with torch.no_grad():
        assert torch.equal(vae.decode(z), vae.decode(z, torch.zeros(2)))
        late = vae.decode(z, torch.tensor([0.0, 0.5]))
        assert torch.equal(late[0], vae.decode(z)[0]) and error(late[1], vae.decode(z)[1]) > 1e-2
    with pytest.raises(ValueError, match=r"time is \[0.5, 0.5\], but this decoder knows no time"):
        plain = vaes.ours(ltx_vaes.peer("0.9"))
        plain.decode(vaes.latents(plain, (1, 1, 1)).float(), torch.full((2,), 0.5))


@pytest.mark.parametrize("kind", ["0.9", "0.9.5"])
@settings(max_examples=5)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_chunk_plan_encodes_as_the_whole(kind: str, plan: list[int]) -> None:
    vae = vaes.ours(ltx_vaes.peer(kind).double())
    x = vaes.video(vae, (4, 1, 2))
    with torch.no_grad():
        assert error(vaes.encoded_in_parts(vae, x, plan), vae.encode(x).mean) <= 1e-11


@settings(max_examples=5)
@given(plan=st.permutations([1, 1, 2]))
def test_a_causal_decoder_streams_with_one_noise(plan: list[int]) -> None:
    vae = vaes.ours(ltx_vaes.peer("causal").double())
    z = vaes.latents(vae, (4, 1, 2))
    with torch.no_grad():
        whole = seeded(vae.decode, z)
        assert error(seeded(vaes.decoded_in_parts, vae, z, plan), whole) <= 1e-11
        prefix = seeded(vae.decode, z[:, :, :2])
        assert error(prefix, whole[:, :, : prefix.shape[2]]) <= 1e-12


@pytest.mark.parametrize("kind", ["0.9", "0.9.1", "0.9.5"])
@settings(max_examples=4)
@given(plan=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_decoder_that_sees_later_latents_streams_by_any_plan(kind: str, plan: list[int]) -> None:
    """With one noise and one time, and a state that goes through a file."""
    vae = looking_ahead(kind)
    z, given = vaes.latents(vae, (19, 1, 2)), timed(vae)

    def stream() -> Tensor:
        return torch.cat([*decode_stream(vae, vaes.split(z, plan), **given)], 2)

    with torch.no_grad():
        whole = seeded(vae.decode, z, *given.values())
        assert error(seeded(stream), whole) <= 1e-11
        head, state = seeded(lambda: vae.decode_chunk(z[:, :, : plan[0]], last=False, **given))
        tail, state = vae.decode_chunk(z[:, :, plan[0] :], pickle.loads(pickle.dumps(state)), **given)
        assert error(torch.cat([head, tail], 2), whole) <= 1e-11 and state == ()


@pytest.mark.parametrize("kind", ["0.9", "0.9.5"])
def test_frames_come_as_soon_as_the_latents_that_they_see(kind: str) -> None:
    """And no sooner: those that are given do not depend on later latents, and the next one does."""
    vae = looking_ahead(kind)
    z = vaes.latents(vae, (24, 1, 1), batch=1)
    came, sizes = 0, set()
    with torch.no_grad():
        whole, state = vae.decode(z), None
        for k in range(23):
            frames, state = vae.decode_chunk(z[:, :, k : k + 1], state, last=False)
            came += frames.shape[2]
            parts = [part.untyped_storage().nbytes() for part in tree_leaves(state) if isinstance(part, Tensor)]
            sizes.add(sum(parts)) if k > 19 else None
            if k in (8, 17, 22):
                changed = z + (torch.arange(24) > k).double().reshape(-1, 1, 1)
                moved = (vae.decode(changed) - whole).abs().amax((0, 1, 3, 4)) > 0
                assert moved.nonzero()[0].item() == came
        assert came > 25
        assert len(sizes) == 1, "the state has a constant size"


def test_float32_streams_to_rounding() -> None:
    vae = looking_ahead("0.9.5").float()
    z = vaes.latents(vae, (19, 2, 1)).float()
    with torch.no_grad():
        assert error(torch.cat([*decode_stream(vae, z.split(3, 2))], 2), vae.decode(z)) <= 1e-5


def test_memory_of_a_stream_that_looks_ahead_does_not_grow() -> None:
    vae = small_vaes.small("LTXAutoencoder").float()

    def peak(latents: int) -> int | None:
        def run() -> None:
            with torch.no_grad():
                for video in decode_stream(vae, (torch.zeros(1, 3, 1, 4, 4) for _ in range(latents))):
                    del video

        return peak_bytes(run, torch.device("cpu"))[0]

    assert peak(9) == peak(65)


@pytest.mark.parametrize("kind", ["0.9", "0.9.1", "0.9.5"])
def test_a_clip_that_has_ended_does_not_go_on(kind: str) -> None:
    vae = looking_ahead(kind)
    z = vaes.latents(vae, (3, 1, 2))
    with torch.no_grad():
        whole, state = seeded(vae.decode_chunk, z)
        first = seeded(vae.decode, z[:, :, :2])
        assert error(first, whole[:, :, : first.shape[2]]) > 1e-3, "the first latents decode to other frames"
        with pytest.raises(ValueError, match=r"state must hold the states of \d+ modules, not of \d+"):
            vae.decode_chunk(z, state)
        assert [*decode_stream(vae, [])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "latents"), [(ltx_vae_0_9(), 23), (ltx_vae_0_9_1(), 31), (ltx_vae_0_9_5(), 22)], ids=["0.9", "1", "5"]
)
def test_how_far_the_published_decoders_see(config: LTXAutoencoderConfig, latents: int) -> None:
    """The docs' numbers, with as many layers and fewer channels."""
    widths = tuple(8 * 2**i if config.timed else 8 for i in range(len(config.decoder_widths)))
    scales = len(config.widths)
    narrow = {"latent_channels": 2, "widths": (32,) * scales, "depths": (1,) * scales, "decoder_widths": widths}
    assert decoder_reach(LTXAutoencoder(replace(config, **narrow))).time == (latents, latents)


def looking_ahead(kind: str) -> LTXAutoencoder:
    vae: LTXAutoencoder = vaes.ours(ltx_vaes.peer(kind).double())
    assert vae.looks_ahead
    return vae


def timed(vae: LTXAutoencoder) -> dict[str, Tensor]:
    return {"time": torch.tensor([0.05, 0.3], dtype=F64)} if vae.config.timed else {}


def test_sizes_that_diffusers_cannot_take_are_padded() -> None:
    peer = ltx_vaes.peer("0.9", seed=0)
    vae = vaes.ours(peer)
    spatial = vae.config.factors.spatial
    odd = torch.rand(1, vae.config.in_channels, 4, spatial + 3, spatial) * 2 - 1
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            peer(odd)
        assert vae(vae.config.factors.padded(odd))[:, :, :4, : spatial + 3].shape == odd.shape
        with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k, not 4"):
            vae.encode(odd)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ltx_vae_0_9(), ltx_vae_0_9_5()], ids=["0.9", "0.9.5"])
def test_a_full_width_decode_is_the_peers(config: LTXAutoencoderConfig) -> None:
    torch.manual_seed(0)
    config = replace(config, widths=(8,) * 5, depths=(1,) * 5)  # nothing is encoded
    peer = AutoencoderKLLTXVideo(**ltx_vae_config_to_diffusers(config)).eval()
    vae = vaes.ours(peer)
    z, time = torch.randn(1, 128, 2, 2, 2), torch.tensor([0.05]) if config.timed else None
    with torch.no_grad():
        assert error(vae.decode(z, time), peer.decode(z, time).sample) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 0}, "patch must be a positive whole number, not 0"),
        ({"depths": (1, 1)}, r"depths \(1, 1\) must be a positive whole number for each of 5 scales"),
        ({"doubles": (True,)}, r"doubles \(True,\) must have 4 values"),
        ({"noise": (True,) * 4}, "noise .* must have 5 values"),
        ({"changes": ("conv", "conv", "conv", "half")}, r"changes must be of .*, not \['half'\]"),
        ({"changes": ("conv", "conv", "conv", "space")}, r"divide time and space by \[8, 16\], but doubles are"),
        ({"narrows": (1, 1, 1, 2)}, "must divide decoder_widths"),
        ({"shortcuts": (True,) * 4, "decoder_widths": (4, 8, 8, 8)}, "need eighths of decoder_widths"),
        ({"narrows": (1, 1, 2, 1), "decoder_widths": (128, 256, 512, 1024)}, "1024 channels come to scale 2"),
        ({"timed": True}, "512 channels come to scale 1 of 256"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LTXAutoencoderConfig(**change)
