"""Configs that make no model are refused when they are made, by the name of the field."""

import math
from typing import Any

import pytest

from tubelet import models

SIZES: dict[str, Any] = {"dim": 24, "depth": 1, "heads": 2}
FLUX = SIZES | {"single_depth": 1, "rope_axes": (4, 4, 4)}
NAMED: dict[str, dict[str, Any]] = {
    "AllegroConfig": SIZES,
    "CogVideoXConfig": SIZES | {"dim": 32},
    "CosmosConfig": SIZES,
    "HunyuanVideoConfig": FLUX,
    "MochiConfig": SIZES | {"text_width": 8},
    "OpenSoraConfig": FLUX,
    "UViTConfig": SIZES | {"depth": 2, "mlp_dim": 8, "grid": (1, 4, 4)},
    "WaltConfig": SIZES | {"mlp_dim": 8},
    "WanConfig": SIZES | {"mlp_dim": 8},
}
PATCHES = [(1.0, 2.0, 2.0), (1, math.nan, 2), (1, 2), [1, 2, 2], (1, True, 2), 2, None]
WRONG: list[tuple[str, str, Any]] = [
    *((name, "patch", patch) for name in NAMED for patch in PATCHES),
    *((name, "mlp_ratio", ratio) for name in ("HunyuanVideoConfig", "OpenSoraConfig") for ratio in (0.01, math.inf)),
    *(("HunyuanVideoConfig", "rope_axes", axes) for axes in ((4, 8), (3, 5, 4), (-2, 10, 4), (4.0, 4.0, 4.0))),
    ("OpenSoraConfig", "rope_axes", (3, 5, 4)),
    ("OpenSoraConfig", "rope_layout", "foo"),
    ("OpenSoraConfig", "qkv_bias", None),
    ("CosmosConfig", "known_channel", 2),
    ("CosmosConfig", "padding_channel", -1),
    ("CosmosConfig", "rope_scale", (1, 1)),
    ("CosmosConfig", "extent", (4, 4)),
    ("CosmosConfig", "time", "foo"),
    ("UViTConfig", "grid", (4, 4)),
    ("UViTConfig", "grid", (1, 4.0, 4)),
    ("AllegroConfig", "scale", (1.0, 1.0)),
    ("AllegroConfig", "scale", (1.0, math.nan, 1.0)),
    ("CogVideoXConfig", "learned", (4, 4)),
    ("CogVideoXConfig", "base", (4, 0)),
    ("CogVideoXConfig", "learned_text", -1),
    ("WaltConfig", "window", (5, 8)),
    ("WaltConfig", "frame_prediction", 1),
    ("WanConfig", "cross_norm", "yes"),
    ("HunyuanVideoConfig", "image_condition", 3),
]


@pytest.mark.graph  # without the tests' own checks of types, which come first
@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_fields_are_named(name: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}[ =]") as caught:
        getattr(models, name)(**NAMED[name] | {field: value})
    assert repr(value) in str(caught.value)


def test_widths_that_do_not_turn_are_named() -> None:
    with pytest.raises(ValueError, match="dim=8 does not make heads=2 of even width, at least 6"):
        models.WanConfig(dim=8, depth=1, heads=2, mlp_dim=8)
    with pytest.raises(ValueError, match=r"sincos=\(1.0, 1.0, 1.0\) needs a dim that 16 divides, got dim=40"):
        models.CogVideoXConfig(dim=40, depth=1, heads=1, rotary=False, sincos=(1.0, 1.0, 1.0))


@pytest.mark.graph
def test_whole_numbers_are_numbers() -> None:
    assert models.CosmosConfig(**SIZES, rope_scale=(1, 2, 2)).rope_scale == (1, 2, 2)
    assert models.OpenSoraConfig(**FLUX, mlp_ratio=4).mlp_dim == 96
