"""Training an autoencoder on crops: an exact resume, averages, statistics and scores against their definitions."""

import math
from unittest import mock

import pytest
import torch

from tubelet.metrics import LPIPS, psnr
from tubelet.training import Interrupted, Progress, step_generator
from tubelet.vae import bicubic_code, reconstruction_loss
from tubelet.vae.families import (
    PrincipalAutoencoder,
    PrincipalAutoencoderConfig,
    WaltAutoencoder,
    WaltAutoencoderConfig,
    start_from,
)
from tubelet.vae.objectives import PatchDiscriminator, Reconstruction, reconstruct
from tubelet.vae_recipe import AutoencoderRecipe, _objective, compare, measure_latents, steps_in, train_on_crops


def batch(step: int) -> torch.Tensor:
    smooth = torch.randn(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(step)).cumsum(3).cumsum(4)
    return (smooth / 10).clamp(-1, 1)


def made() -> PrincipalAutoencoder:
    torch.manual_seed(0)
    vae = PrincipalAutoencoder(PrincipalAutoencoderConfig(latent_channels=4, widths=(8,), depths=(1,)))
    start_from(vae, map(batch, range(100, 104)))
    return vae


def quiet(steps: int, start: int) -> Progress:
    import io

    return Progress(steps, start=start, stream=io.StringIO())


def test_training_lowers_the_error_and_keeps_the_average() -> None:
    vae = made()
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    history = train_on_crops(vae, batch, AutoencoderRecipe(steps=30, warmup=3, lr=3e-3, ema=0.0), on_progress=quiet)
    assert sum(history["psnr"][-5:]) / 5 > sum(history["psnr"][:5]) / 5 + 0.1
    first = history["loss"][0]  # the squared error and the divergence of the first step, before anything was learned
    assert first == pytest.approx(4 / 10 ** (history["psnr"][0] / 10) + 1e-6 * history["kl"][0], rel=0.05)
    assert any(not torch.equal(before[name], p) for name, p in vae.state_dict().items())


def test_the_average_replaces_the_weights_at_the_end_and_at_each_save() -> None:
    seen, vae = [], made()
    start = {name: p.detach().clone() for name, p in vae.named_parameters()}

    def on_save(done: int, model: torch.nn.Module) -> None:
        seen.append((done, {name: p.detach().clone() for name, p in model.named_parameters()}))

    recipe = AutoencoderRecipe(steps=3, save_every=2, warmup=0, ema=0.999999)
    train_on_crops(vae, batch, recipe, on_save=on_save, on_progress=quiet)
    assert [done for done, _ in seen] == [2, 3]
    for name, p in vae.named_parameters():
        assert torch.equal(p, seen[-1][1][name])
    # n = 0, 1, 2 forget at (1 + n)/(10 + n): the start keeps 0.1 · 2/11 · 3/12 of the average
    moved = [name for name in start if not torch.equal(start[name], seen[-1][1][name])]
    assert moved


def test_a_resumed_run_equals_an_unbroken_one(tmp_path) -> None:
    recipe = AutoencoderRecipe(steps=4, warmup=1, save_every=10)
    whole = made()
    train_on_crops(whole, batch, recipe, on_progress=quiet)

    class Stopping:
        def __init__(self) -> None:
            self.done = 0

        def __call__(self, step: int) -> torch.Tensor:
            if step == 1:
                import signal

                signal.raise_signal(signal.SIGINT)
            return batch(step)

    with pytest.raises(Interrupted):
        train_on_crops(made(), Stopping(), recipe, checkpoint=tmp_path / "run.safetensors", on_progress=quiet)
    resumed = made()
    history = train_on_crops(resumed, batch, recipe, checkpoint=tmp_path / "run.safetensors", on_progress=quiet)
    assert history.steps["loss"] == [0, 1, 2, 3]
    for name, p in whole.state_dict().items():
        assert torch.equal(p, resumed.state_dict()[name]), name


