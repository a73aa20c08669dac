"""Tiny CogVideoXs of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from parity import randomise
from torch import Tensor

from tubelet.layout import Grid, TokenLayout
from tubelet.models import CogVideoXTransformer
from tubelet.patchify import fold, unfold

KINDS = ("sincos", "rotary", "image", "frames", "ofs")
"""2B; 5B; 5B image to video, with a learned table; 1.5, in patches of two frames; 1.5 image to video, with ``ofs``."""

TEXT = 4


def peer(kind: str, seed: int = 0) -> CogVideoXTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter, and table of positions, is random."""
    draw = random.Random(seed)
    time_dim, height, width, frames = draw.choice([6, 8]), draw.choice([8, 14]), draw.choice([6, 12]), 9
    if kind in ("frames", "ofs"):
        height, width, frames = 300, 300, 81  # no more than a bound of what the pipeline asks
    model = CogVideoXTransformer3DModel(
        num_attention_heads=draw.randint(1, 3),
        attention_head_dim=draw.choice([16, 32]),
        in_channels=5 if kind in ("image", "ofs") else 2,
        out_channels=2,
        time_embed_dim=time_dim,
        ofs_embed_dim=time_dim if kind == "ofs" else None,
        text_embed_dim=draw.choice([6, 10]),
        num_layers=draw.randint(2, 3),
        sample_width=width,
        sample_height=height,
        sample_frames=frames,
        patch_size_t=2 if kind in ("frames", "ofs") else None,
        patch_bias=kind not in ("frames", "ofs"),
        max_text_seq_length=TEXT,
        norm_eps=draw.choice([1e-6, 1e-5]),
        spatial_interpolation_scale=draw.choice([1.0, 1.875]),
        temporal_interpolation_scale=draw.choice([1.0, 1.5]),
        use_rotary_positional_embeddings=kind != "sincos",
        use_learned_positional_embeddings=kind == "image",
    )
    if kind == "image":
        model.patch_embed.pos_embedding = torch.randn(
            model.patch_embed.pos_embedding.shape, generator=torch.Generator().manual_seed(seed)
        )
    return randomise(model, seed)


