"""Guidance: functions from denoisers to a denoiser. Shapes: those of the denoisers, ``(*lead, c)``.

They compose: a guided denoiser is a denoiser, and one that occurs several times is called once. Predictions are in the
space that the denoisers have; a guidance that is defined in another takes the ``Process`` and converts. Statistics are
those of each sample (:class:`PerSample`), so that packed sampling equals separate. Nothing is read on the host.
"""

from tubelet.diffusion.guidance.branches import batched, packed
from tubelet.diffusion.guidance.distillation import Distilled, distilled
from tubelet.diffusion.guidance.guided import Guided, Rule
from tubelet.diffusion.guidance.linear import autoguidance, cfg, cfg_excess, compose, skip_layer, two_conditions
from tubelet.diffusion.guidance.projection import Momentum, apg
from tubelet.diffusion.guidance.rescaling import rescale
from tubelet.diffusion.guidance.scales import Scale, interval
from tubelet.diffusion.guidance.select import only_channels, within
from tubelet.diffusion.guidance.skip import Skip, replaced, skipped
from tubelet.diffusion.guidance.spaces import in_space, restate
from tubelet.diffusion.guidance.statistics import PerSample
from tubelet.diffusion.guidance.threshold import dynamic_threshold
from tubelet.diffusion.guidance.zero_star import cfg_zero_star, zero_init

__all__ = [
    "Distilled",
    "Guided",
    "Momentum",
    "PerSample",
    "Rule",
    "Scale",
    "Skip",
    "apg",
    "autoguidance",
    "batched",
    "cfg",
    "cfg_excess",
    "cfg_zero_star",
    "compose",
    "distilled",
    "dynamic_threshold",
    "in_space",
    "interval",
    "only_channels",
    "packed",
    "replaced",
    "rescale",
    "restate",
    "skip_layer",
    "skipped",
    "two_conditions",
    "within",
    "zero_init",
]
