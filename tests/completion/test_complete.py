"""Completion: known pixels to the bit whatever the task, mixtures as each alone, cells and filling against loops."""

import pytest
import torch
from systems import tiny_system

from tubelet.completion import TASKS, complete, consistent, filled, known_latents, task
from tubelet.diffusion import EDM, Known, Process, UniPC
from tubelet.diffusion.tasks import connect, extend, inpaint, nothing, outpaint, place, upsample
from tubelet.pipeline import TextToVideo, decode_latents, encode_videos, generate

PROMPTS = ["a seven up", "a two", "", "a two down"]


@pytest.fixture(scope="module")
def model() -> TextToVideo:
    return tiny_system()


def video(frames: int = 9, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, frames, height, width, generator=generator) * 2 - 1


def hole(frames: int, height: int, width: int) -> torch.Tensor:
    """A ragged hole that no cell's edge meets."""
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[2:7, 3:13, 5:] = True
    return mask


def mixture() -> list[Known]:
    return [
        connect(video(5), video(4, seed=1), 13),
        inpaint(video(), hole(9, 16, 24)),
        upsample(video(3, seed=2), 2),
        nothing(video(1, 16, 16)),
    ]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_known_pixels_are_the_given_ones_bit_for_bit(model, name: str, bf16: bool) -> None:
    known = task(name, video(), frames=9, given=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        (made,) = complete(model, ["a two"], [known], seeds=[3], steps=2)
        (other,) = complete(model, ["a two"], [known], seeds=[4], steps=2)
    assert made.shape == (1, 9, 16, 24)
    assert made.dtype == torch.float32
    assert torch.equal(made[:, known.tokens], known.video[:, known.tokens])
    assert (made - other)[:, ~known.tokens].abs().max() > 1e-4


def test_a_loop_ends_where_it_starts(model) -> None:
    (made,) = complete(model, ["a two"], [task("loop", video(5), frames=9)], seeds=[0], steps=2)
    assert torch.equal(made[:, 0], made[:, -1])


def test_a_mixture_of_tasks_and_sizes_equals_each_alone(model) -> None:
    knowns = mixture()
    together = complete(model, PROMPTS, knowns, [5, 6, 7, 8], steps=3)
    for i, made in enumerate(together):
        (alone,) = complete(model, [PROMPTS[i]], [knowns[i]], [5 + i], steps=3)
        torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-4)


def test_a_prefix_is_generates_prefix(model) -> None:
    prefix = video(5)
    (expected,) = generate(model, ["a two"], [(9, 16, 24)], [3], prefixes=[prefix], steps=3)
    (made,) = complete(model, ["a two"], [extend(prefix, 9)], [3], steps=3)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    (free,) = generate(model, ["a two"], [(9, 16, 24)], [3], steps=3)
    (unknown,) = complete(model, ["a two"], [nothing(video())], [3], steps=3)
    torch.testing.assert_close(unknown, free, rtol=1e-4, atol=1e-4)


