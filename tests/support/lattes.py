"""Tiny Lattes of diffusers' with drawn sizes and random weights, one input for either implementation, and a definition.

The definition is of all four variants, for one sample, in plain operations on ``(frames, places, width)``.
"""

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LatteTransformer3DModel
from diffusers.models import embeddings
from mixtures import F64
from parity import randomise
from pixarts import calm, exact_sinusoid
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import LatteTransformer, latte_arrangement
from tubelet.patchify import fold, unfold

KINDS = ("square", "stretched", "large", "image")
"""Frames of the size in the config; of other sides; of a size whose places are interpolated; one frame, text masked."""


def peer(kind: str, seed: int = 0, **replaced: Any) -> LatteTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random."""
    draw = random.Random(seed)
    heads, head_dim, channels, patch = (draw.choice(c) for c in ((1, 2, 3), (8, 12), (1, 2), (1, 2)))
    sizes = {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": channels * draw.choice([1, 2]),
        "num_layers": draw.randint(1, 2),
        "cross_attention_dim": heads * head_dim,
        "attention_bias": True,
        "sample_size": 160 if kind == "large" else 3 * patch,
        "patch_size": patch,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": draw.choice([1e-6, 1e-5]),
        "caption_channels": draw.choice([6, 10]),
        "video_length": 3,
    }
    return calm(randomise(LatteTransformer3DModel(**sizes | replaced), seed))


@dataclass
class Question:
    """Latents (b, c, t, h, w), times of 0 to 1000 and text; two samples of one size, as the peer needs."""

    latents: Tensor
    time: Tensor
    text: Tensor
    lengths: tuple[int, int]
    patch: tuple[int, int, int]
    channels: int

    @property
    def grid(self) -> Grid:
        """The tokens of each sample."""
        return Grid(*(n // p for n, p in zip(self.latents.shape[2:], self.patch, strict=True)))

    def theirs(self, model: LatteTransformer3DModel, grad: bool = False, **replaced: Any) -> Tensor:
        """The peer's answer (b, c', t, h, w); it can mask text for images alone."""
        dtype, n, mask = model.proj_out.weight.dtype, self.text.shape[1], None
        if self.grid.t == 1:
            mask = (torch.arange(n) >= torch.tensor(self.lengths)[:, None, None]).to(dtype) * -10000
        given = {"hidden_states": self.latents.to(dtype), "encoder_hidden_states": self.text.to(dtype)}
        given |= {"timestep": self.time, "encoder_attention_mask": mask, "return_dict": False}
        with torch.set_grad_enabled(grad):
            return model(**given | replaced)[0]

    def ours(self, model: LatteTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form: the variance's channels behind the latents'."""
        dtype = model.project.weight.dtype
        given = {
            "x": fold(self.latents.to(dtype), self.patch),
            "t": Rows((self.time.double() + 1) / 1000),
            "text": self.text.to(dtype),
            "layout": TokenLayout.dense(2, self.grid),
            "text_layout": TokenLayout.padded(self.lengths, self.text.shape[1]),
        }
        with torch.set_grad_enabled(grad):
            out = model(**given | replaced)
            parts = out.split([model.config.patch_dim, model.config.out_dim - model.config.patch_dim], -1)
            return torch.cat([unfold(part, self.grid, self.patch) for part in parts if part.shape[-1]], 1)


