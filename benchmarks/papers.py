"""The transformers that the field grew from, ours against each one's own implementation, with the same weights.

- DiT-XL/2 at 512 pixels and Latte-1 on 16 frames of 256 against diffusers';
- ViViT-B/16x2, joint, against that of transformers;
- U-ViT-L/2 against a transcription of its authors' module, with PyTorch's fused attention, since no package has it.

Few layers at real width. A timed call is one forward in float32, from latents or pixels; exact is theirs in float64.
*fused* is ours behind :func:`tubelet.fused.use_kernels`, which changes no number but by rounding. ``speedups`` has
theirs over ours with a bootstrap interval: above 1 ours is faster. NaViT's peers are in the suite of its name.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import Case, Result
from benchmarks.models import FAMILIES, random_peer
from tubelet.bench.compare import ratio_interval
from tubelet.fused import use_kernels
from tubelet.hub import from_diffusers, from_original
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import UViTConfig, ViViT, uvit_l_imagenet256, vivit_b
from tubelet.patchify import conv3d_weight_to_linear, fold, unfold

__all__ = ["cases", "speedups"]

LAYERS = 2
TOLERANCE = 1e-4

Forward = Callable[[Any, Tensor], Tensor]


def cases(device: str) -> Iterator[list[Case]]:
    """A group for each model: theirs, ours, ours fused."""
    if device != "cpu":
        raise SystemExit("the suite of papers runs on the CPU")
    yield _of_diffusers("DiT-XL/2 at 512 pixels", "dit-xl", 1024)
    yield _uvit()
    yield _vivit()
    yield _of_diffusers("Latte-1, 16 frames of 256 pixels", "latte", 4096)


def speedups(results: Sequence[Result]) -> list[tuple[str, str, float, float, float]]:
    """Of each of ours: its group and name, theirs over it, and the interval; a wrong one has none."""
    theirs = {result.group: result.seconds for result in results if result.name == "theirs"}
    return [
        (each.group, each.name, *ratio_interval(each.seconds, base))
        for each in results
        if each.name != "theirs" and each.seconds is not None and (base := theirs[each.group]) is not None
    ]


def _group(
    title: str, peer: nn.Module, theirs: Forward, model: nn.Module, ours: Forward, x: Tensor, tokens: int
) -> list[Case]:
    with torch.no_grad():
        exact = theirs(copy.deepcopy(peer).double(), x.double())
    fused = copy.deepcopy(model)
    use_kernels(fused)
    ways = [("theirs", peer, theirs), ("ours", model, ours), ("ours, fused", fused, ours)]
    return [Case(title, name, partial(_run, way, each, x), exact, tokens, TOLERANCE) for name, each, way in ways]


@torch.no_grad()
def _run(way: Forward, model: nn.Module, x: Tensor) -> Tensor:
    return way(model, x)


def _of_diffusers(title: str, name: str, tokens: int) -> list[Case]:
    family = FAMILIES[name]
    peer = random_peer(family)
    model = from_diffusers({"_class_name": family.peer, **peer.config}, peer.state_dict())
    x = family.latents(tokens)
    return _group(f"{title}, {LAYERS} layers", peer, family.theirs, model, family.ask_ours, x, tokens)


def _random(peer: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.1)
    return peer.eval()


def _vivit() -> list[Case]:
    from transformers import VivitConfig, VivitForVideoClassification

    peer = _random(VivitForVideoClassification(VivitConfig(num_hidden_layers=LAYERS, num_labels=400)))
    model = ViViT(replace(vivit_b(), depth=LAYERS)).eval()
    model.load_state_dict(_vivit_weights(peer.state_dict(), model))
    patch, layout = model.config.patch, TokenLayout.dense(1, Grid(*model.config.grid))
    index = layout.on("cpu")

    def theirs(peer: Any, x: Tensor) -> Tensor:
        logits: Tensor = peer(x.transpose(1, 2)).logits
        return logits

    def ours(model: Any, x: Tensor) -> Tensor:
        logits: Tensor = model(fold(x, patch), index)
        return logits

    x = torch.randn(1, 3, 32, 224, 224, generator=torch.Generator().manual_seed(2))
    tokens = math.prod(model.config.grid)
    return _group(f"ViViT-B/16x2, joint, {LAYERS} layers", peer, theirs, model, ours, x, tokens)


_VIVIT = {
    "attention.q_proj": "branches.0.inner.q_proj",
    "attention.k_proj": "branches.0.inner.k_proj",
    "attention.v_proj": "branches.0.inner.v_proj",
    "attention.o_proj": "branches.0.inner.out_proj",
    "layernorm_before": "branches.0.norm",
    "layernorm_after": "branches.1.norm",
    "mlp.fc1": "branches.1.inner.up",
    "mlp.fc2": "branches.1.inner.down",
}
"""Names in a layer of transformers' ViViT, and ours."""


