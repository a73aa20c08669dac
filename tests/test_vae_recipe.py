"""Training an autoencoder on crops: an exact resume, averages, statistics and scores against their definitions."""

import math

import pytest
import torch

from tubelet.metrics import LPIPS, psnr
from tubelet.training import Interrupted, Progress
from tubelet.vae import bicubic_code
from tubelet.vae.families import (
    PrincipalAutoencoder,
    PrincipalAutoencoderConfig,
    WaltAutoencoder,
    WaltAutoencoderConfig,
    start_from,
)
from tubelet.vae_recipe import AutoencoderRecipe, compare, measure_latents, steps_in, train_on_crops


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