def test_cells_are_known_where_all_their_pixels_are(model) -> None:
    known = inpaint(video(), hole(9, 16, 24))
    (latent,) = known_latents(model.vae, [known])
    for t, frames in enumerate((range(1), range(1, 5), range(5, 9))):
        for y in range(2):
            for x in range(3):
                pixels = known.tokens[list(frames), 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                assert bool(latent.tokens[t, y, x]) == bool(pixels.all()), (t, y, x)
    assert torch.equal(latent.video, encode_videos(model.vae, [filled(known)])[0])


def test_the_latents_of_known_cells_stay_exact_at_every_step(model) -> None:
    states: list[torch.Tensor] = []
    known = connect(video(5), video(4, seed=1), 13)
    complete(model, ["a"], [known], [0], steps=3, callback=lambda _, x: states.append(x))
    (latent,) = known_latents(model.vae, [known])
    held = latent.tokens.flatten()
    assert held.sum() == 3 * 6
    assert all(torch.equal(x[held], latent.values.reshape(-1, 4)[held]) for x in states)


def test_filling_takes_the_nearest_known_frame_of_each_pixel_else_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(7, 3, 4, generator=generator) < 0.3
    mask[:, 0, 0] = False
    clip = torch.randn(2, 7, 3, 4, generator=generator)
    got = filled(Known.of_video(clip, mask))
    mean = clip[:, mask].mean(1)
    for t in range(7):
        for y in range(3):
            for x in range(4):
                known = mask[:, y, x].nonzero().flatten().tolist()
                if not known:
                    torch.testing.assert_close(got[:, t, y, x], mean)
                    continue
                near = min(abs(k - t) for k in known)
                assert any(torch.equal(got[:, t, y, x], clip[:, k, y, x]) for k in known if abs(k - t) == near)


def test_nothing_known_is_filled_with_zeros() -> None:
    assert not bool(filled(nothing(video())).any())


def test_agreement_is_decode_replace_encode_where_a_cell_is_known_in_part(model) -> None:
    whole, part = extend(video(5), 9), upsample(video(3, seed=2), 4)
    latents = [torch.randn(4, 3, 2, 3), torch.randn(4, 3, 2, 3)]
    agree = consistent(model.vae, [whole, part])
    assert agree is not None
    same, new = agree(latents)
    assert torch.equal(same, latents[0])
    (decoded,) = decode_latents(model.vae, latents[1:])
    decoded[:, ::4] = video(3, seed=2)
    torch.testing.assert_close(new, encode_videos(model.vae, [decoded])[0])
    assert consistent(model.vae, [whole, nothing(video())]) is None


def test_partly_known_cells_steer_the_sample(model) -> None:
    """Frames 4 and 8 alone fill no cell, and yet what is between them changes with them."""
    made = [complete(model, ["a"], [place({4: v, 8: v}, 9)], [0], steps=2)[0] for v in (video(1), video(1, seed=1))]
    assert (made[0] - made[1])[:, 5:8].abs().max() > 1e-3


def test_patches_of_several_cells_are_known_as_a_whole() -> None:
    """A canvas whose left 16 pixels of 32 are known: two cells of a patch of four wide are not enough."""
    model = tiny_system(patch=(1, 1, 4))
    known = outpaint(video(5, 16, 16), (16, 32))
    (made,) = complete(model, ["a two"], [known], seeds=[3], steps=2)
    assert torch.equal(made[..., :16], video(5, 16, 16))


def test_a_noise_level_of_the_known_frames(model) -> None:
    known = extend(video(5), 9)
    noisy = Known.of_video(known.video, known.tokens, noise_level=0.3)
    (steady,), (exact,) = (complete(model, ["a"], [k], [0], steps=2) for k in (noisy, known))
    assert torch.equal(steady[:, :5], video(5))
    assert (steady - exact)[:, 5:].abs().max() > 1e-4


def test_other_dtypes_keep_the_given_ones(model) -> None:
    known = extend(video(1).double(), 5)
    (made,) = complete(model, ["a"], [known], [0], steps=1)
    assert made.dtype == torch.float64
    assert torch.equal(made[:, :1], video(1).double())


def test_bad_input_is_refused(model) -> None:
    with pytest.raises(ValueError, match=r"known values must lie in \[-1, 1\]"):
        complete(model, ["a"], [extend(torch.full((1, 1, 16, 16), 255.0), 5)], [0])
    with pytest.raises(ValueError, match=r"known values must lie in \[-1, 1\]"):
        complete(model, ["a"], [extend(torch.full((1, 1, 16, 16), torch.nan), 5)], [0])
    with pytest.raises(ValueError, match="'prompts': 2, 'knowns': 1"):
        complete(model, ["a", "a"], [nothing(video())], [0])
    with pytest.raises(ValueError, match="frames must be 1 \\+ 4"):
        complete(model, ["a"], [extend(video(1), 4)], [0])
    assert complete(model, [], [], []) == []


def test_names_give_what_they_say() -> None:
    def frames(name: str, **counts: int) -> list[int]:
        known = task(name, video(13), **{"frames": 13} | counts)
        return known.tokens.flatten(1).any(1).nonzero().flatten().tolist()

    assert frames("text") == []
    assert frames("image") == [0]
    assert frames("extend", given=3) == [0, 1, 2]
    assert frames("prepend", given=2) == [11, 12]
    assert frames("connect", given=2) == [0, 1, 11, 12]
    assert frames("loop", given=2) == [0, 1, 12]
    assert frames("interpolate", every=5) == [0, 5, 10, 12]
    assert frames("upsample", every=3) == [0, 3, 6, 9, 12]
    assert torch.equal(task("upsample", video(13), 13, every=3).video[:, ::3], video(13)[:, :5])
    known = task("outpaint", video(13), 13)
    assert bool(known.tokens[:, 4:12, 6:18].all())
    assert int(known.tokens.sum()) == 13 * 8 * 12
    assert torch.equal(task("inpaint", video(13), 13).tokens, ~known.tokens)
    later = ~task("spacetime", video(13), 13).tokens
    assert not bool(later[:5].any() | later[:, :8].any())
    assert bool(later[5:, 8:].all())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("unknown", 9), "name must be one of text, image"),
        (("extend", 9, 0), "must be at least 1, got 9, 0 and 4"),
        (("inpaint", 13), "first 13 of its source, which has 9"),
        (("prepend", 13, 10), "first 10 of its source, which has 9"),
        (("upsample", 10), r"makes 1 \+ 4·k frames, got frames=10"),
    ],
)
def test_bad_names_and_counts_are_refused(arguments, says: str) -> None:
    name, *counts = arguments
    with pytest.raises(ValueError, match=says):
        task(name, video(), *counts)