@dataclass
class Question:
    """Latents (b, c, t, h, w), indices of 0 to 999, text and ``ofs``; two samples of one size, as the peer needs."""

    latents: Tensor
    time: Tensor
    text: Tensor
    ofs: Tensor | None
    patch: tuple[int, int, int]
    channels: int

    @property
    def grid(self) -> Grid:
        return Grid(*(n // p for n, p in zip(self.latents.shape[2:], self.patch, strict=True)))

    def theirs(self, model: CogVideoXTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w)."""
        dtype = model.proj_out.weight.dtype
        ofs = None if self.ofs is None else self.ofs.to(dtype)
        turn = None
        if model.config.use_rotary_positional_embeddings:
            turn = exact_rotation(model, self.grid) if dtype == torch.float64 else rotation(model, self.latents)
        with torch.set_grad_enabled(grad):
            return model(
                self.latents.transpose(1, 2).to(dtype), self.text.to(dtype), self.time,
                ofs=ofs, image_rotary_emb=turn, return_dict=False,
            )[0].transpose(1, 2)  # fmt: skip

    def ours(self, model: CogVideoXTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        layout = TokenLayout.dense(2, self.grid)
        noisy, given = self.latents.to(dtype).split([self.channels, self.latents.shape[1] - self.channels], 1)
        inputs: dict[str, Any] = {
            "x": fold(noisy, self.patch),
            "t": layout.rows((self.time.double() + 1) / 1000, "sample"),
            "text": self.text.to(dtype),
            "layout": layout,
            "text_layout": TokenLayout.padded([TEXT] * 2, TEXT),
            "ofs": self.ofs,
        }
        if given.shape[1]:
            inputs["given"] = fold(given, self.patch)
        with torch.set_grad_enabled(grad):
            return unfold(model(**inputs | replaced), self.grid, self.patch)


def question(kind: str, model: CogVideoXTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model: at its own size where that is locked, else at others."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    patch = (c.patch_size_t or 1, 2, 2)
    h, w = (c.sample_height, c.sample_width) if kind == "image" else ((4, 10), (10, 6))[seed % 2]
    shape = (2, c.in_channels, 3 * patch[0], h, w)
    return Question(
        torch.randn(shape, generator=draw, dtype=torch.float64),
        torch.tensor([3, 500]),
        torch.randn(2, TEXT, c.text_embed_dim, generator=draw, dtype=torch.float64),
        torch.tensor([2.0, 5.0], dtype=torch.float64) if c.ofs_embed_dim else None,
        patch,
        c.out_channels,
    )


def rotation(model: CogVideoXTransformer3DModel, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and sines that diffusers' pipeline makes for a model, in float32."""
    frames, height, width = latents.shape[2:]
    pipeline = SimpleNamespace(transformer=model, vae_scale_factor_spatial=8)
    make = CogVideoXPipeline._prepare_rotary_positional_embeddings
    return make(pipeline, 8 * height, 8 * width, frames, torch.device("cpu"))


def exact_rotation(model: CogVideoXTransformer3DModel, grid: Grid) -> tuple[Tensor, Tensor]:
    """The same in float64 by definition, one token after the other."""
    c = model.config
    if c.patch_size_t is None:
        base = c.sample_height // 2, c.sample_width // 2
        tall = grid.h / grid.w > base[0] / base[1]
        rows = base[0] if tall else round(base[1] / grid.w * grid.h)
        columns = round(base[0] / grid.h * grid.w) if tall else base[1]
        places = _places(grid.h, rows, base[0]), _places(grid.w, columns, base[1])
    else:
        places = [float(i) for i in range(grid.h)], [float(i) for i in range(grid.w)]
    width = c.attention_head_dim
    plane = 3 * width // 8
    axes = (width // 4, plane, plane)
    angles = [
        [p * 10000.0 ** (-2 * (i // 2) / d) for p, d in zip((float(t), y, x), axes, strict=True) for i in range(d)]
        for t in range(grid.t) for y in places[0] for x in places[1]
    ]  # fmt: skip
    turns = torch.tensor(angles, dtype=torch.float64)
    return turns.cos(), turns.sin()


def _places(side: int, fitted: int, base: int) -> list[float]:
    start = round((base - fitted) / 2)
    last = (start + fitted) * (side - 1) / side
    return [start + i * (last - start) / max(side - 1, 1) for i in range(side)]


@contextmanager
def in_float64(model: CogVideoXTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer with what it rounds to float32 lifted: calls of ``float()``, sinusoids of times and of places."""
    c = model.config
    dim = c.num_attention_heads * c.attention_head_dim

    def sinusoid(width: int) -> Any:
        return lambda time: _wave(time.double(), width).roll(width // 2, -1)

    def table(height: int, width: int, frames: int, device: Any = None) -> Tensor:
        count = (frames - 1) // c.temporal_compression_ratio + 1
        sides = [torch.arange(n).double() for n in (count, height // 2, width // 2)]
        t, y, x = (axis.flatten() for axis in torch.meshgrid(*sides, indexing="ij"))
        time, plane = t / c.temporal_interpolation_scale, c.spatial_interpolation_scale
        parts = [_wave(time, dim // 4), _wave(x / plane, 3 * dim // 8), _wave(y / plane, 3 * dim // 8)]
        return torch.cat([torch.zeros(TEXT, dim).double(), torch.cat(parts, -1)])[None]

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        model.double()
        patch.setattr(model.time_proj, "forward", sinusoid(dim))
        if c.ofs_embed_dim:
            patch.setattr(model.ofs_proj, "forward", sinusoid(c.ofs_embed_dim))
        if not c.use_rotary_positional_embeddings:
            model.patch_embed.sample_frames = 0  # no size is the stored one
            patch.setattr(model.patch_embed, "_get_positional_embeddings", table)
        yield model


def _wave(position: Tensor, width: int) -> Tensor:
    """``[sin, cos]``."""
    angles = position[:, None] * 10000.0 ** (-torch.arange(width // 2).double() / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], -1)
