"""Tiny Wans of diffusers' with drawn sizes and random weights, and one input for either implementation."""

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from parity import randomise
from torch import Tensor

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import WanTransformer
from tubelet.patchify import fold, unfold

KINDS = ("text", "plain", "latents", "image", "two_images", "tokens")
"""Text alone; no norm before cross-attention; given latents; with CLIP's image; with two; noise levels per token."""

WIDE = WanTransformer3DModel._keep_in_fp32_modules


def peer(kind: str, seed: int = 0, **sizes: Any) -> WanTransformer3DModel:
    """A model of diffusers' in float32 whose every parameter is random; ``sizes`` replace those that are drawn."""
    draw = random.Random(seed)
    heads, head_dim = draw.randint(1, 3), draw.choice([8, 12, 16])
    image = kind in ("image", "two_images")
    drawn: dict[str, Any] = {
        "patch_size": draw.choice([(1, 2, 2), (1, 1, 2), (2, 2, 1)]),
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": 5 if kind in ("latents", "image", "two_images") else 2,
        "out_channels": 2,
        "text_dim": draw.choice([6, 10]),
        "freq_dim": draw.choice([8, 32]),
        "ffn_dim": draw.choice([20, 28]),
        "num_layers": draw.randint(2, 3),
        "cross_attn_norm": kind != "plain",
        "eps": draw.choice([1e-6, 1e-5]),
        "image_dim": 7 if image else None,
        "added_kv_proj_dim": heads * head_dim if image else None,
        "rope_max_seq_len": 32,
        "pos_embed_seq_len": 6 if kind == "two_images" else None,
    }
    return randomise(WanTransformer3DModel(**drawn | sizes), seed)


@dataclass
class Question:
    """Latents (b, c, t, h, w), times of 0 to 1000, text and image; two samples of one size, as the peer needs."""

    latents: Tensor
    time: Tensor
    text: Tensor
    image: Tensor | None
    patch: tuple[int, int, int]
    channels: int

    def theirs(self, model: WanTransformer3DModel, grad: bool = False) -> Tensor:
        """The peer's answer (b, c, t, h, w)."""
        dtype = model.proj_out.weight.dtype
        image = None if self.image is None else self.image.to(dtype)
        if model.config.pos_embed_seq_len is not None:
            image = image.reshape(4, 3, -1)  # it takes the first and the last image as two rows
        with torch.set_grad_enabled(grad):
            return model(
                self.latents.to(dtype), self.time, self.text.to(dtype), image, return_dict=False
            )[0]  # fmt: skip

    def ours(self, model: WanTransformer, grad: bool = False, **replaced: Any) -> Tensor:
        """Our answer in the same form."""
        dtype = model.project.weight.dtype
        sides = [n // p for n, p in zip(self.latents.shape[2:], self.patch, strict=True)]
        layout = TokenLayout.dense(2, Grid(*sides))
        noisy, given = self.latents.to(dtype).split([self.channels, self.latents.shape[1] - self.channels], 1)
        inputs: dict[str, Any] = {
            "x": fold(noisy, self.patch),
            "t": Rows(self.time.double() / 1000)
            if self.time.ndim == 1
            else layout.rows(self.time.flatten() / 1000, "token"),
            "text": self.text.to(dtype),
            "layout": layout,
            "text_layout": TokenLayout.padded([self.text.shape[1]] * 2, self.text.shape[1]),
        }
        if given.shape[1]:
            inputs["given"] = fold(given, self.patch)
        if self.image is not None:
            inputs["image"] = self.image.to(dtype)
            inputs["image_layout"] = TokenLayout.padded([self.image.shape[1]] * 2, self.image.shape[1])
        with torch.set_grad_enabled(grad):
            return unfold(model(**inputs | replaced), Grid(*sides), self.patch)


def question(kind: str, model: WanTransformer3DModel, seed: int = 0) -> Question:
    """Random inputs in float64 that fit a model."""
    draw, c = torch.Generator().manual_seed(seed), model.config
    shape = [2, c.in_channels, *(n * p for n, p in zip((3, 2, 4), c.patch_size, strict=True))]
    image = torch.randn(2, 6 if kind == "two_images" else 5, 7, generator=draw, dtype=torch.float64)
    tokens = 512 if c.image_dim else 5  # with an image the peer takes the last 512 for the text
    return Question(
        torch.randn(shape, generator=draw, dtype=torch.float64),
        torch.tensor([3, 500]) if kind != "tokens" else torch.randint(0, 1000, (2, 24), generator=draw).double(),
        torch.randn(2, tokens, c.text_dim, generator=draw, dtype=torch.float64),
        image if c.image_dim else None,
        tuple(c.patch_size),
        c.out_channels,
    )


@contextmanager
def in_float64(model: WanTransformer3DModel, monkeypatch: Any) -> Any:
    """The peer with what it rounds to float32 lifted: calls of ``float()``, the sinusoid of times, the rotary table."""
    c = model.config
    half = c.freq_dim // 2
    frequencies = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)

    def sinusoid(time: Tensor) -> Tensor:
        angles = time.double()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    plane = 2 * (c.attention_head_dim // 6)
    widths = [c.attention_head_dim - 2 * plane, plane, plane]
    inverse = [10000.0 ** (-2 * (i // 2) / width) for width in widths for i in range(width)]
    table = torch.arange(c.rope_max_seq_len).double()[:, None] * torch.tensor(inverse, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        model.double()
        model.rope.freqs_cos, model.rope.freqs_sin = table.cos(), table.sin()
        patch.setattr(model.condition_embedder.timesteps_proj, "forward", sinusoid)
        yield model
