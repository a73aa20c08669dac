"""Configs are validated once and presets have the sizes they state."""

import dataclasses
from typing import Any

import pytest

from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, digits


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive whole number, not 0"),
        ({"latent_channels": -1}, "latent_channels must be a positive whole number, not -1"),
        ({"temporal": 0}, "temporal must be a positive whole number, not 0"),
        ({"temporal": 2.5}, "temporal must be a positive whole number, not 2.5"),
        ({"widths": (8.5, 8)}, "widths"),
        ({"depths": (1, -1)}, "depths"),
        ({"decoder_depths": ()}, "depths"),
        ({"spatial": 0}, "spatial must be a positive whole number, not 0"),
        ({"widths": (8, 8, 8)}, r"widths \(8, 8, 8\) and depths \(2, 2\)"),
        ({"widths": (8, 0)}, r"widths \(8, 0\)"),
        ({"depths": (1, -1)}, r"depths \(1, -1\)"),
        ({"decoder_depths": (1, -1)}, r"depths \(1, -1\)"),
        ({"decoder_widths": (8, 8, 8)}, r"widths \(8, 8, 8\) and depths \(2, 2\)"),
        ({"decoder_widths": (8,), "decoder_depths": (1,)}, r"decoder_widths \(8,\) must have as many scales"),
        ({"widths": (), "depths": ()}, r"widths \(\)"),
        ({"spatial": 6, "widths": (8, 8, 8), "depths": (1, 1, 1)}, "spatial 6 must be divisible by 4 for 3 scales"),
    ],
)
def test_bad_sizes_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalAutoencoderConfig(**wrong)


def test_config_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits().spatial = 4  # type: ignore[misc]
    assert digits() == digits()
    assert hash(digits()) == hash(digits())


def test_digits_fits_the_shipped_checkpoint() -> None:
    vae = CausalAutoencoder(digits(), device="meta")
    assert sum(p.numel() for p in vae.parameters()) <= 1_200_000
    assert vae.config.patch == 4
