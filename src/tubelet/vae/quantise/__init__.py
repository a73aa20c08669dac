"""Quantisers: latents to codes of a finite set and their numbers, and back.

A quantiser acts on the last axis of ``(*n, z)``, packed tokens or positions of a grid alike; `CodeBottleneck` puts one
into an autoencoder, where it takes the place of the Gaussian posterior. Gradients pass a quantiser straight through.
"""

from tubelet.vae.quantise.bottleneck import CodeBottleneck, Codes
from tubelet.vae.quantise.code import Quantised, Quantiser
from tubelet.vae.quantise.lookup_free import LookupFree
from tubelet.vae.quantise.losses import commitment_loss, entropy_loss
from tubelet.vae.quantise.residual import ResidualScalar
from tubelet.vae.quantise.scalar import FiniteScalar
from tubelet.vae.quantise.statistics import CodeStatistics
from tubelet.vae.quantise.vector import VectorQuantiser

__all__ = [
    "CodeBottleneck",
    "CodeStatistics",
    "Codes",
    "FiniteScalar",
    "LookupFree",
    "Quantised",
    "Quantiser",
    "ResidualScalar",
    "VectorQuantiser",
    "commitment_loss",
    "entropy_loss",
]
