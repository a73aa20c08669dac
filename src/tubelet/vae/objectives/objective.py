"""The two losses of a training step of an autoencoder: its own, and that of its discriminators.

    autoencoder:     Σ weight · term  +  Σ weight · balance · fooling(adversary)
    discriminators:  Σ judging(adversary)

Terms and adversaries are injected under names; weights by name come from outside, step by step (`LossSchedule`). What
has no weight is not computed. The balance is VQGAN's adaptive weight (arXiv:2012.09841, eq. 7).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.objectives.adversarial import adaptive_weight
from tubelet.vae.objectives.adversary import Adversary
from tubelet.vae.objectives.checks import check_all, check_names

__all__ = ["Objective", "Reconstruction", "Term"]


class Reconstruction(NamedTuple):
    """A batch that went through an autoencoder.

    Attributes:
        video: the original, in [-1, 1]; an image has one frame.
        decoded: what came out.
        posterior: what the encoder said of the latents.

    Example:
        >>> x = torch.zeros(1, 1, 1, 8, 8)
        >>> Reconstruction(x, x, None).posterior is None
        True
    """

    video: Float[Tensor, "b c t h w"]
    decoded: Float[Tensor, "b c t h w"]
    posterior: Any


Term = Callable[[Reconstruction, torch.Generator | None], Tensor]
"""A loss of a reconstruction, one number. Example: ``lambda made, generator: kl_loss(made.posterior)``."""


class Objective:
    """Losses by name, and the adversaries among them.

    Args:
        terms: by name, of a :class:`Reconstruction` and the generator of what they draw.
        adversaries: by other names.
        balance_at: weights of the decoder's last layer. There the gradients of the terms and of an adversary are made
            equally long before the weight of the adversary counts; empty: its weight counts as it is.

    Attributes:
        adversaries: a ``nn.ModuleDict``, for an optimiser and a checkpoint.

    Raises:
        ValueError: no term, a name that is a term's and an adversary's, has a dot or is ``loss``, an adversary that is
            no `Adversary`, or something else than weights in ``balance_at``.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, kl_loss, reconstruction_loss
        >>> from tubelet.vae.objectives import PatchDiscriminator
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig())
        >>> last = vae.decoder.ungroups
        >>> objective = Objective(
        ...     {
        ...         "l1": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=1.0),
        ...         "kl": lambda made, _: kl_loss(made.posterior),
        ...     },
        ...     {"frames": Adversary(PatchDiscriminator(1, 8, n_layers=1))},
        ...     balance_at=(last.first.weight, last.rest.weight),
        ... )
        >>> video = torch.rand(1, 1, 5, 16, 16) * 2 - 1
        >>> posterior = vae.encode(video)
        >>> made = Reconstruction(video, vae.decode(posterior.sample()), posterior)
        >>> weights = {"l1": 1.0, "kl": 1e-6, "frames": 0.5}
        >>> loss, numbers = objective.autoencoder_loss(made, weights)
        >>> sorted(numbers)
        ['frames', 'frames.balance', 'kl', 'l1']
        >>> loss, numbers = objective.discriminator_loss(made, weights)
        >>> sorted(numbers)
        ['frames.fake', 'frames.game', 'frames.real']
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        adversaries: Mapping[str, Adversary] | None = None,
        *,
        balance_at: Sequence[Tensor] = (),
    ) -> None:
        self.terms, self.balance_at = dict(terms), tuple(balance_at)
        players = dict(adversaries or {})
        for kind, named in (("terms", self.terms), ("adversaries", players)):
            check_names(kind, named, ("loss",))
        if not self.terms:
            raise ValueError(f"terms must have at least one, got {terms!r}")
        if strangers := {name: type(other).__name__ for name, other in players.items() if not _plays(other)}:
            raise ValueError(f"adversaries must be of Adversary, got {strangers}")
        check_all("balance_at", balance_at, Tensor)
        self.adversaries = nn.ModuleDict(players)
        if shared := sorted(self.terms.keys() & self.adversaries.keys()):
            raise ValueError(f"names must be of a term or of an adversary, but {shared} are of both")

    def check(self, weights: Mapping[str, float]) -> None:
        """Refuse weights that make no loss.

        Raises:
            ValueError: weights of unknown names, or of no term, or of an adversary that is balanced at weights without
                gradients.
        """
        self._check_names(weights)
        playing = [name for name in self.adversaries if weights.get(name)]
        if playing and (still := [tuple(p.shape) for p in self.balance_at if not p.requires_grad]):
            raise ValueError(f"balance_at, for {playing}, has weights without gradients, of shapes {still}")
        if not any(weights.get(name) for name in self.terms):
            raise ValueError(f"weights must count one of the terms {list(self.terms)}, got {dict(weights)}")

    def autoencoder_loss(
        self, made: Reconstruction, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of the autoencoder; discriminators get no gradients of it.

        Args:
            made: with gradients in ``decoded`` and ``posterior``.
            weights: by name; a name that is missing or has weight 0 is not computed.
            generator: for terms and adversaries that draw.

        Returns:
            The loss, and its parts without weights or gradients; of an adversary its ``NAME.balance`` too.

        Raises:
            ValueError: as in `check`.
        """
        self.check(weights)
        parts = {name: term(made, generator) for name, term in self.terms.items() if weights.get(name)}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        numbers = {name: part.detach() for name, part in parts.items()}
        pull = self._gradients(loss) if any(weights.get(name) for name in self.adversaries) else []
        for name, adversary in self._playing(weights).items():
            if weights[name]:
                fooling = adversary.fooling(made.decoded, generator)
                balance = adaptive_weight(pull, self._gradients(fooling)) if pull else torch.ones_like(fooling)
                loss = loss + weights[name] * balance * fooling
                numbers |= {name: fooling.detach(), f"{name}.balance": balance.detach()}
        return loss, numbers

    def discriminator_loss(
        self, made: Reconstruction, weights: Mapping[str, float], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of all discriminators that ``weights`` names; the autoencoder gets no gradients of it.

        A discriminator of weight 0 learns too, so that it can be ready before it counts. The weights do not scale its
        loss.

        Returns:
            The sum of their losses, and numbers of each, as ``NAME.real`` and so on (`Adversary.judging`).

        Raises:
            ValueError: weights of unknown names.
        """
        self._check_names(weights)
        loss = made.video.new_zeros(())
        numbers: dict[str, Tensor] = {}
        for name, adversary in self._playing(weights).items():
            judging, found = adversary.judging(made.video, made.decoded, generator)
            loss = loss + judging
            numbers |= {f"{name}.{key}": value for key, value in found.items()}
        return loss, numbers

    def _check_names(self, weights: Mapping[str, float]) -> None:
        known = [*self.terms, *self.adversaries]
        if unknown := sorted(set(weights) - set(known)):
            raise ValueError(f"weights name {unknown}, but the objective has {known}")

    def _playing(self, weights: Mapping[str, float]) -> dict[str, Any]:
        return {name: adversary for name, adversary in self.adversaries.items() if name in weights}

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        """At the last layer; zero where the loss does not depend on a weight."""
        if not self.balance_at:
            return []
        found = torch.autograd.grad(loss, self.balance_at, retain_graph=True, allow_unused=True, materialize_grads=True)
        return list(found)


def _plays(adversary: Any) -> bool:
    """Whether it has both halves of an `Adversary`."""
    return isinstance(adversary, nn.Module) and all(hasattr(adversary, half) for half in ("fooling", "judging"))
