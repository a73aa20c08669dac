"""Tiny DiTs of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import dataclasses
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from parity import randomise, size
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.layout import Grid, TokenLayout
from tubelet.models import DiT, DiTConfig
from tubelet.norms import LayerNorm
from tubelet.patchify import fold, unfold

KINDS = ("trained", "larger", "smaller")
"""The grid of the config; twice its sides; half of them."""


def peer(seed: int = 0) -> DiTTransformer2DModel:
    """A model of diffusers' in float32 whose every parameter is random; its blocks share one embedding."""
    draw = random.Random(seed)
    patch = draw.choice([1, 2, 3])
    model = DiTTransformer2DModel(
        num_attention_heads=draw.randint(1, 3),
        attention_head_dim=draw.choice([8, 12, 16]),
        in_channels=draw.randint(2, 4),
        out_channels=draw.choice([None, 5, 8]),
        num_layers=draw.randint(2, 3),
        sample_size=4 * patch,
        patch_size=patch,
        num_embeds_ada_norm=draw.choice([5, 7]),
        norm_eps=draw.choice([1e-3, 1e-5]),
    )
    for block in model.transformer_blocks[1:]:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    return randomise(model, seed)


@dataclass
class Question:
    """Latents (b, c, h, w), whole times of 0 to 999 and labels; samples of one size, as the peer needs."""

    latents: Tensor
    time: Tensor
    labels: Tensor
    patch: int

    def theirs(self, model: DiTTransformer2DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, h, w)."""
        dtype = model.proj_out_2.weight.dtype
        with torch.set_grad_enabled(grad):
            return model(self.latents.to(dtype), self.time, self.labels, return_dict=False)[0]

    def ours(self, model: DiT, grad: bool = False) -> Tensor:
        """Our answer in the same form."""
        patch = (1, self.patch, self.patch)
        grid = Grid(1, *(side // self.patch for side in self.latents.shape[2:]))
        layout = TokenLayout.dense(len(self.latents), grid)
        x = fold(self.latents[:, :, None].to(model.project.weight.dtype), patch)
        with torch.set_grad_enabled(grad):
            t = layout.rows((self.time.double() + 1) / 1000, "sample")
            return as_images(model, model(x, t, layout, self.labels), grid)


def as_images(model: DiT, prediction: Tensor, grid: Grid) -> Tensor:
    """Noise and variance of patches as channels (b, c, h, w)."""
    width, patch = model.config.patch_dim, model.config.patch
    parts = prediction.split([width, model.config.out_dim - width], dim=-1)
    return torch.cat([unfold(part, grid, patch)[:, :, 0] for part in parts if part.shape[-1]], dim=1)


def question(kind: str, model: DiTTransformer2DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model; the last label is the null class."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    side = c.sample_size * 2 if kind == "larger" else c.sample_size // (2 if kind == "smaller" else 1)
    return Question(
        torch.randn(3, c.in_channels, side, side, generator=draw, dtype=torch.float64),
        torch.tensor([0, 3, 999]),
        torch.tensor([0, 4, c.num_embeds_ada_norm]),
        c.patch_size,
    )


@contextmanager
def in_float64(model: DiTTransformer2DModel, monkeypatch: Any) -> Any:
    """The peer with what it rounds to float32 lifted: calls of ``float()``, the sinusoid of times, its positions."""
    frequencies = torch.tensor([10000.0 ** (-i / 127) for i in range(128)], dtype=torch.float64)

    def sinusoid(time: Tensor) -> Tensor:
        angles = time.double()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        model.double()
        embed = model.pos_embed
        embed.pos_embed = get_2d_sincos_pos_embed(embed.pos_embed.shape[-1], embed.height, base_size=embed.height)[None]
        patch.setattr(model.transformer_blocks[0].norm1.emb.time_proj, "forward", sinusoid)
        yield model


def per_depth(measure: Callable[[DiTConfig], float], config: DiTConfig) -> float:
    """What grows by the same amount with every block, from two models of one and of two."""
    one, two = (measure(dataclasses.replace(config, depth=depth)) for depth in (1, 2))
    return one + (config.depth - 1) * (two - one)


def parameters(config: DiTConfig, **options: Any) -> int:
    return size(DiT(config, device="meta", **options))


def multiply_adds(config: DiTConfig, side: int = 32, **options: Any) -> float:
    """Billions for one image of so many latent cells a side, counted where they happen; a norm has one a number."""
    model, patch, total = DiT(config, device="meta", **options), config.patch[1], 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, Attention):
            total += 2 * inputs[0].shape[-2] * inputs[0].numel()  # scores, and the sum of values
        elif isinstance(module, CrossAttention):
            total += 2 * 2 * inputs[0].numel()  # two keys
        elif isinstance(module, LayerNorm):
            total += out.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    layout = TokenLayout.dense(1, Grid(1, side // patch, side // patch)).on("meta")
    t = layout.rows(torch.zeros(1, device="meta"), "sample")
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    model(torch.zeros(1, (side // patch) ** 2, patch * patch * 4, device="meta"), t, layout, labels)
    return total / 1e9
