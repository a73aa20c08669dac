"""Every model whose attention norms or turns its queries and keys, tiny, with inputs of one packed mixture."""

from typing import Any

import torch
from mixtures import GRIDS, Mixture
from torch import Tensor, nn

from tubelet import models
from tubelet.layout import TokenLayout

_SMALL: dict[str, Any] = {"depth": 1, "heads": 2, "latent_channels": 2, "text_dim": 5}
_STREAMS: dict[str, Any] = {**_SMALL, "dim": 24, "single_depth": 1, "pooled_dim": 3, "rope_axes": (4, 4, 4)}
_X, _TEXT = {"x": 8}, {"text": 5}
MODELS: dict[str, tuple[type[nn.Module], Any, Mixture]] = {
    "Allegro": (models.AllegroTransformer, models.AllegroConfig(dim=24, **_SMALL), Mixture(_X, _TEXT)),
    "CogVideoX": (models.CogVideoXTransformer, models.CogVideoXConfig(dim=32, **_SMALL), Mixture(_X, _TEXT)),
    "Cosmos": (
        models.CosmosTransformer,
        models.CosmosConfig(dim=24, rank=3, **{**_SMALL, "padding_channel": False}),
        Mixture(_X, _TEXT, {"fps": ()}),
    ),
    "HunyuanVideo": (
        models.HunyuanVideoTransformer,
        models.HunyuanVideoConfig(refiner_depth=1, **_STREAMS),
        Mixture(_X, _TEXT, {"pooled": (3,)}),
    ),
    "LTX": (
        models.LTXTransformer,
        models.LTXConfig(dim=16, **_SMALL),
        Mixture({"x": 2}, _TEXT),
    ),
    "Mochi": (
        models.MochiTransformer,
        models.MochiConfig(dim=24, text_width=10, pool_heads=1, **_SMALL),
        Mixture(_X, _TEXT),
    ),
    "NaViT": (
        models.NaViT,
        models.NaViTConfig(
            dim=16, depth=1, heads=2, mlp_dim=8, grid=(3, 3, 3), channels=2, patch=(1, 2, 2), qk_norm="layer"
        ),
        Mixture(_X, {}),
    ),
    "Open-Sora": (
        models.OpenSoraTransformer,
        models.OpenSoraConfig(**_STREAMS),
        Mixture(_X, _TEXT, {"pooled": (3,)}),
    ),
    "VideoDiT": (models.VideoDiT, models.VideoDiTConfig(dim=32, **_SMALL), Mixture({"x": 2}, _TEXT)),
    "W.A.L.T": (
        models.Walt,
        models.WaltConfig(dim=16, mlp_dim=8, extent=(3, 2, 3), spatial_window=(1, 2, 3), window=(3, 1, 3), **_SMALL),
        Mixture({"x": 2}, _TEXT),
    ),
    "Wan": (
        models.WanTransformer,
        models.WanConfig(dim=24, mlp_dim=20, given_channels=1, image_dim=3, image_tokens=4, **_SMALL),
        Mixture({"x": 8, "given": 4}, _TEXT),
    ),
}
"""Class, config, and what is given beside noise levels and layouts."""


def tiny_model(name: str, dtype: torch.dtype) -> nn.Module:
    """With random weights of a size at which attention is not uniform."""
    kind, config, _ = MODELS[name]
    model = kind(config, dtype=dtype)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def tiny_inputs(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that it is called with."""
    mixture = MODELS[name][2]
    given: dict[str, Any] = {
        key: x.detach().to(dtype).requires_grad_() if isinstance(x, Tensor) else x.on("cpu")
        for key, x in mixture.inputs().items()
    }
    if name == "NaViT":
        del given["text_layout"]
        return given
    given["t"] = given["layout"].rows(mixture.levels("frame").to(dtype), "frame")
    if name == "LTX":
        given["places"] = models.ltx_places(given["layout"], given["layout"].rows(torch.full((3,), 24.0), "sample"))
    if name == "Wan":
        given["image"] = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
        given["image_layout"] = TokenLayout.packed([None] * len(GRIDS), [4, 1, 0]).on("cpu")
    return given
