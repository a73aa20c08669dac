"""Tiny Cosmos models of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers import transformer_cosmos
from parity import randomise
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Grid, TokenLayout
from tubelet.models import CosmosTransformer
from tubelet.patchify import fold, unfold

KINDS = ("world", "video", "image", "frames", "projected", "plain")
"""Cosmos 1 from text; from video; Predict2 for images; with levels per frame; Predict2.5; without padding masks."""

FIRST = ("world", "video", "plain")
"""Those with learned positions, which are fed EDM's number."""

WIDE = CosmosTransformer3DModel._keep_in_fp32_modules
CHANNELS = 2

# the peer resizes masks of pixels by torchvision, which is not among the tests' packages
transformer_cosmos.transforms = SimpleNamespace(  # type: ignore[attr-defined]
    functional=SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size, mode=interpolation)),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
)


def peer(kind: str, seed: int = 0) -> CosmosTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random."""
    draw = random.Random(seed)
    heads, text_dim = draw.randint(1, 3), draw.choice([6, 10])
    patch = draw.choice(
        [(1, 2, 2), (1, 1, 2), (1, 2, 3)] if kind in ("frames", "projected") else [(1, 2, 2), (2, 3, 1)]
    )
    model = CosmosTransformer3DModel(
        in_channels=CHANNELS + (kind in ("video", "frames", "projected")),
        out_channels=CHANNELS,
        num_attention_heads=heads,
        attention_head_dim=draw.choice([12, 16, 20]),
        num_layers=draw.randint(2, 3),
        mlp_ratio=draw.choice([1.5, 2.0]),
        text_embed_dim=text_dim,
        adaln_lora_dim=draw.choice([3, 5]),
        max_size=tuple(side * p for side, p in zip((5, 4, 6), patch, strict=True))
        if kind in FIRST
        else (128, 240, 240),
        patch_size=patch,
        rope_scale=draw.choice([(2.0, 1.0, 1.0), (1.0, 3.0, 4.0), (20 / 24, 2.0, 3.0)]),
        concat_padding_mask=kind != "plain",
        extra_pos_embed_type="learnable" if kind in FIRST else None,
        use_crossattn_projection=kind == "projected",
        crossattn_proj_in_channels=7 if kind == "projected" else 1024,
        encoder_hidden_states_channels=text_dim if kind == "projected" else 1024,
    )
    return randomise(model, seed)


@dataclass
class Question:
    """Latents (b, c, t, h, w), what the peer is fed as time, text and its lengths, masks, frames a second."""

    latents: Tensor
    time: Tensor
    text: Tensor
    lengths: list[int]
    known: Tensor | None
    padding: Tensor | None
    fps: int | None
    patch: tuple[int, int, int]
    edm: bool

    def theirs(self, model: CosmosTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w)."""
        dtype = model.proj_out.weight.dtype
        places = torch.arange(self.text.shape[1])
        with torch.set_grad_enabled(grad):
            return model(
                self.latents.to(dtype),
                self.time,
                self.text.to(dtype),
                attention_mask=places < torch.tensor(self.lengths)[:, None],
                fps=self.fps,
                condition_mask=None if self.known is None else self.known.to(dtype),
                padding_mask=None if self.padding is None else self.padding.to(dtype),
                return_dict=False,
            )[0]

    def ours(self, model: CosmosTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        sides = [n // p for n, p in zip(self.latents.shape[2:], self.patch, strict=True)]
        layout = TokenLayout.dense(2, Grid(*sides))
        levels = torch.sigmoid(4 * self.time.double() + math.log(2)) if self.edm else self.time.double()
        inputs: dict[str, Any] = {
            "x": fold(self.latents.to(dtype), self.patch),
            "t": layout.on("cpu").rows(levels.flatten(), "sample" if levels.ndim == 1 else "frame"),
            "text": self.text.to(dtype),
            "layout": layout,
            "text_layout": TokenLayout.padded(self.lengths, self.text.shape[1]),
        }
        if self.known is not None:
            inputs["known"] = fold(self.known.to(dtype), self.patch)
        if self.padding is not None:
            mask = self.padding[:, :, None].expand(2, -1, self.latents.shape[2], -1, -1)
            inputs["padding"] = fold(mask.to(dtype), self.patch)
        if self.fps is not None:
            inputs["fps"] = torch.full((2,), float(self.fps))
        with torch.set_grad_enabled(grad):
            return unfold(model(**inputs | replaced), Grid(*sides), self.patch)


def question(kind: str, model: CosmosTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model; two samples of one size, as the peer needs."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    sides = [n * p for n, p in zip((3, 2, 4), c.patch_size, strict=True)]

    def mask(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=draw).double()

    time = torch.tensor([-1.25, 0.75] if kind in FIRST else [0.3, 0.9], dtype=torch.float64)
    if kind in ("frames", "projected"):
        time = torch.rand(2, 1, 3, 1, 1, generator=draw, dtype=torch.float64)
    width = c.crossattn_proj_in_channels if kind == "projected" else c.text_embed_dim
    return Question(
        latents=torch.randn(2, CHANNELS, *sides, generator=draw, dtype=torch.float64),
        time=time,
        text=torch.randn(2, 5, width, generator=draw, dtype=torch.float64),
        lengths=[5, 5] if kind in ("world", "plain") else [4, 2],
        known=mask(2, 1, *sides) if c.in_channels > CHANNELS else None,
        padding=mask(1, 1, *sides[1:]) if c.concat_padding_mask else None,
        fps=None if kind in ("image", "plain") else 16,
        patch=tuple(c.patch_size),
        edm=kind in FIRST,
    )


@contextmanager
def in_float64(model: CosmosTransformer3DModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[CosmosTransformer3DModel]:
    """The peer with its own roundings to float32 lifted: to it, float32 is float64."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        yield model.double()
