"""Packed sampling equals samples made alone; given frames come back to the bit; the loss is its definition."""

import pytest
import torch

from tubelet import Grid, TokenLayout
from tubelet.diffusion import SOLVERS, Process, Seeded, apg, cfg, euler_step, logit_normal, noise_stream, rescale
from tubelet.hub import save
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.pipeline import (
    LatentBatch,
    TextToVideo,
    _by_shape,
    _draw_known,
    decode_latents,
    denoising_loss,
    encode_videos,
    generate,
    prefix_mask,
)
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

WORDS = ("a", "down", "seven", "two", "up")
PROMPTS = ["a seven up", "a two", "", "a two down"]
SIZES = [(5, 16, 24), (1, 16, 16), (9, 24, 16), (5, 16, 24)]


@pytest.fixture
def model() -> TextToVideo:
    """Random weights everywhere, the zero-initialised ones included, and latent statistics that matter."""
    vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=4, widths=(8, 16), depths=(1, 1)))
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=8))
    made = TextToVideo(vae, WordEncoder(WordEncoderConfig(words=WORDS, dim=8)), dit).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.vae.set_latent_stats(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    return made


def test_a_packed_mixture_equals_its_samples_alone(model) -> None:
    together = generate(model, PROMPTS, SIZES, [5, 6, 7, 8], steps=3, guidance=2.0)
    for i, made in enumerate(together):
        (alone,) = generate(model, [PROMPTS[i]], [SIZES[i]], [5 + i], steps=3, guidance=2.0)
        assert made.shape == (1, *SIZES[i])
        torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-5)
    again = generate(model, PROMPTS[::-1], SIZES[::-1], [8, 7, 6, 5], steps=3, guidance=2.0)[::-1]
    for a, b in zip(together, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_seed_the_prompt_and_the_guidance_each_matter(model) -> None:
    def one(prompt: str = "a two", seed: int = 0, guidance: float = 2.0) -> torch.Tensor:
        return generate(model, [prompt], [(5, 16, 16)], [seed], steps=2, guidance=guidance)[0]

    base = one()
    assert torch.equal(base, one())
    for other in (one("a seven up"), one(seed=1), one(guidance=1.0)):
        assert (base - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["unipc", "rk4", "ancestral", "2m-sde"])
def test_any_step_and_guidance_reach_the_model_packed_as_alone(model, name: str) -> None:
    how = {"steps": 5, "guidance": lambda c, u: rescale(apg(c, u, 4.0, Process(), radius=5.0), c, 0.5)}
    prompts, sizes = PROMPTS[:3], SIZES[:3]
    together = generate(model, prompts, sizes, [5, 6, 7], step=SOLVERS[name], **how)
    plain = generate(model, prompts, sizes, [5, 6, 7], **how)
    for i, made in enumerate(together):
        (alone,) = generate(model, [prompts[i]], [sizes[i]], [5 + i], step=SOLVERS[name], **how)
        torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-5)
        assert float((made - plain[i]).abs().max()) > 1e-3


def test_a_function_of_two_denoisers_is_what_the_number_does(model) -> None:
    ask = (model, ["a two"], [(5, 16, 16)], [0])
    (expected,) = generate(*ask, steps=2, guidance=3.0)
    (made,) = generate(*ask, steps=2, guidance=lambda c, u: cfg(c, u, 3.0))
    (plain,) = generate(*ask, steps=2, guidance=lambda c, u: c)
    assert torch.equal(made, expected)
    assert torch.equal(plain, generate(*ask, steps=2, guidance=1.0)[0])


def test_a_step_draws_from_each_samples_seed_and_never_its_start_again(model) -> None:
    states: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []

    def make(noise):
        def step(denoiser, x, t, s, process):
            states.append(x)
            drawn.append(next(noise))
            return euler_step(denoiser, x, t, s, process)

        return step

    generate(model, ["a two", "a"], [(5, 16, 24), (1, 16, 16)], [5, 6], steps=2, step=Seeded(make))
    own = [
        noise_stream(TokenLayout.packed([grid]), 4, [seed]) for grid, seed in ((Grid(1, 2, 2), 6), (Grid(2, 2, 3), 5))
    ]
    for noise in drawn:
        assert torch.equal(noise, torch.cat([next(each) for each in own]))
        assert abs(float((noise * states[0]).mean())) < 0.5


