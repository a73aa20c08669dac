"""Tiny Mochis of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from parity import randomise
from torch import Tensor

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import MochiTransformer
from tubelet.patchify import fold, unfold

FRAMES, SIDES, TEXT = 3, (2, 3), (6, 4)


def peer(seed: int = 0) -> Any:
    """A model of diffusers' in float32 whose every parameter is random."""
    draw = random.Random(seed)
    model = MochiTransformer3DModel(
        patch_size=draw.choice([1, 2]),
        num_attention_heads=draw.randint(1, 3),
        attention_head_dim=draw.choice([8, 12, 16]),
        num_layers=draw.randint(2, 3),
        pooled_projection_dim=draw.choice([10, 12]),
        in_channels=draw.randint(2, 4),
        text_embed_dim=draw.choice([8, 16]),
        time_embed_dim=draw.choice([8, 32]),
    )
    return randomise(model, seed)


@dataclass
class Question:
    """Latents (b, c, t, h, w), times of 0 to 1000 from noise to data, text in rows and how long each is."""

    latents: Tensor
    time: Tensor
    text: Tensor
    patch: tuple[int, int, int]

    def theirs(self, model: Any, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w): data minus noise."""
        dtype = model.proj_out.weight.dtype
        mask = torch.arange(max(TEXT)) < torch.tensor(TEXT)[:, None]
        with torch.set_grad_enabled(grad):
            return model(self.latents.to(dtype), self.text.to(dtype), self.time, mask, return_dict=False)[0]

    def ours(self, model: MochiTransformer, grad: bool = False) -> Tensor:
        """Our answer in the same form and of the same sign."""
        dtype, grid = model.project.weight.dtype, Grid(FRAMES, *SIDES)
        t = Rows(1 - self.time / 1000)
        layouts = (TokenLayout.dense(2, grid), TokenLayout.padded(TEXT, max(TEXT)))
        with torch.set_grad_enabled(grad):
            out = model(fold(self.latents.to(dtype), self.patch), t, self.text.to(dtype), *layouts)
        return -unfold(out, grid, self.patch)


def question(model: Any, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    side = c.patch_size
    latents = torch.randn(2, c.in_channels, FRAMES, *(n * side for n in SIDES), generator=draw, dtype=torch.float64)
    text = torch.randn(2, max(TEXT), c.text_embed_dim, generator=draw, dtype=torch.float64)
    return Question(latents, torch.tensor([30.0, 700.0], dtype=torch.float64), text, (1, side, side))


@contextmanager
def in_float64(model: Any, monkeypatch: Any) -> Iterator[Any]:
    """The peer with what it rounds to float32 lifted: casts of norms, modulation and rotations, the time's sinusoid."""
    half = model.config.time_embed_dim // 2
    frequencies = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    cast = Tensor.to

    def wide(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wider = [torch.float64 if each is torch.float32 else each for each in args]
        return cast(x, *wider, **kwargs)

    def sinusoid(time: Tensor) -> Tensor:
        angles = time.double()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    places = model.rope._get_positions
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(Tensor, "to", wide)
        model.double()
        patch.setattr(model.rope, "_get_positions", lambda t, h, w, *_: places(t, h, w, None, torch.float64))
        patch.setattr(model.time_embed.time_proj, "forward", sinusoid)
        yield model
