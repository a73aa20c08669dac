"""Positions as functions of token coordinates: sinusoids, learned tables and rotary embeddings.

Everything takes coordinates ``(*lead, 3)`` = ``(t, h, w)``, as :class:`tubelet.layout.LayoutIndex` holds them, so dense
and packed tokens of any sizes are the same case; coordinates may be fractional. The functions are plain maths. The
modules also know text: a token with a frame index below 0 gets a zero vector, or the identity rotation.

- :func:`sincos_1d`, :func:`sincos_2d`, :func:`sincos_3d`, :class:`SinCos2d` and :class:`SinCos3d`: sinusoids to add;
- :class:`LearnedPositions`, :class:`LearnedGridPositions`, :class:`LearnedSpaceTimePositions`,
  :class:`LearnedTextPositions`: tables to add;
- :class:`Rope3d` and :func:`apply_rope`: rotations of queries and keys, in three layouts of which
  :func:`convert_rope` turns weights of one into those of another;
- :class:`MixedRope3d` and :class:`FractionalRope3d`: rotations that differ from head to head;
- :class:`Interpolation`, :class:`FirstPixel`, :class:`FrameRate`, :class:`AreaNormalised`, :class:`CentralFit`,
  :class:`Stretched` and :func:`ntk_theta`: other places and other frequencies than the index's.

Angles are computed in float64 (float32 where the device has none) and rounded once.
"""

from tubelet.positions.learned import (
    LearnedGridPositions,
    LearnedPositions,
    LearnedSpaceTimePositions,
    LearnedTextPositions,
)
from tubelet.positions.maps import (
    AreaNormalised,
    CentralFit,
    FirstPixel,
    FrameRate,
    Interpolation,
    Stretched,
    ntk_theta,
)
from tubelet.positions.per_head import FractionalRope3d, MixedRope3d
from tubelet.positions.rotary import Rope3d, Rotary, RotaryLayout, apply_rope, convert_rope, rope_angles, rope_axes
from tubelet.positions.sincos import SinCos2d, SinCos3d, sincos_1d, sincos_2d, sincos_3d
from tubelet.positions.yarn import Yarn

__all__ = [
    "AreaNormalised",
    "CentralFit",
    "FirstPixel",
    "FractionalRope3d",
    "FrameRate",
    "Interpolation",
    "LearnedGridPositions",
    "LearnedPositions",
    "LearnedSpaceTimePositions",
    "LearnedTextPositions",
    "MixedRope3d",
    "Rope3d",
    "Rotary",
    "RotaryLayout",
    "SinCos2d",
    "SinCos3d",
    "Stretched",
    "Yarn",
    "apply_rope",
    "convert_rope",
    "ntk_theta",
    "rope_angles",
    "rope_axes",
    "sincos_1d",
    "sincos_2d",
    "sincos_3d",
]