def test_guidance_leads_from_the_empty_prompt_past_the_prompt(model) -> None:
    """One Euler step is linear in the guided prediction: ``empty + scale·(prompt - empty)``."""

    def state(prompt: str, guidance: float) -> torch.Tensor:
        states: list[torch.Tensor] = []
        keep = lambda _, x: states.append(x)  # noqa: E731
        generate(model, [prompt], [(5, 16, 16)], [0], steps=1, guidance=guidance, callback=keep)
        return states[0]

    empty, prompt = state("", 1.0), state("a two", 1.0)
    assert (prompt - empty).abs().max() > 1e-2
    torch.testing.assert_close(state("a two", 3.0), empty + 3 * (prompt - empty), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state("a two", 0.0), empty, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("bf16", [False, True])
def test_given_frames_come_back_to_the_bit_and_steer_the_rest(model, frames, bf16) -> None:
    prefix = torch.rand(1, frames, 16, 24) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        given, free = generate(model, ["a two"] * 2, [(9, 16, 24)] * 2, [3, 3], prefixes=[prefix, None], steps=2)
    assert torch.equal(given[:, :frames], prefix)
    assert (given[:, frames:] - free[:, frames:]).abs().max() > 1e-3


def test_the_latents_of_given_frames_stay_exact_at_every_step(model) -> None:
    prefix, states = torch.rand(1, 5, 16, 16), []
    generate(model, ["a"], [(9, 16, 16)], [0], prefixes=[prefix], steps=3, callback=lambda i, x: states.append(x))
    clean = encode_videos(model.vae, [prefix])[0].permute(1, 2, 3, 0).reshape(-1, 4)
    assert len(states) == 3
    assert all(torch.equal(x[: len(clean)], clean) for x in states)


@pytest.mark.parametrize(
    ("dtype", "state", "tolerance"),
    [(torch.float64, torch.float64, 1e-4), (torch.bfloat16, torch.float32, 0.25)],
)
def test_models_of_other_dtypes_do_what_float32_does(model, dtype, state, tolerance) -> None:
    """The same noise, so nearly the same videos, from a prefix of float32; and the same loss."""
    prefix, batch = torch.rand(1, 1, 16, 24) * 2 - 1, _batch()
    request = (["a two", ""], [(5, 16, 24), (1, 16, 16)], [3, 4])
    expected = generate(model, *request, prefixes=[prefix, None], steps=2)
    loss = denoising_loss(model, batch, Process(), torch.Generator().manual_seed(0))
    model.to(dtype)
    states: list[torch.Tensor] = []
    made = generate(model, *request, prefixes=[prefix, None], steps=2, callback=lambda _, x: states.append(x))
    assert {x.dtype for x in states} == {state}
    assert [video.dtype for video in made] == [torch.float32, state]
    assert torch.equal(made[0][:, :1], prefix)
    for video, other in zip(made, expected, strict=True):
        assert (video.to(other.dtype) - other).square().mean().sqrt() < tolerance
    patches = LatentBatch(batch.patches.to(dtype), batch.layout, batch.prompts)
    again = denoising_loss(model, patches, Process(), torch.Generator().manual_seed(0))
    assert again.dtype == state
    torch.testing.assert_close(again.to(loss.dtype), loss, rtol=tolerance / 2, atol=0)


def test_a_model_on_another_device_meets_no_tensor_of_this_one(model) -> None:
    """On the meta device, where mixing devices is an error as it is on CUDA."""
    model.to("meta")
    made = generate(model, PROMPTS, SIZES, [5, 6, 7, 8], steps=2)
    assert [(video.device.type, video.shape) for video in made] == [("meta", (1, *size)) for size in SIZES]
    batch = _batch()
    batch = LatentBatch(batch.patches.to("meta"), batch.layout, batch.prompts)
    assert denoising_loss(model, batch, Process(), torch.Generator()).device.type == "meta"
    assert encode_videos(model.vae, [torch.zeros(1, 1, 16, 16)])[0].device.type == "meta"


def test_nothing_asked_is_nothing_made(model) -> None:
    assert generate(model, [], [], []) == []


def test_mixed_sizes_encode_and_decode_as_each_alone(model) -> None:
    videos = [torch.randn(1, *size).clamp(-1, 1) for size in SIZES]
    latents = encode_videos(model.vae, videos)
    decoded = decode_latents(model.vae, latents)
    for video, z, again in zip(videos, latents, decoded, strict=True):
        expected = model.vae.scale(model.vae.encode(video[None]).mode())[0]
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-5)
        back = model.vae.decode(model.vae.unscale(expected[None]))[0].clamp(-1, 1)
        torch.testing.assert_close(again, back, rtol=1e-4, atol=1e-4)


