"""Known frames behind an autoencoder: every task of :mod:`tubelet.diffusion.tasks` on videos of any sizes.

One mechanism serves them all. Latent cells whose pixels are all known are held at noise level 0, and the denoiser's
mask says so. Where only a part of a cell is known, as at frames between latent frames, the predicted latents are
decoded at each step, the known pixels are put in place, and the result is encoded again. The known pixels of the
finished video are the given ones, bit for bit.

Shapes: videos ``(c, T, H, W)`` in [-1, 1], latents ``(z, t, h, w)`` of unit variance.
"""

from tubelet.completion.cells import consistent, filled, known_latents
from tubelet.completion.complete import complete
from tubelet.completion.editing import edit, edit_inverted
from tubelet.completion.long import lengthen
from tubelet.completion.named import TASKS as TASKS
from tubelet.completion.named import task

__all__ = [
    "complete",
    "consistent",
    "edit",
    "edit_inverted",
    "filled",
    "known_latents",
    "lengthen",
    "task",
]
