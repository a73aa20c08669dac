"""Latte with classes out of diffusers' DiT blocks with random weights, applied over space and over time in turn."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from lattes import in_frame, sinusoid
from mixtures import F64
from parity import randomise
from pixarts import exact_sinusoid
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.hub import KeyMap, renamed
from tubelet.hub.pixart import attention_keys
from tubelet.models import LatteClassConfig


def peer(config: LatteClassConfig, seed: int = 0) -> nn.Module:
    """Embedding of time and label shared by all blocks; the sinusoid is DiT's own, of which diffusers' differs."""
    blocks = nn.ModuleList(
        BasicTransformerBlock(
            config.dim, config.heads, config.dim // config.heads, activation_fn="gelu-approximate",
            num_embeds_ada_norm=config.classes, attention_bias=True, norm_type="ada_norm_zero",
            norm_elementwise_affine=False, norm_eps=1e-6,
        )
        for _ in range(config.depth)
    )  # fmt: skip
    emb = blocks[0].norm1.emb
    emb.time_proj.forward = exact_sinusoid
    for block in blocks:
        block.norm1.emb = emb
    parts = {"blocks": blocks, "embed": nn.Linear(config.patch_dim, config.dim)}
    parts |= {"modulation": nn.Linear(config.dim, 2 * config.dim), "project": nn.Linear(config.dim, config.out_dim)}
    return randomise(nn.ModuleDict(parts), seed).double()


def answer(model: Any, x: Tensor, time: Tensor, labels: Tensor, sides: tuple[int, int], places: float) -> Tensor:
    """``(b, t, h·w, p)`` patches at times of 0 to 1000 over space and time in turn; an image over space."""
    frames, dim = x.shape[1], model["embed"].out_features
    h = model["embed"](x) + in_frame(dim, sides, places)

    def through(block: nn.Module, rows: Tensor) -> Tensor:
        each = [side.repeat_interleave(rows.shape[1]) for side in (time, labels)]
        return block(rows.flatten(0, 1), timestep=each[0], class_labels=each[1]).view_as(rows)

    for i, (space, time_block) in enumerate(zip(model["blocks"][::2], model["blocks"][1::2], strict=True)):
        h = through(space, h)
        h = h + (sinusoid(torch.arange(frames), dim)[:, None] if i == 0 and frames > 1 else 0)
        h = through(time_block, h.transpose(1, 2)).transpose(1, 2) if frames > 1 else h
    cond = F.silu(model["blocks"][0].norm1.emb(time, labels, hidden_dtype=torch.float64))
    shift, scale = model["modulation"](cond)[:, None, None].chunk(2, -1)
    return model["project"](F.layer_norm(h, (dim,), eps=1e-6) * (1 + scale) + shift)


def weights(model: Any) -> dict[str, Tensor]:
    """The peer's weights under our names."""
    return _keys(model).to_ours(dict(model.named_parameters()))


def gradients(model: Any) -> dict[str, Tensor]:
    """Their gradients under our names, zero in blocks that nothing went through."""
    found = model.named_parameters()
    return _keys(model).to_ours({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in found})


def _keys(model: Any) -> KeyMap:
    emb = "blocks.0.norm1.emb"
    entries = [
        *renamed("embed", "embed"),
        *renamed("project", "project"),
        *renamed("final_modulation.proj", "modulation"),
        *renamed("time.up", f"{emb}.timestep_embedder.linear_1"),
        *renamed("time.down", f"{emb}.timestep_embedder.linear_2"),
        *renamed("label.table", f"{emb}.class_embedder.embedding_table", ["weight"]),
    ]
    for i in range(len(model["blocks"])):
        ours = f"blocks.{i}" if i % 2 == 0 else f"blocks.{i}.inner"
        entries += renamed(f"{ours}.modulation.proj", f"blocks.{i}.norm1.linear")
        entries += attention_keys(f"{ours}.branches.0.inner", f"blocks.{i}.attn1")
        entries += renamed(f"{ours}.branches.1.inner.up", f"blocks.{i}.ff.net.0.proj")
        entries += renamed(f"{ours}.branches.1.inner.down", f"blocks.{i}.ff.net.2")
    return KeyMap(tuple(entries))


def inputs(grids: list[Any], capacity: int, p: int) -> Tensor:
    """Random patches, then rubbish up to the capacity."""
    real = torch.randn(sum(g.tokens for g in grids), p, generator=torch.Generator().manual_seed(0), **F64)
    return torch.cat([real, torch.full((capacity - len(real), p), torch.nan, **F64)]).requires_grad_()
