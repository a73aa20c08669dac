"""Video to video: the input at strength 0, plain sampling at strength 1, and inversion that comes back."""

import pytest
import torch
from systems import tiny_system

from tubelet.completion import edit, edit_inverted, lengthen
from tubelet.diffusion import SOLVERS, Process, further_seeds, shift_warp
from tubelet.pipeline import TextToVideo, decode_latents, encode_videos, generate


@pytest.fixture(scope="module")
def model() -> TextToVideo:
    return tiny_system()


def video(frames: int = 5, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_strength_0_returns_the_videos_bit_for_bit(model) -> None:
    videos = [video(), video(1, 16, 16)]
    for made in (
        edit(model, ["a", "a two"], videos, [0, 1], strength=0.0),
        edit_inverted(model, ["a", "a two"], videos, ["a", "a"], strength=0.0),
    ):
        assert all(torch.equal(a, b) for a, b in zip(made, videos, strict=True))


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 1)])
def test_strength_1_is_sampling_without_the_video(patch) -> None:
    model = tiny_system(patch)
    (made,) = edit(model, ["a two"], [video()], [7], strength=1.0, steps=3)
    (expected,) = generate(model, ["a two"], [(5, 16, 24)], [7], steps=3)
    assert torch.equal(made, expected)


def test_the_weaker_the_nearer_to_what_the_autoencoder_keeps(model) -> None:
    kept = decode_latents(model.vae, encode_videos(model.vae, [video()]))[0]
    gaps = [
        float((edit(model, ["a two"], [video()], [7], strength=s, steps=10)[0] - kept).square().mean())
        for s in (0.05, 0.4, 0.9)
    ]
    assert gaps[0] < gaps[1] < gaps[2]


def test_edits_of_a_mixture_equal_each_alone(model) -> None:
    videos, process = [video(), video(1, 16, 16), video(9, seed=3)], Process(warp=shift_warp(2.0))
    prompts, seeds = ["a two", "a seven up", ""], [1, 2, 3]
    together = edit(model, prompts, videos, seeds, strength=0.6, steps=4, process=process)
    back = edit_inverted(model, prompts, videos, [""] * 3, steps=3)
    for i, one in enumerate(videos):
        (alone,) = edit(model, [prompts[i]], [one], [seeds[i]], strength=0.6, steps=4, process=process)
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-4)
        (alone,) = edit_inverted(model, [prompts[i]], [one], [""], steps=3)
        torch.testing.assert_close(back[i], alone, rtol=1e-4, atol=1e-4)


def test_inversion_with_one_prompt_comes_back_the_nearer_the_more_steps(model) -> None:
    kept = decode_latents(model.vae, encode_videos(model.vae, [video()]))[0]
    gaps = []
    for steps in (4, 12, 28):
        (made,) = edit_inverted(model, ["a two"], [video()], ["a two"], steps=steps, guidance=1.0, strength=0.5)
        gaps.append(float((made - kept).square().mean().sqrt()))
    assert gaps[1] < 0.7 * gaps[0]
    assert gaps[2] < 0.65 * gaps[1]
    (other,) = edit_inverted(model, ["a seven up"], [video()], ["a two"], steps=28, guidance=1.0, strength=0.5)
    assert float((other - made).abs().max()) > 0.05


def test_long_videos_begin_with_their_start_and_go_on_from_it(model) -> None:
    starts, prompts = [video(5), video(5, seed=1)], ["a two", "a"]
    made = lengthen(model, prompts, starts, 15, [3, 4], window=9, overlap=5, steps=2)
    assert [each.shape for each in made] == [(1, 15, 16, 24)] * 2
    assert all(torch.equal(each[:, :5], start) for each, start in zip(made, starts, strict=True))
    (first,) = generate(model, ["a two"], [(9, 16, 24)], [3], prefixes=[starts[0]], steps=2)
    torch.testing.assert_close(made[0][:, :9], first, rtol=1e-4, atol=1e-4)
    (second,) = generate(model, ["a two"], [(9, 16, 24)], further_seeds([3], 1), prefixes=[made[0][:, 4:9]], steps=2)
    torch.testing.assert_close(made[0][:, 9:13], second[:, 5:], rtol=1e-4, atol=1e-4)
    (again,) = generate(model, ["a two"], [(9, 16, 24)], [3], prefixes=[made[0][:, 4:9]], steps=2)
    assert float((again - second).abs().max()) > 0.05  # which the first window's noise would make


def test_bad_strengths_are_refused(model) -> None:
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got 1.5"):
        edit(model, ["a"], [video()], [0], strength=1.5)


def test_edits_and_long_videos_take_any_step(model) -> None:
    ask = (model, ["a two"], [video()])
    for make in (
        lambda step: edit(*ask, [1], steps=5, step=step),
        lambda step: edit_inverted(*ask, ["a"], steps=5, step=step),
        lambda step: lengthen(*ask, 9, [1], window=9, overlap=5, steps=5, step=step),
    ):
        euler, unipc = make(SOLVERS["euler"])[0], make(SOLVERS["unipc"])[0]
        assert float((euler - unipc).abs().max()) > 1e-4
    with pytest.raises(ValueError, match="step draws noise, so that it does not lead back"):
        edit_inverted(*ask, ["a"], steps=3, step=SOLVERS["ddpm"])


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_what_is_asked_is_checked_at_any_strength(model, strength: float) -> None:
    good = {"prompts": ["a two"], "videos": [video()], "seeds": [0], "strength": strength, "steps": 1}
    for wrong, says in (
        ({"videos": [video() * 255]}, r"videos must lie in \[-1, 1\], got -25\d"),
        ({"videos": [video() * torch.nan]}, r"videos must lie in \[-1, 1\], got nan"),
        ({"videos": [video().byte()]}, "videos must lie in .* of torch.uint8"),
        ({"prompts": "a"}, "prompts must be a list of texts"),
        ({"seeds": [0, 1]}, "must be equally many, got {'prompts': 1, 'videos': 1, 'seeds': 2}"),
        ({"prompts": []}, "must be equally many"),
        ({"guidance": torch.nan}, "guidance must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=says):
            edit(model, **(good | wrong))
        if "seeds" not in wrong:
            inverted = {key: value for key, value in (good | wrong).items() if key != "seeds"}
            with pytest.raises(ValueError, match=says.replace("seeds", "sources")):
                edit_inverted(model, sources=["a"], **inverted)
    with pytest.raises(ValueError, match="guidance must be finite, got nan"):
        lengthen(model, ["a two"], [video()], 5, [0], window=5, overlap=1, guidance=torch.nan)
    with pytest.raises(ValueError, match="must be equally many"):
        lengthen(model, ["a two"], [video()], 5, [0, 1], window=5, overlap=1)