def _vivit_weights(theirs: dict[str, Tensor], model: ViViT) -> dict[str, Tensor]:
    start = "vivit.embeddings"
    positions = theirs[f"{start}.position_embeddings"][0]
    found = {
        "embed.proj.weight": conv3d_weight_to_linear(theirs[f"{start}.patch_embeddings.projection.weight"]),
        "embed.proj.bias": theirs[f"{start}.patch_embeddings.projection.bias"],
        "encoder.token": theirs[f"{start}.cls_token"].flatten(),
        "encoder.position": positions[0],
        "encoder.trunk.positions.table": positions[1:].unflatten(0, model.config.grid),
    }
    for kind in ("weight", "bias"):
        found[f"encoder.trunk.norm.{kind}"] = theirs[f"vivit.layernorm.{kind}"]
        found[f"head.{kind}"] = theirs[f"classifier.{kind}"]
        for layer in range(model.config.depth):
            for name, own in _VIVIT.items():
                found[f"encoder.trunk.blocks.{layer}.{own}.{kind}"] = theirs[f"vivit.layers.{layer}.{name}.{kind}"]
    return found


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """A block of the authors' module; one on the way out joins the tokens of its partner first."""

    def __init__(self, dim: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), _Mlp(dim)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _UViT(nn.Module):
    """The authors' class-conditional U-ViT, under the names of their files."""

    def __init__(self, c: UViTConfig) -> None:
        super().__init__()
        self.config, half, p = c, c.depth // 2, c.patch[1]
        assert c.classes is not None
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.latent_channels, c.dim, p, stride=p)})
        self.label_emb = nn.Embedding(c.classes + 1, c.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + c.grid[1] * c.grid[2], c.dim))
        self.in_blocks = nn.ModuleList(_Block(c.dim, c.heads, False) for _ in range(half))
        self.mid_block = _Block(c.dim, c.heads, False)
        self.out_blocks = nn.ModuleList(_Block(c.dim, c.heads, True) for _ in range(half))
        self.norm, self.decoder_pred = nn.LayerNorm(c.dim), nn.Linear(c.dim, p * p * c.latent_channels)
        self.final_layer = nn.Conv2d(c.latent_channels, c.latent_channels, 3, padding=1)

    def forward(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        c = self.config
        x = self.patch_embed["proj"](z).flatten(2).mT
        frequencies = torch.exp(-math.log(10000) * torch.arange(c.dim // 2) / (c.dim // 2))
        angles = time[:, None] * frequencies.to(time)
        token = torch.cat([angles.cos(), angles.sin()], dim=-1)[:, None].to(x)
        x = torch.cat([self.label_emb(labels)[:, None], token, x], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, 2:]
        side, p = c.grid[1], c.patch[1]
        x = x.unflatten(1, (side, side)).unflatten(-1, (p, p, -1)).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        out: Tensor = self.final_layer(x)
        return out


def _uvit() -> list[Case]:
    config = replace(uvit_l_imagenet256(), depth=LAYERS)
    peer = _random(_UViT(config))
    model = from_original(config, peer.state_dict()).eval()
    labels, batch = torch.arange(4), 4
    grid = Grid(*config.grid)
    index = TokenLayout.dense(batch, grid).on("cpu")

    def theirs(peer: Any, x: Tensor) -> Tensor:
        out: Tensor = peer(x, torch.full((batch,), 500.0, dtype=x.dtype), labels)
        return out

    def ours(model: Any, x: Tensor) -> Tensor:
        level = Rows(torch.full((1,), 500.0 / config.time_scale))
        out = model(fold(x[:, :, None], config.patch), level, index, labels)
        return unfold(out, grid, config.patch)[:, :, 0]

    sides = [p * side for p, side in zip(config.patch[1:], config.grid[1:], strict=True)]
    x = torch.randn(batch, config.latent_channels, *sides, generator=torch.Generator().manual_seed(2))
    title = f"U-ViT-L/2 at 256 pixels, {batch} images, {LAYERS + 1} layers"
    return _group(title, peer, theirs, model, ours, x, batch * grid.tokens)