@torch.no_grad()
def test_statistics_are_those_of_all_latents_at_once() -> None:
    vae = WaltAutoencoder(WaltAutoencoderConfig(latent_channels=2, widths=(4, 4), depth=1, halve_time=(True,)))
    videos = [batch(0), batch(1)[:1]]
    seen = measure_latents(vae, videos)
    numbers = torch.cat([vae.encode(video).mode().transpose(0, 1).flatten(1) for video in videos], 1)
    assert torch.allclose(seen.mean.float(), numbers.mean(1), atol=1e-6)
    assert torch.allclose(vae.latent_std, numbers.std(1, correction=0), rtol=1e-4)
    assert vae.config.latent_mean == pytest.approx(numbers.mean(1).tolist(), abs=1e-6)
    with pytest.raises(ValueError, match="videos is empty"):
        measure_latents(vae, [])


def test_scores_are_those_of_what_is_shown() -> None:
    vae, video = made(), batch(7)[:1]
    videos, scores = compare(vae, video)
    with torch.no_grad():
        z = vae.encode(video).mode()
        assert torch.equal(videos["reconstruction"], vae.decode(z).clamp(-1, 1))
    assert torch.equal(videos["bicubic"], bicubic_code(video, z.numel()))
    for name in ("reconstruction", "bicubic"):
        assert scores[name]["psnr"] == pytest.approx(float(psnr(video, videos[name])))
    assert math.isfinite(scores["bicubic"]["ssim"])


def test_losses_come_in_stages() -> None:
    recipe = AutoencoderRecipe(steps=900, kl=0.5, lpips=0.1, frames=0.2, adversarial_from=300)
    first = {"pixels": 1.0, "kl": 0.5, "lpips": 0.1}
    assert recipe.schedule.weights(299) == first
    assert recipe.schedule.weights(350) == pytest.approx({**first, "frames": 0.1})
    assert recipe.schedule.weights(400) == {**first, "frames": 0.2}
    at_once = AutoencoderRecipe(steps=9, kl=0.0, clips=0.3).schedule
    assert at_once.weights(0) == {"pixels": 1.0, "clips": 0.3}


def test_an_adversarial_run_resumes_with_its_discriminators(tmp_path) -> None:
    recipe = AutoencoderRecipe(steps=4, lpips=0.1, frames=0.5, clips=0.5, adversarial_from=2, save_every=3)
    torch.manual_seed(3)
    distance = LPIPS((4, 4, 4, 4, 4)).requires_grad_(False)
    options = {"distance": distance, "on_progress": quiet}
    whole = made()
    history = train_on_crops(whole, batch, recipe, **options)
    assert history.steps["lpips"] == [0, 1, 2, 3]
    assert history.steps["frames.real"] == history.steps["clips.fake"] == [2, 3]
    assert history.steps["frames"] == [3]  # a weight of 0 at its first step: the discriminator learns alone
    assert history["frames.balance"][0] > 0

    def stopping(step: int) -> torch.Tensor:
        if step == 3:
            raise RuntimeError("the machine went down")
        return batch(step)

    with pytest.raises(RuntimeError, match="went down"):
        train_on_crops(made(), stopping, recipe, checkpoint=tmp_path / "run.safetensors", **options)
    resumed = made()
    train_on_crops(resumed, batch, recipe, checkpoint=tmp_path / "run.safetensors", **options)
    for name, p in whole.state_dict().items():
        assert torch.equal(p, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="distance must be given for a weight of lpips=0.1, got None"):
        train_on_crops(made(), batch, recipe, on_progress=quiet)


