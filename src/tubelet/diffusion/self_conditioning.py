"""Self-conditioning: the network is shown its own last estimate of the data (Chen et al., 2023, arXiv:2208.04202).

A network here is called as ``network(x, t, estimate)``; without an estimate it is shown zeros. W.A.L.T puts it beside
the noisy latents as channels, in 90 % of its training steps. Shapes: patches ``(*lead, c)``.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.predictions import level
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.loop import one_step
from tubelet.layout import Rows
from tubelet.protocols import SamplerStep

__all__ = ["SelfConditioned", "SelfConditionedNetwork", "self_conditioned"]


@runtime_checkable
class SelfConditionedNetwork(Protocol):
    """A denoiser with one input more.

    Example:
        >>> isinstance(lambda x, t, estimate: x - estimate, SelfConditionedNetwork)
        True
    """

    def __call__(
        self, x: Float[Tensor, "*lead c"], t: Rows, estimate: Float[Tensor, "*lead c"]
    ) -> Float[Tensor, "*lead c"]:
        """The prediction at state ``x``, given an estimate of the data or zeros."""
        ...


def self_conditioned(
    network: SelfConditionedNetwork, process: Process, x: Float[Tensor, "*lead c"], t: Rows, chosen: Rows
) -> Float[Tensor, "*lead c"]:
    """The prediction of a training step: where ``chosen``, given the estimate of a first call without gradients.

    Args:
        network: called twice.
        process: what a prediction means.
        x: the state at ``t``.
        t: noise levels.
        chosen: booleans, one a sample: ``layout.rows(torch.rand(samples) < 0.9, "sample")``.

    Raises:
        ValueError: ``chosen`` does not hold booleans.

    Example:
        >>> both = Rows(torch.tensor([True, False]))
        >>> network = lambda x, t, estimate: estimate + 1
        >>> t = Rows(torch.tensor([0.5]))
        >>> self_conditioned(network, Process(prediction="x0"), torch.zeros(2, 1, 1), t, both).flatten()
        tensor([2., 1.])
    """
    if chosen.values.dtype != torch.bool:
        raise ValueError(f"chosen must hold torch.bool, got {chosen.values.dtype}")
    blank = torch.zeros_like(x)
    with torch.no_grad():
        estimate, _ = process.split(network(x, t, blank), x, t)
    return network(x, t, torch.where(level(chosen, x), estimate.to(x.dtype), blank))


@dataclass(frozen=True)
class SelfConditioned:
    """A sampler's step with a network that is shown the estimate of the step before; at the first, zeros.

    The estimate is a value that the caller hands on, as the samplers that remember do. Where a step evaluates the
    network several times, all see the last step's estimate and the first gives the next.

    Args:
        inner: the step itself, a one-step method.

    Raises:
        ValueError: ``inner`` is none.

    Example:
        >>> from tubelet.diffusion import euler_step
        >>> process, x, estimate = Process(prediction="x0"), torch.ones(1, 1), None
        >>> for a, b in ((1.0, 0.5), (0.5, 0.0)):
        ...     t, s = Rows(torch.tensor([a])), Rows(torch.tensor([b]))
        ...     network = lambda x, t, estimate: estimate + 1
        ...     x, estimate = SelfConditioned(euler_step).step(network, x, t, s, process, estimate)
        >>> x, estimate
        (tensor([[2.]]), tensor([[2.]]))
    """

    inner: SamplerStep

    def __post_init__(self) -> None:
        one_step("inner", self.inner)

    def step(
        self,
        network: SelfConditionedNetwork,
        x: Float[Tensor, "*lead c"],
        t: Rows,
        s: Rows,
        process: Process,
        history: Float[Tensor, "*lead c"] | None = None,
    ) -> tuple[Float[Tensor, "*lead c"], Float[Tensor, "*lead c"]]:
        """The state at ``s``, and the estimate for the next step."""
        shown = torch.zeros_like(x) if history is None else history
        estimates: list[Tensor] = []

        def denoiser(x: Tensor, t: Rows) -> Tensor:
            prediction = network(x, t, shown)
            estimates.append(process.split(prediction, x, t)[0].to(x.dtype))
            return prediction

        return self.inner(denoiser, x, t, s, process), estimates[0]
