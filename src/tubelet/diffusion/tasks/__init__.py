"""Tasks: small functions from clips to what is known of a video, or to the state that sampling starts from.

The clips are pixels or latents ``(c, t, h, w)``; a task says where they stand in a longer or larger video and gives a
:class:`~tubelet.diffusion.Known`, one token a cell, which :func:`~tubelet.diffusion.fold_known` packs. Nothing here
knows a model. :mod:`tubelet.completion` does these tasks behind an autoencoder.

- text to video: :func:`nothing`;
- image to video, extension forward: :func:`extend`; by channels beside the latents: :func:`image_channels`;
- extension backward: :func:`prepend`;
- connecting two clips: :func:`connect`;
- seamless loop: :func:`loop`;
- in-painting and completion in space and time: :func:`inpaint`, :func:`outpaint`;
- frame interpolation, temporal super-resolution: :func:`interpolate`, :func:`upsample`;
- video to video: nothing: :func:`edit_times` and :func:`edit_start` begin between data and noise; :func:`invert`;
- long video: :func:`rollout` and :func:`causal_rollout` do one part after another.
"""

from tubelet.diffusion.tasks.channels import image_channels
from tubelet.diffusion.tasks.connection import connect
from tubelet.diffusion.tasks.editing import edit_start, edit_times, invert
from tubelet.diffusion.tasks.extension import extend, nothing, prepend
from tubelet.diffusion.tasks.inpainting import inpaint, outpaint
from tubelet.diffusion.tasks.interpolation import interpolate, upsample
from tubelet.diffusion.tasks.looping import loop
from tubelet.diffusion.tasks.placing import place
from tubelet.diffusion.tasks.rollouts import CausalDenoiser, causal_rollout, rollout

__all__ = [
    "CausalDenoiser",
    "causal_rollout",
    "connect",
    "edit_start",
    "edit_times",
    "extend",
    "image_channels",
    "inpaint",
    "interpolate",
    "invert",
    "loop",
    "nothing",
    "outpaint",
    "place",
    "prepend",
    "rollout",
    "upsample",
]