def question(kind: str, model: LatteTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    p, frames = c.patch_size, 1 if kind == "image" else c.video_length
    h, w = (3, 3) if kind == "square" else (2, 4)
    return Question(
        torch.randn(2, c.in_channels, frames, h * p, w * p, generator=draw, **F64),
        torch.tensor([3, 250]),
        torch.randn(2, 5, c.caption_channels, generator=draw, **F64),
        (5, 2) if kind == "image" else (5, 5),
        (1, p, p),
        c.in_channels,
    )


def sinusoid(places: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, by the formula in float64."""
    frequencies = torch.tensor([10000.0 ** (-2 * i / dim) for i in range(dim // 2)], **F64)
    angles = places.double().flatten()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def in_frame(dim: int, grid_size: Any, base_size: float, interpolation_scale: float = 1.0, **_: Any) -> Tensor:
    """The peer's function of the place in the frame, columns first, in float64."""
    h, w = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    rows, columns = (torch.arange(n).double() * base_size / n / interpolation_scale for n in (h, w))
    columns, rows = torch.meshgrid(columns, rows, indexing="xy")
    return torch.cat([sinusoid(columns, dim // 2), sinusoid(rows, dim // 2)], -1)


@contextmanager
def in_float64(model: LatteTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer with what it rounds to float32 lifted: calls of ``float()``, and all three sinusoids."""
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(model.adaln_single.emb.time_proj, "forward", exact_sinusoid)
        patch.setattr(embeddings, "get_2d_sincos_pos_embed", lambda embed_dim, **given: in_frame(embed_dim, **given))
        model.double()
        dim, embed = model.temp_pos_embed.shape[-1], model.pos_embed
        model.temp_pos_embed = sinusoid(torch.arange(model.config.video_length), dim)[None]
        embed.pos_embed = in_frame(dim, embed.base_size, embed.base_size, embed.interpolation_scale)[None]
        yield model


def defined(model: Any, x: Tensor, level: Tensor, grid: Grid, text: Any = None, label: Any = None) -> Tensor:
    """One video ``(tokens, p)`` at one noise level, with a text or a class, in the steps of the paper."""
    c, dim = model.config, model.config.dim
    over = latte_arrangement(c.variant, c.depth).blocks
    h = model.embed(x).view(grid.t, -1, dim) + in_frame(dim, (grid.h, grid.w), c.sample_size / c.patch[1])
    time = model.time.down(F.silu(model.time.up(exact_sinusoid((1000 * level - 1).clamp(min=0), c.frequencies))))
    time = time if label is None else time + model.label.table.weight[label]
    fresh = True
    for kinds, block in zip(over, model.blocks, strict=True):
        block = block if kinds != ("time",) else block.inner
        rows = modulation(model, block.modulation, time).view(-1, 3, dim)
        if fresh and kinds != ("space",):
            h, fresh = h + sinusoid(torch.arange(grid.t), dim)[:, None], False
        branches = iter(block.branches)
        for kind, (shift, scale, gate) in zip(kinds, rows, strict=False):
            branch = next(branches)
            inner = branch.inner if (kind, len(kinds)) != ("time", 2) else branch.inner.inner
            h = h + gate * attention(inner, F.layer_norm(h, (dim,), eps=1e-6) * (1 + scale) + shift, kind)
            if kind != "time" and text is not None:
                h = h + cross(next(branches).inner, h, model.text(text))
        shift, scale, gate = rows[-1]
        h = h + gate * next(branches).inner(F.layer_norm(h, (dim,), eps=1e-6) * (1 + scale) + shift)
    shift, scale = modulation(model, model.final_modulation, time).view(2, dim)
    return model.project(F.layer_norm(h, (dim,), eps=1e-6) * (1 + scale) + shift).flatten(0, 1)


def modulation(model: Any, source: Any, time: Tensor) -> Tensor:
    """Rows of one source: a projection of its own, or a table beside the projection of all blocks."""
    if hasattr(source, "proj"):
        return source.proj(F.silu(time))
    shared = time.repeat(2, 1) if source is model.final_modulation else model.modulation(F.silu(time))
    return shared.view(source.table.shape if shared.shape[0] == 1 else (2, -1)) + source.table


def attention(inner: Any, x: Tensor, kind: str) -> Tensor:
    """Self-attention of ``(frames, places, d)`` inside frames, along columns of frames, or half of the heads each."""
    q, k, v = (proj(x).unflatten(-1, (-1, inner.head_dim)) for proj in (inner.q_proj, inner.k_proj, inner.v_proj))
    space, time = (softmax(*(side.transpose(0, 1) if flip else side for side in (q, k, v))) for flip in (False, True))
    time, half = time.transpose(0, 1), q.shape[2] // 2
    split = torch.cat([space[:, :, :half], time[:, :, half:]], 2)
    return inner.out_proj({"space": space, "time": time, "both": split}[kind].flatten(2))


def cross(inner: Any, x: Tensor, text: Tensor) -> Tensor:
    """Every token to every token of the text."""
    q, k, v = (
        proj(side).unflatten(-1, (-1, inner.head_dim))
        for proj, side in ((inner.q_proj, x.flatten(0, 1)), (inner.k_proj, text), (inner.v_proj, text))
    )
    return inner.out_proj(softmax(q[None], k[None], v[None])[0].flatten(1)).view_as(x)


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention inside each row of ``(b, n, heads, head_dim)``."""
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)
