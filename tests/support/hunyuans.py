"""Tiny HunyuanVideos of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models import embeddings
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_hunyuan_video
from parity import randomise
from torch import Tensor

from tubelet.layout import Grid, TokenLayout
from tubelet.models import HunyuanVideoTransformer
from tubelet.patchify import fold, unfold

KINDS = ("text", "guided", "latent_concat", "token_replace")
"""Text alone; distilled with a guidance strength; latents given as channels; a clean first frame, also distilled."""


def peer(kind: str, seed: int = 0, **sizes: Any) -> HunyuanVideoTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random, with drawn sizes or given ones."""
    draw = random.Random(seed)
    axes = draw.choice([(4, 4, 4), (2, 6, 4), (4, 2, 2)])
    drawn: dict[str, Any] = {
        "in_channels": 5 if kind == "latent_concat" else 2,
        "out_channels": 2,
        "num_attention_heads": draw.randint(1, 3),
        "attention_head_dim": sum(axes),
        "num_layers": draw.randint(1, 2),
        "num_single_layers": draw.randint(1, 2),
        "num_refiner_layers": draw.randint(1, 2),
        "mlp_ratio": draw.choice([1.5, 2.0]),
        "patch_size": draw.choice([1, 2]),
        "patch_size_t": draw.choice([1, 2]) if kind != "token_replace" else 1,
        "guidance_embeds": kind in ("guided", "token_replace"),
        "text_embed_dim": draw.choice([6, 10]),
        "pooled_projection_dim": draw.choice([3, 7]),
        "rope_theta": draw.choice([256.0, 100.0]),
        "rope_axes_dim": axes,
        "image_condition_type": kind if kind in ("latent_concat", "token_replace") else None,
    }
    return randomise(HunyuanVideoTransformer3DModel(**drawn | sizes), seed)


@dataclass
class Question:
    """Latents (b, c, t, h, w), times of 0 to 1000, padded text with its lengths; samples of one size for the peer."""

    latents: Tensor
    time: Tensor
    text: Tensor
    lengths: tuple[int, ...]
    pooled: Tensor
    guidance: Tensor | None
    config: Any

    @property
    def patch(self) -> tuple[int, int, int]:
        return (self.config.patch_size_t, self.config.patch_size, self.config.patch_size)

    @property
    def grid(self) -> Grid:
        return Grid(*(n // p for n, p in zip(self.latents.shape[2:], self.patch, strict=True)))

    def read(self, video: Tensor) -> Tensor:
        """What is compared: a clean first frame's own prediction is nobody's."""
        return video[:, :, 1:] if self.config.image_condition_type == "token_replace" else video

    def theirs(self, model: HunyuanVideoTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w)."""
        dtype = model.proj_out.weight.dtype
        mask = torch.arange(self.text.shape[1]) < torch.tensor(self.lengths)[:, None]
        guidance = None if self.guidance is None else self.guidance * 1000
        inputs = self.latents.to(dtype), self.time, self.text.to(dtype), mask.long(), self.pooled.to(dtype), guidance
        with torch.set_grad_enabled(grad):
            return self.read(model(*inputs, return_dict=False)[0])

    def ours(self, model: HunyuanVideoTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        samples, own = len(self.latents), model.config.latent_channels
        layout = TokenLayout.dense(samples, self.grid)
        noisy, given = self.latents.to(dtype).split([own, self.latents.shape[1] - own], 1)
        levels = self.time.double() / 1000
        t = layout.rows(levels, "sample")
        if self.config.image_condition_type == "token_replace":
            frames = levels[:, None].repeat(1, self.grid.t)
            frames[:, 0] = 0
            t = layout.rows(frames.flatten(), "frame")
        inputs: dict[str, Any] = {
            "x": fold(noisy, self.patch),
            "t": t,
            "text": self.text.to(dtype),
            "layout": layout,
            "text_layout": TokenLayout.padded(self.lengths, self.text.shape[1]),
            "pooled": self.pooled.to(dtype),
            "guidance": self.guidance,
            "given": fold(given, self.patch) if given.shape[1] else None,
        }
        with torch.set_grad_enabled(grad):
            return self.read(unfold(model(**inputs | replaced), self.grid, self.patch))


def question(model: HunyuanVideoTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    sides = [n * p for n, p in zip((3, 2, 3), (c.patch_size_t, c.patch_size, c.patch_size), strict=True)]
    real = {"generator": draw, "dtype": torch.float64}
    return Question(
        torch.randn(2, c.in_channels, *sides, **real),
        torch.tensor([3, 500]),
        torch.randn(2, 5, c.text_embed_dim, **real),
        (5, 2) if seed % 2 else (3, 4),
        torch.randn(2, c.pooled_projection_dim, **real),
        torch.tensor([6.0, 1.5], dtype=torch.float64) if c.guidance_embeds else None,
        c,
    )


@contextmanager
def exact_angles(model: HunyuanVideoTransformer3DModel, monkeypatch: Any) -> Iterator[HunyuanVideoTransformer3DModel]:
    """The peer with angles in float64: its float32 ones are off by 5e-4 at a guidance of 6, which it scales to 6000."""
    frequencies = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)

    def sinusoid(time: Tensor) -> Tensor:
        angles = time.double()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    def rotary(dim: int, position: Tensor, theta: float, use_real: bool) -> tuple[Tensor, Tensor]:
        angles = position.double()[:, None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        doubled = angles.repeat_interleave(2, dim=1)
        return doubled.cos(), doubled.sin()

    with monkeypatch.context() as patch:
        patch.setattr(transformer_hunyuan_video, "get_1d_rotary_pos_embed", rotary)
        for module in model.modules():
            if isinstance(module, embeddings.Timesteps):
                patch.setattr(module, "forward", sinusoid)
        yield model


@contextmanager
def in_float64(model: HunyuanVideoTransformer3DModel, monkeypatch: Any) -> Iterator[HunyuanVideoTransformer3DModel]:
    """The peer with what it rounds to float32 lifted: angles, calls of ``float()``, norms of queries and keys."""

    def rms(module: RMSNorm, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + module.eps).rsqrt() * module.weight

    with exact_angles(model, monkeypatch), monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(RMSNorm, "forward", rms)
        yield model.double()
