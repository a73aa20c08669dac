"""Tiny U-ViTs with random weights in the form of the authors' files, and their definition in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.models import UViTConfig

TINY: dict[str, Any] = {"dim": 16, "depth": 4, "heads": 2, "mlp_dim": 20, "grid": (1, 3, 3), "latent_channels": 2}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"conv": False},
    "labels": {"classes": 4, "patch": (1, 1, 1)},
    "classes": {"classes": 4, "null_class": False, "time_mlp": True},
    "text": {"text_dim": 5, "text_tokens": 3, "qkv_bias": True, "patch": (1, 3, 3)},
}
"""Without condition and convolution; with a null class; without, and an MLP of the noise level; with text."""


def tiny(kind: str, **changes: Any) -> UViTConfig:
    return UViTConfig(**{**TINY, **KINDS[kind], **changes})


def published(c: UViTConfig, seed: int = 0) -> dict[str, Tensor]:
    """A file of the authors' with random weights, from the sizes that their code gives its modules."""
    d, p, ch = c.dim, c.patch[1], c.latent_channels
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (d, ch, p, p), "patch_embed.proj.bias": (d,),
        "pos_embed": (1, c.prefix + c.grid[1] * c.grid[2], d), "norm.weight": (d,), "norm.bias": (d,),
        "decoder_pred.weight": (p * p * ch, d), "decoder_pred.bias": (p * p * ch,),
    }  # fmt: skip
    if c.classes is not None:
        shapes["label_emb.weight"] = (c.classes + c.null_class, d)
    if c.text_dim is not None:
        shapes |= {"context_embed.weight": (d, c.text_dim), "context_embed.bias": (d,)}
    if c.time_mlp:
        shapes |= {"time_embed.0.weight": (4 * d, d), "time_embed.0.bias": (4 * d,)}
        shapes |= {"time_embed.2.weight": (d, 4 * d), "time_embed.2.bias": (d,)}
    if c.conv:
        shapes |= {"final_layer.weight": (ch, ch, 3, 3), "final_layer.bias": (ch,)}
    half = range(c.depth // 2)
    for name in ("mid_block", *(f"{side}_blocks.{i}" for side in ("in", "out") for i in half)):
        linears = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (c.mlp_dim, d), "mlp.fc2": (d, c.mlp_dim)}
        if name.startswith("out"):
            linears["skip_linear"] = (d, 2 * d)
        for part, shape in linears.items():
            shapes[f"{name}.{part}.weight"] = shape
            if part != "attn.qkv" or c.qkv_bias:
                shapes[f"{name}.{part}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}.{norm}.weight": (d,), f"{name}.{norm}.bias": (d,)}
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) * 0.4 for name, shape in shapes.items()}


def by_definition(
    s: dict[str, Tensor], c: UViTConfig, z: Tensor, time: Tensor, condition: Tensor | None = None
) -> Tensor:
    """The published model from its file: images (b, c, h, w), times as the network is fed, labels (b) or text."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return scaled * s[f"{name}.weight"] + s[f"{name}.bias"]

    def block(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").unflatten(-1, (3, c.heads, -1)).unbind(2)
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2), f"{name}.attn.proj")
        u = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + linear(u * (1 + torch.erf(u / 2**0.5)) / 2, f"{name}.mlp.fc2")

    patch, (b, _, height, width) = c.patch[1], z.shape
    x = F.conv2d(z, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=patch).flatten(2).mT
    angles = time[:, None] * 10000.0 ** -(torch.arange(c.dim // 2, dtype=torch.float64) / (c.dim // 2))
    token = torch.cat([angles.cos(), angles.sin()], 1)
    if c.time_mlp:
        up = linear(token, "time_embed.0")
        token = linear(up * up.sigmoid(), "time_embed.2")
    before = [token[:, None]]
    if c.classes is not None:
        before.insert(0, s["label_emb.weight"][condition][:, None])
    if c.text_dim is not None:
        before.append(linear(condition, "context_embed"))
    tokens = x.shape[1]
    x = torch.cat([*before, x], 1) + s["pos_embed"]
    skips = []
    for i in range(c.depth // 2):
        x = block(x, f"in_blocks.{i}")
        skips.append(x)
    x = block(x, "mid_block")
    for i in range(c.depth // 2):
        x = block(linear(torch.cat([x, skips.pop()], -1), f"out_blocks.{i}.skip_linear"), f"out_blocks.{i}")
    x = linear(norm(x, "norm"), "decoder_pred")[:, -tokens:]
    x = x.reshape(b, height // patch, width // patch, patch, patch, -1)
    out = torch.einsum("bhwpqc->bchpwq", x).reshape(b, -1, height, width)
    return F.conv2d(out, s["final_layer.weight"], s["final_layer.bias"], padding=1) if c.conv else out