def test_recipes_and_lengths_are_checked() -> None:
    for options, says in (
        ({"steps": 0}, "steps must be positive and finite, got 0"),
        ({"steps": 1, "lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"steps": 1, "kl": -1.0}, "kl must be at least 0"),
        ({"steps": 1, "l1": 1.5}, r"l1 must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=says):
            AutoencoderRecipe(**options)
    vae = made()
    before = vae.state_dict()["encoder.shortcut.inner.rest.weight"].clone()
    assert steps_in(0.05, vae, batch, AutoencoderRecipe(steps=1)) >= 1
    assert torch.equal(before, vae.state_dict()["encoder.shortcut.inner.rest.weight"])


def walt() -> WaltAutoencoder:
    torch.manual_seed(0)
    return WaltAutoencoder(WaltAutoencoderConfig(latent_channels=2, widths=(4, 4), depth=1, halve_time=(True,)))


def test_adversaries_are_balanced_at_the_last_layer() -> None:
    recipe = AutoencoderRecipe(steps=1, frames=0.5, bf16=False)
    vae = walt()
    assert [id(p) for p in _objective(vae, recipe, None).balance_at] == [id(vae.decoder.head.conv.conv.weight)]
    principal = made()
    last = principal.decoder.shortcut.inner  # a matrix for first frames, another for later ones
    expected = [id(last.first.weight), id(last.rest.weight)]
    assert [id(p) for p in _objective(principal, recipe, None).balance_at] == expected
    history = train_on_crops(principal, lambda step: batch(step)[:, :, :1], recipe, on_progress=quiet)
    assert history["frames.balance"][0] > 0  # an image has first frames alone


def test_scores_depend_on_no_other_video_and_start_from_the_seed() -> None:
    recipe = AutoencoderRecipe(steps=1, frames=0.5, seed=3)
    ours = _objective(walt(), recipe, None).adversaries["frames"].discriminator
    torch.manual_seed(3)
    theirs = PatchDiscriminator(3, 32, 2, norm=lambda n: torch.nn.GroupNorm(8, n))
    assert torch.equal(ours.layers[0].weight, theirs.layers[0].weight)
    video = batch(0)
    assert ours.training
    assert torch.allclose(ours(video)[:1], ours(video[:1]), atol=1e-6)


@pytest.mark.parametrize(("frames", "seen"), [(5, 2), (1, 1)])
def test_the_perceptual_distance_sees_two_frames(frames: int, seen: int) -> None:
    shapes = []

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return (x - y).square().mean((1, 2, 3, 4))

    video = batch(0)[:, :, :frames]
    term = _objective(walt(), AutoencoderRecipe(steps=1, lpips=0.1), distance).terms["lpips"]
    term(Reconstruction(video, video, None), None)
    assert shapes == [(2, 3, seen, 16, 16)]


def test_noise_is_that_of_its_stream() -> None:
    vae = walt()
    reconstructed = reconstruct(vae, batch(0), step_generator(5, 0, stream=7)).decoded
    first = reconstruction_loss(reconstructed, batch(0), l1=0.0).item()
    history = train_on_crops(vae, batch, AutoencoderRecipe(steps=1, seed=5, bf16=False), on_progress=quiet)
    assert history["pixels"][0] == pytest.approx(first, rel=1e-6)


def test_what_is_timed_has_the_discriminators() -> None:
    recipe = AutoencoderRecipe(steps=9, frames=0.5, adversarial_from=8)
    with mock.patch("tubelet.vae_recipe.train_on_crops") as trained:
        steps_in(0.1, walt(), batch, recipe)
    assert all(call.args[2].schedule.weights(0)["frames"] == 0.5 for call in trained.call_args_list)


def test_the_least_deviation() -> None:
    """An untrained autoencoder encodes to zeros, whose deviation nothing could be divided by."""
    vae = PrincipalAutoencoder(PrincipalAutoencoderConfig(latent_channels=4, widths=(8,), depths=(1,)))
    assert measure_latents(vae, [batch(0)]).std.tolist() == [0.0] * 4
    assert vae.latent_std.flatten().tolist() == pytest.approx([1e-4] * 4)
