"""One step and a run of them: both sides learn, parts freeze, and a resumed run equals one that was never stopped."""

import io
from pathlib import Path

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
    perceptual_loss,
    training_step,
)

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


def test_adversaries_need_an_optimiser() -> None:
    run = Run()
    run.discriminators = None
    run.step(0)
    with pytest.raises(ValueError, match="discriminators must be an optimiser .* got None and .*'frames': 0.0"):
        run.step(2)


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
