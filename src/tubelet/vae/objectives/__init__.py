"""What video autoencoders are trained on: terms by name, discriminators of patches, a schedule, and one step.

- :class:`Objective` joins injected terms and adversaries to the loss of the autoencoder and that of the discriminators;
- :class:`PatchDiscriminator` judges frames or clips; an :class:`Adversary` is one with its game and its penalties;
- :func:`perceptual_loss` asks :class:`tubelet.metrics.LPIPS` or another distance about a few frames of each clip;
- :class:`LossSchedule` says which losses count in which step;
- :func:`training_step` does one step with both optimisers.

Videos are ``(b, c, t, h, w)`` in [-1, 1]; an image is a clip of one frame. :func:`tubelet.training.interleave` mixes
images and clips.
"""

from tubelet.vae.objectives.adversarial import (
    HINGE,
    NON_SATURATING,
    AdversarialLoss,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_discriminator_loss,
    non_saturating_loss,
    r1_penalty,
)
from tubelet.vae.objectives.adversary import R1, Adversary, Judged, LeCam, frozen
from tubelet.vae.objectives.discriminators import PatchDiscriminator
from tubelet.vae.objectives.drawing import Draw, draw_frames, draw_window, take_frames
from tubelet.vae.objectives.objective import Objective, Reconstruction, Term
from tubelet.vae.objectives.perceptual import perceptual_loss
from tubelet.vae.objectives.schedule import LossPhase, LossSchedule
from tubelet.vae.objectives.step import reconstruct, training_step

__all__ = [
    "HINGE",
    "NON_SATURATING",
    "R1",
    "AdversarialLoss",
    "Adversary",
    "Draw",
    "Judged",
    "LeCam",
    "LossPhase",
    "LossSchedule",
    "Objective",
    "PatchDiscriminator",
    "Reconstruction",
    "Term",
    "adaptive_weight",
    "draw_frames",
    "draw_window",
    "frozen",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "logistic_discriminator_loss",
    "non_saturating_loss",
    "perceptual_loss",
    "r1_penalty",
    "reconstruct",
    "take_frames",
    "training_step",
]
