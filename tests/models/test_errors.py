"""What a newcomer gets wrong is said by the name of the argument, in every open model.

The shape checks of the tests would speak first, so they are off (``graph``).
"""

from typing import Any

import pytest
import torch

from tubelet import Grid, TokenLayout, models

GRIDS, LENGTHS = (Grid(2, 2, 2), Grid(1, 2, 3)), (3, 2)
TINY: dict[str, Any] = {"dim": 48, "depth": 2, "heads": 2, "latent_channels": 1}
FLUX: dict[str, Any] = {"single_depth": 1, "rope_axes": (8, 8, 8), "pooled_dim": 5}
MODELS: dict[str, dict[str, Any]] = {
    "Allegro": {},
    "CogVideoX": {"dim": 64},
    "Cosmos": {"known_channel": True},
    "DiT": {"mlp_dim": 8, "variance_channels": 0},
    "HunyuanVideo": {**FLUX, "guidance": True},
    "LTX": {"latent_channels": 4},
    "Latte": {"variance_channels": 0},
    "LatteClass": {"variance_channels": 0, "classes": 5},
    "Mochi": {"text_width": 24},
    "OpenSora": {**FLUX, "guidance": True},
    "UViT": {"mlp_dim": 8, "grid": (2, 2, 3), "classes": 5},
    "VideoDiT": {"dim": 64, "patch": (1, 2, 2), "text_dim": 8},
    "Walt": {"mlp_dim": 8, "patch": (1, 2, 2), "classes": 5},
    "Wan": {"mlp_dim": 8, "given_channels": 2},
}
PER_SAMPLE = {"pooled": (2, 5), "guidance": (2,), "fps": (2,)}
ASKED = {
    "Cosmos": ("fps", "known"),
    "DiT": ("labels",),
    "HunyuanVideo": ("pooled", "guidance"),
    "LTX": ("places",),
    "LatteClass": ("labels",),
    "OpenSora": ("pooled", "guidance"),
    "UViT": ("labels",),
    "Walt": ("labels",),
    "Wan": ("given",),
}
OF_CLASSES = ("DiT", "LatteClass", "UViT")

pytestmark = pytest.mark.graph


def config_of(name: str) -> type[Any]:
    return getattr(models, f"{name}Config")


def made(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A tiny model and inputs that it takes."""
    sizes = {**TINY, **({} if name in OF_CLASSES else {"text_dim": 8}), **MODELS[name]}
    model = getattr(models, name if hasattr(models, name) else f"{name}Transformer")(config_of(name)(**sizes))
    layout = TokenLayout.packed(GRIDS).on("cpu")
    given: dict[str, Any] = {
        "x": torch.randn(14, 4),
        "t": layout.rows(torch.tensor([0.3, 0.6]), "sample"),
        "layout": layout,
    }
    if name not in OF_CLASSES:
        given |= {"text": torch.randn(5, 8), "text_layout": TokenLayout.packed([None, None], LENGTHS).on("cpu")}
    more = {"labels": torch.tensor([1, 2]), "places": torch.randn(14, 3), "given": torch.randn(14, 8)}
    more |= {"known": torch.zeros(14, 4)} | {key: torch.ones(shape) for key, shape in PER_SAMPLE.items()}
    return model, given | {key: more[key] for key in ASKED.get(name, ())}


@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_another_dtype_are_named_with_both(name: str) -> None:
    model, given = made(name)
    assert model(**given).shape == (14, 4)
    message = r"x is torch\.float32, but the model's weights are torch\.bfloat16: cast one, or use torch\.autocast"
    with pytest.raises(ValueError, match=message):
        model.bfloat16()(**given)
    if "text" in given:
        with pytest.raises(ValueError, match=r"text is torch\.float32, but the model's weights are torch\.bfloat16"):
            model(**given | {"x": given["x"].bfloat16()})
    with torch.autocast("cpu", torch.bfloat16):
        model.float()(**given | {"x": given["x"].bfloat16()})


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name, asked in ASKED.items() for each in asked])
@pytest.mark.parametrize("value", [None, 6.0])
def test_an_argument_that_is_no_tensor_is_named(name: str, argument: str, value: float | None) -> None:
    if argument == "fps" and value is None:
        return
    model, given = made(name)
    with pytest.raises(ValueError, match=rf"{argument} (is|must be).*{value}"):
        model(**given | {argument: value})


def test_a_number_for_all_samples_is_shown_as_a_tensor() -> None:
    model, given = made("HunyuanVideo")
    with pytest.raises(
        ValueError, match=r"guidance must be a tensor of values of samples, torch\.full\(\(2,\), 6\.0\)"
    ):
        model(**given | {"guidance": 6.0})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frequencies": "2"}, "frequencies must be a whole number, got '2'"),
        ({"depth": 2.0}, "depth must be a .*whole number, got 2.0"),
        ({"heads": True}, "heads must be a .*whole number, got True"),
        ({"eps": float("nan")}, "eps must be a finite number, got nan"),
        ({"eps": -1e-6}, "eps must be positive, got -1e-06"),
        ({"time_scale": float("inf")}, "time_scale must be .*finite.*, got inf"),
        ({"time_scale": 0}, "time_scale must be positive.*, got 0"),
    ],
)
def test_configs_refuse_other_kinds_of_values(name: str, change: dict[str, Any], message: str) -> None:
    if set(change) <= set(config_of(name).__dataclass_fields__):
        with pytest.raises(ValueError, match=message):
            config_of(name)(**{**TINY, **MODELS[name], **change})
