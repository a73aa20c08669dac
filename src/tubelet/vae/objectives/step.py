"""One step of training an autoencoder, with or without discriminators; beside `tubelet.training.fit`.

The step depends on its arguments and on the state of the modules and optimisers alone: with these in a checkpoint, and
the generator and the batch as functions of the step, a run that was stopped goes on to the bit.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.objectives.adversary import frozen
from tubelet.vae.objectives.objective import Objective, Reconstruction
from tubelet.vae.objectives.schedule import LossSchedule

__all__ = ["reconstruct", "training_step"]


def reconstruct(
    vae: nn.Module, video: Float[Tensor, "b c t h w"], generator: torch.Generator | None = None
) -> Reconstruction:
    """Encode, draw latents from the posterior, decode.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig())
        >>> reconstruct(vae, torch.zeros(1, 1, 5, 16, 16)).decoded.shape
        torch.Size([1, 1, 5, 16, 16])
    """
    module: Any = vae
    posterior = module.encode(video)
    return Reconstruction(video, module.decode(posterior.sample(generator)), posterior)


def training_step(
    vae: nn.Module,
    objective: Objective,
    schedule: LossSchedule,
    video: Float[Tensor, "b c t h w"],
    step: int,
    *,
    optimizer: torch.optim.Optimizer,
    discriminators: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    max_norm: float = 1.0,
    through: Callable[[nn.Module, Tensor, torch.Generator | None], Reconstruction] = reconstruct,
) -> dict[str, Tensor]:
    """Update the autoencoder, then the discriminators, which judge the same frames.

    Args:
        vae: in training mode; its children that the schedule freezes get no gradients.
        objective: the losses.
        schedule: their weights.
        video: the batch; images are clips of one frame.
        step: counted from 0.
        optimizer: of the autoencoder's parameters.
        discriminators: of ``objective.adversaries``' parameters; needed from where the schedule names one on.
        generator: of latents and of what terms draw, best :func:`tubelet.training.step_generator`.
        max_norm: the longest gradient of either side; longer ones are shortened.
        through: how a batch goes through the autoencoder, `reconstruct` or the like (in autocast, say).

    Returns:
        ``loss`` of the autoencoder and all numbers of the objective, without gradients.

    Raises:
        ValueError: already in the first step, if any phase names an unknown loss, counts no term, freezes what the
            autoencoder does not have, all of it, or what an adversary is balanced at, or has an adversary without an
            optimiser of discriminators.
        FloatingPointError: a number of the video, the loss or its gradient is not finite; no weight of that side moves.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, reconstruction_loss
        >>> from tubelet.vae.objectives import LossPhase
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig())
        >>> adam = torch.optim.Adam(vae.parameters())
        >>> objective = Objective({"l2": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=0.0)})
        >>> schedule = LossSchedule((LossPhase(0, {"l2": 1.0}),))
        >>> video = torch.zeros(1, 1, 5, 16, 16)
        >>> sorted(training_step(vae, objective, schedule, video, 0, optimizer=adam))
        ['l2', 'loss']
    """
    _check(vae, objective, schedule, discriminators)
    if not video.isfinite().all():
        raise FloatingPointError(f"the video of step {step} has numbers that are not finite")
    weights = schedule.weights(step)
    with frozen(*(vae.get_submodule(name) for name in schedule.frozen(step))):
        made = through(vae, video, generator)
        loss, numbers = objective.autoencoder_loss(made, weights, generator)
        _update(loss, optimizer, max_norm, f"loss of step {step}")
    numbers = {"loss": loss.detach(), **numbers}
    if discriminators is not None and any(name in weights for name in objective.adversaries):
        judging, found = objective.discriminator_loss(made, weights, generator)
        _update(judging, discriminators, max_norm, f"loss of the discriminators in step {step}")
        numbers |= found
    return numbers


def _check(
    vae: nn.Module, objective: Objective, schedule: LossSchedule, discriminators: torch.optim.Optimizer | None
) -> None:
    """Refuse now what would fail in a later phase."""
    children = {name for name, _ in vae.named_modules()}
    for phase in schedule.phases:
        objective.check(phase.weights)
        if missing := sorted(set(phase.frozen) - children):
            raise ValueError(f"frozen names {missing}, which {type(vae).__name__} does not have")
    _check_frozen(vae, objective, schedule)
    if discriminators is None and (players := sorted(schedule.names & objective.adversaries.keys())):
        raise ValueError(f"discriminators must be an optimiser, got None, but the schedule names {players}")


def _check_frozen(vae: nn.Module, objective: Objective, schedule: LossSchedule) -> None:
    """Each phase leaves something to learn, and weights to balance its adversaries at."""
    before: set[str] = set()
    for phase in schedule.phases:
        counted = {name for name, weight in phase.weights.items() if weight}
        playing = sorted((counted | before if phase.ramp else counted) & objective.adversaries.keys())
        before = counted
        if not phase.frozen:
            continue
        held = {id(p) for name in phase.frozen for p in vae.get_submodule(name).parameters()}
        if not any(p.requires_grad and id(p) not in held for p in vae.parameters()):
            raise ValueError(f"frozen={tuple(phase.frozen)} from step {phase.start} on leaves nothing to learn")
        if playing and any(id(p) in held for p in objective.balance_at):
            raise ValueError(
                f"frozen={tuple(phase.frozen)} from step {phase.start} on holds weights of balance_at, where {playing} "
                "are balanced"
            )


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, max_norm: float, name: str) -> None:
    """One step of the optimiser; parameters that the loss does not reach stay as they are."""
    optimizer.zero_grad()
    if not loss.isfinite():
        raise FloatingPointError(f"the {name} is {loss.item()}")
    loss.backward()  # type: ignore[no-untyped-call]
    if not (norm := nn.utils.clip_grad_norm_(_parameters(optimizer), max_norm)).isfinite():
        raise FloatingPointError(f"the gradient of the {name} has length {norm.item()}")
    optimizer.step()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