def test_prefix_mask_counts_frames_of_each_sample() -> None:
    layout = TokenLayout.packed([Grid(3, 1, 2), Grid(1, 1, 1), Grid(2, 2, 1)]).on("cpu")
    assert prefix_mask(layout, [2, 0, 1]).tolist() == [True, True, False, False, True, False]


def _batch() -> LatentBatch:
    latents = [torch.randn(4, 3, 2, 2), torch.randn(4, 1, 2, 3), torch.randn(4, 2, 2, 2)]
    return LatentBatch.of(latents, ["a two", "a", "a seven up"], (1, 1, 1))


def test_the_loss_is_the_squared_velocity_error_of_unknown_tokens(model) -> None:
    """With nothing known and nothing dropped: drawn by hand from the same generator, in the same order."""
    batch, process = _batch(), Process(density=logit_normal(0.3, 1.0))
    found = denoising_loss(model, batch, process, torch.Generator().manual_seed(2), drop_text=0.0, known_frames=0.0)
    generator = torch.Generator().manual_seed(2)
    times = process.draw_times((3,), generator=generator)
    torch.rand(3, generator=generator), torch.rand(3, generator=generator)
    noise = torch.randn(batch.patches.shape, generator=generator)
    t = times.repeat_interleave(torch.tensor(batch.layout.lengths))[:, None]
    text = model.text(batch.prompts)
    prediction = model.denoiser(
        (1 - t) * batch.patches + t * noise,
        batch.layout.rows(times, "sample"),
        text.tokens,
        batch.layout,
        TokenLayout.packed([None] * 3, text.lengths),
    )
    expected = (prediction - (noise - batch.patches)).square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_known_frames_leave_the_loss(model) -> None:
    """All but the last frame of the clips of several frames are given at most; images never are."""
    batch = _batch()
    wrong = LatentBatch(batch.patches.clone(), batch.layout, batch.prompts)
    losses = [
        denoising_loss(model, b, Process(), torch.Generator().manual_seed(s), known_frames=1.0)
        for s in range(4)
        for b in (batch, wrong)
    ]
    assert all(torch.equal(a, b) for a, b in zip(losses[::2], losses[1::2], strict=True))
    free = denoising_loss(model, batch, Process(), torch.Generator().manual_seed(0), known_frames=0.0)
    assert not torch.isclose(free, losses[0])


