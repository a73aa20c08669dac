"""One step and a run of them: both sides learn, parts freeze, and a resumed run equals one that was never stopped."""

import io
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tubelet.training import Checkpoint, History, Progress, batch_indices, fit, interleave, step_generator
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, kl_loss, reconstruction_loss
from tubelet.vae.objectives import (
    R1,
    Adversary,
    LeCam,
    LossPhase,
    LossSchedule,
    Objective,
    PatchDiscriminator,
    Reconstruction,
    draw_window,
    perceptual_loss,
    reconstruct,
    training_step,
)
from tubelet.vae.quantise import CodeBottleneck, VectorQuantiser, commitment_loss

SCHEDULE = LossSchedule(
    (
        LossPhase(0, {"l1": 1.0, "kl": 1e-4}),
        LossPhase(2, {"l1": 1.0, "kl": 1e-4, "near": 0.5, "frames": 0.0, "clips": 0.3}, ramp=2),
        LossPhase(5, {"l1": 1.0, "near": 0.5, "frames": 0.2, "clips": 0.3}, frozen=("encoder",)),
    )
)


class Run:
    """A tiny autoencoder with both kinds of discriminator, batch norms included, and its optimisers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=2, widths=(4, 8), depths=(1, 1)))
        last = self.vae.decoder.ungroups
        self.objective = Objective(
            {
                "l1": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=1.0),
                "kl": lambda made, _: kl_loss(made.posterior),
                "near": lambda made, g: perceptual_loss(_blurred, made.decoded, made.video, frames=2, generator=g),
            },
            {
                "frames": Adversary(PatchDiscriminator(1, 4, 1), penalties={"lecam": LeCam(0.1)}),
                "clips": Adversary(
                    PatchDiscriminator(1, 4, 1, kernel=(3, 4, 4), norm=lambda n: nn.GroupNorm(2, n)),
                    penalties={"r1": R1(1.0)},
                    draw=partial(draw_window, 3),
                ),
            },
            balance_at=(last.first.weight, last.rest.weight),
        )
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), 3e-3)
        self.discriminators = torch.optim.Adam(self.objective.adversaries.parameters(), 1e-3, betas=(0.5, 0.9))
        self.history = History()

    def step(self, step: int) -> dict[str, Tensor]:
        source, turn = interleave(7, step, (1, 2))
        videos = torch.rand(5, 1, (1, 5)[source], 16, 16, generator=torch.Generator().manual_seed(source)) * 2 - 1
        return training_step(
            self.vae,
            self.objective,
            SCHEDULE,
            videos[batch_indices(7, turn, 2, 5)],
            step,
            optimizer=self.optimizer,
            discriminators=self.discriminators,
            generator=step_generator(7, step, stream=7),
        )

    def train(self, steps: int, file: Path | None = None, stop: int | None = None) -> None:
        parts = {"vae": self.vae, "adversaries": self.objective.adversaries, "history": self.history}
        run = Checkpoint(file or "unused", **parts, optimizer=self.optimizer, discriminators=self.discriminators)
        start = run.restore() if file else 0
        quiet = Progress(steps, start=start, stream=io.StringIO())
        save = run.save if file else None
        fit(self.step, stop or steps, start=start, save=save, history=self.history, progress=quiet)


def _blurred(x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.avg_pool3d(x - y, (1, 4, 4)).square().mean((1, 2, 3, 4))


@pytest.mark.parametrize("stop", [3, 6])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(stop: int, tmp_path: Path) -> None:
    whole, file = Run(), tmp_path / "run.safetensors"
    whole.train(8)
    Run().train(8, file, stop)
    torch.manual_seed(99)  # a new process has other global randomness
    resumed = Run()
    for parameter in (*resumed.vae.parameters(), *resumed.objective.adversaries.parameters()):
        nn.init.normal_(parameter)
    resumed.train(8, file)
    assert resumed.history.values == whole.history.values
    for ours, theirs in ((resumed.vae, whole.vae), (resumed.objective.adversaries, whole.objective.adversaries)):
        states = ours.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_each_phase_has_its_numbers() -> None:
    run = Run()
    numbers = [set(run.step(step)) for step in range(6)]
    judged = {f"{name}.{key}" for name in ("frames", "clips") for key in ("real", "fake", "game")}
    judged |= {"frames.lecam", "clips.r1"}
    both = {"clips", "clips.balance"}
    assert numbers[0] == numbers[1] == {"loss", "l1", "kl"}
    assert numbers[2] == {"loss", "l1", "kl"} | judged
    assert numbers[4] == {"loss", "l1", "kl", "near"} | judged | both
    assert numbers[5] == {"loss", "l1", "near"} | judged | both | {"frames", "frames.balance"}


def test_a_frozen_encoder_stays_and_the_rest_learns() -> None:
    run = Run()
    for step in range(5):
        run.step(step)
    before = {name: p.clone() for name, p in run.vae.named_parameters()}
    for step in range(5, 9):
        run.step(step)
    moved = {name for name, p in run.vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}
    assert all(p.requires_grad for p in run.vae.parameters())


def test_discriminators_learn_to_tell() -> None:
    """With the autoencoder at rest, real and fake scores part."""
    run = Run()
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    numbers = [run.step(step) for step in range(2, 20)]
    first, last = ([n["clips.real"] - n["clips.fake"] for n in part] for part in (numbers[:5], numbers[-5:]))
    assert sum(last) / 5 > sum(first) / 5 + 0.5


def test_what_would_fail_in_a_later_phase_fails_at_once() -> None:
    run = Run()
    discriminators, run.discriminators = run.discriminators, None
    with pytest.raises(ValueError, match=r"discriminators must be an optimiser, got None, .*\['clips', 'frames'\]"):
        run.step(0)
    last = [
        (LossPhase(9, {"l1": 1.0, "l7": 1.0}), r"weights name \['l7'\]"),
        (LossPhase(9, {"frames": 1.0}), r"weights must count one of the terms .* got \{'frames': 1.0\}"),
        (LossPhase(9, {"l1": 1.0}, frozen=("coder",)), r"frozen names \['coder'\], which CausalAutoencoder"),
    ]
    for phase, message in last:
        schedule = LossSchedule((*SCHEDULE.phases, phase))
        with pytest.raises(ValueError, match=message):
            training_step(
                run.vae,
                run.objective,
                schedule,
                torch.zeros(1, 1, 1, 16, 16),
                0,
                optimizer=run.optimizer,
                discriminators=discriminators,
            )


def test_codes_are_trained_with_losses_of_their_own() -> None:
    """A quantiser in the place of the posterior, in autocast, with moving averages and straight-through gradients."""
    torch.manual_seed(0)
    sizes = CausalAutoencoderConfig(latent_channels=4, widths=(4, 8), depths=(1, 1))
    vae = CausalAutoencoder(sizes, posterior=CodeBottleneck(VectorQuantiser(8, 4)))
    objective = Objective(
        {
            "l2": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=0.0),
            "near": lambda made, _: commitment_loss(made.posterior.latents, made.posterior.codes),
        }
    )
    schedule = LossSchedule((LossPhase(0, {"l2": 1.0, "near": 0.25}),))
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    video = torch.rand(2, 1, 5, 16, 16) * 0.2 + torch.tensor([-0.7, 0.7]).reshape(2, 1, 1, 1, 1)

    def through(model: nn.Module, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        with torch.autocast("cpu", torch.bfloat16):
            made = reconstruct(model, x, generator)
        return made._replace(decoded=made.decoded.float())

    numbers = [
        training_step(vae, objective, schedule, video, s, optimizer=optimizer, through=through) for s in range(40)
    ]
    assert numbers[-1]["l2"] < 0.5 * numbers[0]["l2"]
    assert all(p.grad is not None for p in vae.parameters())


def _grainy(seed: int, count: int) -> Tensor:
    """Images of soft hills under grain that no code of 2 numbers for 64 pixels can keep."""
    generator = torch.Generator().manual_seed(seed)
    hills = nn.functional.interpolate(torch.rand(count, 1, 4, 4, generator=generator), size=(32, 32), mode="bilinear")
    grain = torch.randn(count, 1, 32, 32, generator=generator)
    return (hills - 0.5 + 0.4 * grain).clamp(-1, 1)[:, :, None]


def _roughness(video: Tensor) -> float:
    """The mean square of the mixed second difference along both sides: the energy of the highest frequencies."""
    return video.diff(dim=3).diff(dim=4).square().mean().item()


@pytest.mark.slow
def test_an_adversary_brings_back_the_high_frequencies() -> None:
    """L1 alone gives smooth pictures; with a discriminator they are as rough as the originals, at a larger L1."""
    roughness, errors = {}, {}
    originals = _grainy(10**6, 32)
    for name, weight in (("l1", {}), ("adversarial", {"frames": 2.0})):
        torch.manual_seed(0)
        vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=2, widths=(16, 32), depths=(1, 1)))
        objective = Objective(
            {
                "l1": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=1.0),
                "kl": lambda made, _: kl_loss(made.posterior),
            },
            {"frames": Adversary(PatchDiscriminator(1, 16, 1))},
            balance_at=(vae.decoder.ungroups.first.weight,),
        )
        terms = {"l1": 1.0, "kl": 1e-3}
        schedule = LossSchedule((LossPhase(0, terms), LossPhase(80, terms | weight)))
        sides = {
            "optimizer": torch.optim.Adam(vae.parameters(), 3e-3),
            "discriminators": torch.optim.Adam(objective.adversaries.parameters(), 1e-3, betas=(0.5, 0.9)),
        }
        for step in range(240):
            generator = step_generator(0, step)
            training_step(vae, objective, schedule, _grainy(step, 8), step, generator=generator, **sides)
        with torch.no_grad():
            decoded = vae(originals)
        roughness[name] = _roughness(decoded) / _roughness(originals)
        errors[name] = (decoded - originals).abs().mean().item()
    assert roughness["l1"] < 0.02
    assert 1 / 3 < roughness["adversarial"] < 3
    assert errors["l1"] < errors["adversarial"]


def test_long_gradients_are_shortened() -> None:
    run = Run()
    run.optimizer, run.discriminators = (
        torch.optim.SGD(side.parameters(), 1.0) for side in (run.vae, run.objective.adversaries)
    )
    for side, norm in ((run.vae, 1e-3), (run.objective.adversaries, 1e-3)):
        before = nn.utils.parameters_to_vector(side.parameters()).clone()
        training_step(
            run.vae,
            run.objective,
            SCHEDULE,
            torch.rand(1, 1, 5, 16, 16),
            4,
            optimizer=run.optimizer,
            discriminators=run.discriminators,
            max_norm=norm,
        )
        moved = (nn.utils.parameters_to_vector(side.parameters()) - before).norm().item()
        assert 0.5 * norm < moved < 1.001 * norm


def test_frozen_parts_that_cannot_be_are_refused_at_once() -> None:
    run = Run()
    ends = [
        (
            LossPhase(9, {"l1": 1.0, "frames": 0.1}, frozen=("decoder",)),
            r"\('decoder',\) from step 9 .* balance_at.*frames",
        ),
        (
            LossPhase(9, {"l1": 1.0}, ramp=2, frozen=("decoder",)),
            r"balance_at, where \['clips', 'frames'\] are balanced",
        ),
        (LossPhase(9, {"l1": 1.0}, frozen=("encoder", "decoder")), r"from step 9 on leaves nothing to learn"),
    ]
    for phase, message in ends:
        schedule = mock.patch(f"{__name__}.SCHEDULE", LossSchedule((*SCHEDULE.phases, phase)))
        with schedule, pytest.raises(ValueError, match=message):
            run.step(0)
    fine = LossSchedule((*SCHEDULE.phases, LossPhase(9, {"l1": 1.0}, frozen=("decoder",))))
    with mock.patch(f"{__name__}.SCHEDULE", fine):
        run.step(0)
        run.step(9)
    with pytest.raises(ValueError, match=r"frozen must be a sequence of names such as \('encoder',\), got 'encoder'"):
        LossPhase(0, {"l1": 1.0}, frozen="encoder")


def test_what_is_not_finite_moves_no_weight() -> None:
    run, schedule = Run(), LossSchedule((LossPhase(0, {"l1": 1.0}),))
    before = {name: p.clone() for name, p in run.vae.named_parameters()}
    video = torch.zeros(1, 1, 1, 16, 16)

    def step(video: Tensor, objective: Objective) -> None:
        training_step(run.vae, objective, schedule, video, 4, optimizer=run.optimizer)

    with pytest.raises(FloatingPointError, match="the video of step 4 has numbers that are not finite"):
        step(torch.full_like(video, torch.nan), run.objective)
    with pytest.raises(FloatingPointError, match="the loss of step 4 is inf"):
        step(video, Objective({"l1": lambda made, _: made.decoded.sum() * 0 + torch.inf}))
    with pytest.raises(FloatingPointError, match="the gradient of the loss of step 4 has length nan"):
        step(video, Objective({"l1": lambda made, _: (made.decoded * 0).abs().sqrt().mean()}))
    assert all(torch.equal(p, before[name]) for name, p in run.vae.named_parameters())
