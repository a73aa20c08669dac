"""W.A.L.T by its definition, for one sample, in plain operations with masks written pair by pair."""

import itertools
from typing import Any

import torch
from mixtures import F64
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.layout import Grid
from tubelet.models import Walt, WaltConfig

TINY = WaltConfig(
    dim=16,
    depth=4,
    heads=2,
    mlp_dim=24,
    rank=3,
    latent_channels=2,
    patch=(1, 1, 2),
    extent=(5, 6, 6),
    spatial_window=(1, 2, 2),
    window=(2, 1, 2),
    frequencies=8,
)
"""Windows smaller than the grids, that do not divide all of them."""

EVERYTHING = {"classes": 3, "text_dim": 6, "frame_prediction": True, "super_resolution": True}


def defined(
    model: Walt, parts: list[Tensor], level: float, grid: Grid, label: int, text: Tensor, noise: float
) -> Tensor:
    """The prediction on one sample: ``parts`` are the noisy latents and what stands beside them, in order."""
    c = model.config
    cells = list(itertools.product(range(grid.t), range(grid.h), range(grid.w)))
    h = linear(model.embed, torch.cat(parts, -1))
    h = h + torch.stack([model.positions.time[t] + model.positions.space[y, x] for t, y, x in cells])
    cond = embedded(model.time, level, c) + embedded(model.noise, noise, c) + model.label.table.weight[label]
    context = F.layer_norm(linear(model.text[0], text), (c.dim,), *affine(model.text[1]), 1e-6)
    shared = linear(model.modulation.proj, F.silu(cond))
    for number, block in enumerate(model.blocks):
        rows = shared
        if number:  # the first block has no term of its own
            rows = shared + block.modulation.up.weight @ (block.modulation.down.weight @ F.silu(cond))
        rows = rows.view(6, c.dim)
        over_space = number % 2 == 0
        sides = c.spatial_window if over_space else c.window
        mask = windows(cells, sides)
        if not over_space and grid.t == 1:
            mask = torch.eye(len(cells), dtype=torch.bool)
        branches = list(block.branches)
        one = normed(h) * (1 + rows[1]) + rows[0]
        h = h + rows[2] * attention(branches[0].inner, one, one, mask, relative(branches[0].inner, cells, sides))
        if over_space:
            one = F.layer_norm(h, (c.dim,), *affine(branches[1].norm), 1e-6)
            seen = torch.cat([mask, torch.ones(len(cells), len(text), dtype=torch.bool)], 1)
            h = h + attention(branches[1].inner, one, torch.cat([one, context]), seen, torch.zeros(1, **F64))
        mlp = branches[-1].inner
        hidden = F.gelu(linear(mlp.up, normed(h) * (1 + rows[4]) + rows[3]), approximate="tanh")
        h = h + rows[5] * linear(mlp.down, hidden)
    shift, scale = linear(model.final_modulation.proj, F.silu(cond)).chunk(2)
    return linear(model.project, normed(h) * (1 + scale) + shift)


def windows(cells: list[tuple[int, ...]], sides: tuple[int, ...]) -> Tensor:
    """Which tokens lie in one window, pair by pair."""

    def window(cell: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(place // side for place, side in zip(cell, sides, strict=True))

    return torch.tensor([[window(a) == window(b) for b in cells] for a in cells])


def relative(module: Any, cells: list[tuple[int, ...]], sides: tuple[int, ...]) -> Tensor:
    """The learned number of each pair and head; 0 for pairs of other windows."""
    bias = torch.zeros(len(module.relative.table), len(cells), len(cells), **F64)
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            t, y, x = (p - q + side - 1 for p, q, side in zip(a, b, sides, strict=True))
            if all(0 <= p <= 2 * side - 2 for p, side in zip((t, y, x), sides, strict=True)):
                bias[:, i, j] = module.relative.table[:, t, y, x]
    return bias


def attention(module: Any, x: Tensor, context: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """Full attention with the pairs outside the mask left out."""
    width = module.head_dim
    q, k, v = (
        linear(proj, tokens).unflatten(-1, (-1, width)).transpose(0, 1)
        for proj, tokens in ((module.q_proj, x), (module.k_proj, context), (module.v_proj, context))
    )
    q = F.layer_norm(q, (width,), *affine(module.q_norm), 1e-6)
    k = F.layer_norm(k, (width,), *affine(module.k_norm), 1e-6)
    scores = (q @ k.mT / width**0.5 + bias).masked_fill(~mask, -torch.inf)
    return linear(module.out_proj, (scores.softmax(-1) @ v).transpose(0, 1).flatten(1))


def embedded(module: Any, level: float, config: WaltConfig) -> Tensor:
    """The sinusoid of an index through its network."""
    half = config.frequencies // 2
    angles = max(1000 * level - 1, 0.0) * torch.tensor([10000.0 ** (-i / half) for i in range(half)], **F64)
    return linear(module.down, F.silu(linear(module.up, torch.cat([angles.cos(), angles.sin()]))))


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


def linear(module: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)
