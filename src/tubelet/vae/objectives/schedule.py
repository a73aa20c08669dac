"""Which losses count in which step: weights by name are a pure function of the step, so a resumed run needs no state.

A run is a few phases, such as pixels and divergence first, then a perceptual distance as well, then an adversary, and
at last the decoder alone. Each names all weights that hold from its first step on, and may move there along a line.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tubelet.vae.objectives.checks import check_all, check_count, check_number

__all__ = ["LossPhase", "LossSchedule"]


@dataclass(frozen=True)
class LossPhase:
    """The weights that hold from a step on.

    Args:
        start: the first step.
        weights: by the losses' names; a loss that is not named does not count.
        ramp: over how many steps weights move on a line from those before; at ``start`` they still have those before.
        frozen: names of the autoencoder's children that do not learn, such as ``("encoder",)``.

    Raises:
        ValueError: a start or ramp that is no whole number from 0 on, a weight that is negative or not finite, or a
            string of frozen names.

    Example:
        >>> LossPhase(0, {"l1": 1.0, "kl": 1e-6}).ramp
        0
    """

    start: int
    weights: Mapping[str, float]
    ramp: int = 0
    frozen: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        for name in ("start", "ramp"):
            check_count(name, getattr(self, name), 0)
        if isinstance(self.frozen, str) or not all(isinstance(name, str) for name in self.frozen):
            raise ValueError(f"frozen must be a sequence of names such as ('encoder',), got {self.frozen!r}")
        for name, weight in self.weights.items():
            check_number(f"the weight of {name}", weight)


@dataclass(frozen=True)
class LossSchedule:
    """Phases in order, the first from step 0 on.

    Raises:
        ValueError: no phases or something else, a first one that starts later or has a ramp, one that starts before a
            ramp has ended.

    Example:
        >>> schedule = LossSchedule((
        ...     LossPhase(0, {"l1": 1.0}),
        ...     LossPhase(100, {"l1": 1.0, "lpips": 0.5}, ramp=10),
        ...     LossPhase(200, {"l1": 1.0, "lpips": 0.5, "frames": 0.1}, frozen=("encoder",)),
        ... ))
        >>> schedule.weights(99), schedule.weights(105)
        ({'l1': 1.0}, {'l1': 1.0, 'lpips': 0.25})
        >>> schedule.frozen(199), schedule.frozen(200)
        ((), ('encoder',))
    """

    phases: Sequence[LossPhase]

    def __post_init__(self) -> None:
        check_all("phases", self.phases, LossPhase)
        if not self.phases or self.phases[0].start:
            raise ValueError(f"phases must begin at step 0, got starts {[phase.start for phase in self.phases]}")
        if self.phases[0].ramp:
            raise ValueError(f"the first phase has no weights to move from, but a ramp of {self.phases[0].ramp}")
        for before, after in pairwise(self.phases):
            if after.start < before.start + max(1, before.ramp):
                end = f"step {before.start} with a ramp of {before.ramp}"
                raise ValueError(f"a phase starts at step {after.start}, but the one before it at {end}")

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each loss that is named in this step."""
        index = self._index(step)
        phase, before = self.phases[index], self.phases[max(0, index - 1)].weights
        done = min(1.0, (step - phase.start) / phase.ramp) if phase.ramp else 1.0
        if done == 1:
            return dict(phase.weights)
        names = dict.fromkeys([*before, *phase.weights])
        ends = {name: (before.get(name, 0.0), phase.weights.get(name, 0.0)) for name in names}
        return {name: first + done * (last - first) for name, (first, last) in ends.items()}

    def frozen(self, step: int) -> tuple[str, ...]:
        """Names of the autoencoder's children that do not learn in this step."""
        return tuple(self.phases[self._index(step)].frozen)

    @property
    def names(self) -> frozenset[str]:
        """Every loss that is named in some phase."""
        return frozenset(name for phase in self.phases for name in phase.weights)

    def _index(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        return bisect_right([phase.start for phase in self.phases], step) - 1