def test_dropped_prompts_are_the_empty_one(model) -> None:
    batch = _batch()
    empty = LatentBatch(batch.patches, batch.layout, ("", "", ""))
    losses = [
        denoising_loss(model, b, Process(), torch.Generator().manual_seed(1), drop_text=drop)
        for b, drop in ((batch, 1.0), (empty, 0.0), (batch, 0.0))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.isclose(losses[0], losses[2])


def test_equal_lengths_lie_side_by_side() -> None:
    latents = [torch.zeros(4, 1, 2, 2), torch.zeros(4, 2, 2, 2), torch.ones(4, 1, 2, 2)]
    batch = LatentBatch.of(latents, ["x", "y", "z"], (1, 1, 1))
    assert batch.layout.lengths == (4, 4, 8)
    assert batch.prompts == ("x", "z", "y")


def test_errors_name_both_values(model) -> None:
    with pytest.raises(ValueError, match="'prompts': 1, 'sizes': 2"):
        generate(model, ["a"], [(1, 16, 16)] * 2, [0])
    with pytest.raises(ValueError, match=r"prefix of shape \(1, 1, 8, 8\).*\(5, 16, 16\)"):
        generate(model, ["a"], [(5, 16, 16)], [0], prefixes=[torch.zeros(1, 1, 8, 8)])
    with pytest.raises(ValueError, match="2 samples, but prompts has 1"):
        LatentBatch.of([torch.zeros(4, 1, 2, 2)] * 2, ["a"], (1, 1, 1))
    with pytest.raises(ValueError, match="guidance must be finite, got nan"):
        generate(model, ["a"], [(1, 16, 16)], [0], guidance=float("nan"))
    with pytest.raises(ValueError, match="steps"):
        generate(model, ["a"], [(1, 16, 16)], [0], steps=0)
    with pytest.raises(ValueError, match="CausalAutoencoder"):
        TextToVideo.of({"vae": model.vae})


@pytest.mark.graph  # without the shape checker, since a text is a sequence of texts too
def test_one_text_is_no_list_of_prompts(model) -> None:
    for call in (
        lambda: generate(model, "a two", [(1, 16, 16)] * 5, [0] * 5),
        lambda: LatentBatch.of([torch.zeros(4, 1, 2, 2)], "a", (1, 1, 1)),
    ):
        with pytest.raises(ValueError, match="prompts must be a list of texts, got one text: 'a"):
            call()


def test_a_model_of_parts_is_saved_as_a_bundle(model, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"use save_bundle\(path, model\.parts\(\)\)"):
        save(model, tmp_path / "model")


def test_groups_of_equal_sizes_end_where_they_should() -> None:
    """65 equal sizes are 64 and 1: each item once, in its place, whatever the group."""
    sizes: list[int] = []

    def numbered(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return batch + 1

    items = [torch.full((2,), float(i)) for i in range(65)] + [torch.full((3,), 65.0)]
    made = _by_shape(items, numbered)
    assert sizes == [64, 1, 1]
    assert [float(item[0]) for item in made] == [i + 1.0 for i in range(66)]
    assert _by_shape([], numbered) == []


def test_known_frames_are_drawn_from_one_to_all_but_the_last() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 1), Grid(2, 1, 1), Grid(5, 1, 1)])
    generator = torch.Generator().manual_seed(0)
    draws = [_draw_known(layout, 1.0, generator) for _ in range(200)]
    assert [sorted(set(column)) for column in zip(*draws, strict=True)] == [[0], [1], [1, 2, 3, 4]]
    counts = torch.tensor(draws)[:, 2].bincount(minlength=5)[1:]
    assert (counts - 50).abs().max() < 25
    none = [_draw_known(layout, 0.0, generator) for _ in range(20)]
    assert not torch.tensor(none).any()
    some = torch.tensor([_draw_known(layout, 0.25, generator) for _ in range(400)])[:, 2] > 0
    assert 60 < int(some.sum()) < 140


def test_prefixes_outside_the_range_are_refused(model) -> None:
    for bad in (torch.full((1, 1, 16, 16), 255.0), torch.full((1, 1, 16, 16), float("nan"))):
        with pytest.raises(ValueError, match=r"\[-1, 1\]"):
            generate(model, ["a"], [(5, 16, 16)], [0], prefixes=[bad], steps=1)
    with pytest.raises(ValueError, match="one text"):
        model.text("a two")
