"""A conformance kit: does *your* pattern, backend, block, path, autoencoder or encoder plug in?

One check per protocol of :mod:`tubelet.protocols`. Each runs your object on small mixed batches and raises
``AssertionError`` saying what differs and by how much: above all that a packed sample equals the sample alone. Nothing
here needs a test framework. Shapes are those of the protocols: tokens ``(*lead, d)``, videos ``(b, c, t, h, w)``.
"""

from tubelet.testing.attention import check_backend
from tubelet.testing.blocks import check_block
from tubelet.testing.cases import Packing, known_faults, matrix_packings, matrix_patterns
from tubelet.testing.conformance import (
    ConformanceRow,
    conformance_document,
    conformance_rows,
    conformance_table,
)
from tubelet.testing.diffusion import check_denoiser, check_path, check_sampler_step, check_solver
from tubelet.testing.encoders import check_autoencoder, check_patchifier, check_text_encoder
from tubelet.testing.layers import check_modulation, check_positions
from tubelet.testing.mixtures import mixtures, same
from tubelet.testing.patterns import check_pattern

__all__ = [
    "ConformanceRow",
    "Packing",
    "check_autoencoder",
    "check_backend",
    "check_block",
    "check_denoiser",
    "check_modulation",
    "check_patchifier",
    "check_path",
    "check_pattern",
    "check_positions",
    "check_sampler_step",
    "check_solver",
    "check_text_encoder",
    "conformance_document",
    "conformance_rows",
    "conformance_table",
    "known_faults",
    "matrix_packings",
    "matrix_patterns",
    "mixtures",
    "same",
]
