"""Tiny Allegros of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AllegroTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from parity import randomise
from pixarts import calm, exact_sinusoid
from torch import Tensor

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import AllegroTransformer
from tubelet.patchify import fold, unfold

GRID = Grid(3, 2, 4)


def peer(seed: int = 0) -> AllegroTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random."""
    draw = random.Random(seed)
    heads, head_dim, channels = draw.randint(1, 3), draw.choice([6, 12, 18]), draw.randint(1, 3)
    model = AllegroTransformer3DModel(
        patch_size=draw.choice([1, 2, 3]),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=channels,
        num_layers=draw.randint(1, 3),
        cross_attention_dim=heads * head_dim,
        norm_eps=draw.choice([1e-6, 1e-5]),
        caption_channels=draw.choice([6, 10]),
        interpolation_scale_h=draw.choice([1.0, 2.0]),
        interpolation_scale_w=draw.choice([1.5, 3.0]),
        interpolation_scale_t=draw.choice([1.0, 2.2]),
    )
    return calm(randomise(model, seed))


def scale(model: AllegroTransformer3DModel) -> tuple[float, float, float]:
    """The scales in the order of our axes."""
    c = model.config
    return c.interpolation_scale_t, c.interpolation_scale_h, c.interpolation_scale_w


@dataclass
class Question:
    """Latents (b, c, t, h, w), times of 0 to 1000 and text of two lengths; two samples of one size."""

    latents: Tensor
    time: Tensor
    text: Tensor
    lengths: tuple[int, int]
    patch: tuple[int, int, int]

    def theirs(self, model: AllegroTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w), its rotary tables as its pipeline makes them."""
        dtype = model.proj_out.weight.dtype
        n = self.text.shape[1]
        mask = (torch.arange(n) < torch.tensor(self.lengths)[:, None]).to(dtype)
        tables = rotary_tables(model) if dtype == torch.float64 else pipeline_tables(model)
        places = torch.cartesian_prod(*map(torch.arange, (GRID.t, GRID.h, GRID.w))).T[:, None]
        with torch.set_grad_enabled(grad):
            return model(
                self.latents.to(dtype),
                self.text.to(dtype),
                self.time,
                encoder_attention_mask=mask,
                image_rotary_emb=(tables, places),
                return_dict=False,
            )[0]

    def ours(self, model: AllegroTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        given = {
            "x": fold(self.latents.to(dtype), self.patch),
            "t": Rows((self.time.double() + 1) / 1000),
            "text": self.text.to(dtype),
            "layout": TokenLayout.dense(2, GRID),
            "text_layout": TokenLayout.padded(self.lengths, self.text.shape[1]),
        }
        with torch.set_grad_enabled(grad):
            return unfold(model(**given | replaced), GRID, self.patch)


def question(model: AllegroTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    p = c.patch_size
    shape = [2, c.in_channels, GRID.t, GRID.h * p, GRID.w * p]
    return Question(
        torch.randn(shape, generator=draw, dtype=torch.float64),
        torch.tensor([3, 250]),
        torch.randn(2, 5, c.caption_channels, generator=draw, dtype=torch.float64),
        (5, 2),
        (1, p, p),
    )


def pipeline_tables(model: AllegroTransformer3DModel) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines of each axis, in float32, by diffusers' own function."""
    sides = (GRID.h, GRID.w)
    return get_3d_rotary_pos_embed_allegro(
        model.config.attention_head_dim, ((0, 0), sides), sides, GRID.t, scale(model)
    )[:3]


def rotary_tables(model: AllegroTransformer3DModel) -> list[tuple[Tensor, Tensor]]:
    """The same by the formula in float64."""
    width, tables = model.config.attention_head_dim // 3, []
    for side, factor in zip((GRID.t, GRID.h, GRID.w), scale(model), strict=True):
        inverse = torch.tensor([10000.0 ** (-2 * i / width) for i in range(width // 2)] * 2, dtype=torch.float64)
        angles = torch.arange(side).double()[:, None] / factor * inverse
        tables.append((angles.cos(), angles.sin()))
    return tables


@contextmanager
def in_float64(model: AllegroTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer with what it rounds to float32 lifted: calls of ``float()`` and the sinusoid of times."""
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(model.adaln_single.emb.time_proj, "forward", exact_sinusoid)
        yield model.double()
