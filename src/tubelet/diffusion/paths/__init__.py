"""Paths from data to noise: the factors alpha(t), sigma(t) of ``x_t = alpha·x0 + sigma·eps`` and their derivatives.

Time is ``t`` in [0, 1]; 0 is data (alpha 1, sigma 0), 1 is noise. Any shape of ``t`` is accepted and kept.

- :class:`RectifiedFlow`: ``alpha = 1 - t``, ``sigma = t`` (Liu et al., 2022, arXiv:2209.03003).
- :class:`VP`: variance preserving, ``alpha² + sigma² = 1``, from a discrete table of ``alpha²`` as in DDPM (Ho et al.,
  2020, arXiv:2006.11239, equation 4).
- :class:`VPSDE`: variance preserving in continuous time (Song et al., 2021, arXiv:2011.13456, equation 33).
- :class:`EDM` and :class:`VESDE`: ``alpha = 1``, noise that grows linearly or geometrically (Karras et al., 2022,
  arXiv:2206.00364; arXiv:2011.13456, equations 29 and 30).
- :class:`Normalized`: any path scaled to ``alpha² + sigma² = 1``; Cosmos 1's is that of rectified flow.
"""

from tubelet.diffusion.paths.edm import EDM, VESDE
from tubelet.diffusion.paths.flow import RectifiedFlow
from tubelet.diffusion.paths.normalized import Normalized
from tubelet.diffusion.paths.sde import VPSDE
from tubelet.diffusion.paths.vp import VP

__all__ = ["EDM", "VESDE", "VP", "VPSDE", "Normalized", "RectifiedFlow"]