def test_a_model_that_is_told_nothing_is_repainted(model, monkeypatch) -> None:
    known, told = extend(video(5), 9), []
    plain = type(model.denoiser).forward

    def noted(self, x, t, text, layout, text_layout, given):
        told.append((t.expand().clone(), given.clone()))
        return plain(self, x, t, text, layout, text_layout, given)

    monkeypatch.setattr(type(model.denoiser), "forward", noted)
    (made,) = complete(model, ["a two"], [known], [3], steps=2, repaint=3, guidance=1.0)
    assert torch.equal(made[:, :5], known.video[:, :5])
    assert [sorted(set(t.tolist())) for t, _ in told] == [[1.0]] * 3 + [[0.5]] * 3
    assert not any(bool(given.any()) for _, given in told)
    (often,) = complete(model, ["a two"], [known], [3], steps=2, repaint=2, guidance=1.0)
    assert float((often - made).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="step must be a one-step method, got the solver UniPC"):
        complete(model, ["a two"], [known], [3], steps=2, repaint=3, step=UniPC())


def test_known_pixels_count_in_a_patch_that_is_known_in_part() -> None:
    """Of three cells that are one patch, two are known: their pixels change what is made of the third."""
    model, clip = tiny_system((1, 1, 3)), video()
    mask = torch.zeros(9, 16, 24, dtype=torch.bool)
    mask[:, :, 16:] = True
    made = [complete(model, ["a two"], [inpaint(x, mask)], [0], steps=2)[0][:, mask] for x in (clip, -clip)]
    assert float((made[0] - made[1]).abs().max()) > 1e-3
    known = inpaint(clip, mask)
    assert consistent(model.vae, [known]) is None
    assert consistent(model.vae, [known], (1, 1, 3)) is not None


def test_a_run_starts_at_the_paths_own_deviation(model) -> None:
    states: list[torch.Tensor] = []
    process = Process(path=EDM(80.0), prediction="x0")

    def step(denoiser, x, t, s, process):
        states.append(x)
        return x

    for run in (
        lambda how: complete(model, ["a two"], [nothing(video())], [0], **how),
        lambda how: generate(model, ["a two"], [(9, 16, 24)], [0], **how),
    ):
        run({"steps": 1, "process": process, "step": step})
        assert abs(float(states.pop().std()) / 80 - 1) < 0.2
