"""A tiny ViViT, and all five by their definition in plain operations on ``(frames, places, width)``."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Grid
from tubelet.models import ViViT, ViViTConfig

TINY = ViViTConfig(
    dim=16,
    depth=2,
    heads=2,
    mlp_dim=20,
    grid=(3, 2, 3),
    temporal_depth=1,
    classes=5,
    latent_channels=2,
    patch=(2, 1, 2),
)


def defined(model: ViViT, tubelets: Tensor, grid: Grid, over_time: bool = True) -> tuple[Tensor, Tensor]:
    """The logits and the tokens of one sample; ``over_time=False`` leaves attention over time out of model 3."""
    config, state = model.config, dict(model.state_dict())
    spatial = "encoder.spatial." if config.variant in ("factorised_encoder", "average") else "encoder."
    h = F.linear(tubelets, state["embed.proj.weight"], state["embed.proj.bias"]).unflatten(0, (grid.t, -1))
    table = state[f"{spatial}trunk.positions.table"][: grid.t, : grid.h, : grid.w].flatten(1, 2)

    def attention(h: Tensor, name: str, heads: slice = slice(None)) -> Tensor:
        """Over the places of each row, of some of the heads, not yet projected."""
        q, k, v = (
            F.linear(h, state[f"{name}.{x}_proj.weight"], state.get(f"{name}.{x}_proj.bias"))
            .unflatten(-1, (config.heads, -1))
            .transpose(-3, -2)[..., heads, :, :]
            for x in "qkv"
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(-3, -2).flatten(-2)

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], config.eps)

    def linear(h: Tensor, name: str) -> Tensor:
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def attended(h: Tensor, branch: str, how: str) -> Tensor:
        x, name = norm(h, f"{branch}.norm"), f"{branch}.inner"
        if how == "both":
            half = config.heads // 2
            in_time = attention(x.transpose(0, 1), name, slice(half, None)).transpose(0, 1)
            mixed = torch.cat([attention(x, name, slice(half)), in_time], -1)
        else:
            mixed = attention(x.transpose(0, 1), name).transpose(0, 1) if how == "time" else attention(x, name)
        return h + linear(mixed, f"{name}.out_proj")

    def transformer(h: Tensor, trunk: str, depth: int, ways: list[str]) -> Tensor:
        for block in (f"{trunk}.blocks.{i}.branches" for i in range(depth)):
            for i, how in enumerate(ways):
                h = attended(h, f"{block}.{i}", how) if over_time or how != "time" else h
            mlp = f"{block}.{len(ways)}"
            up = F.gelu(linear(norm(h, f"{mlp}.norm"), f"{mlp}.inner.up"), approximate=config.gelu)
            h = h + linear(up, f"{mlp}.inner.down")
        return norm(h, f"{trunk}.norm")

    def with_class(h: Tensor, encoder: str, depth: int) -> tuple[Tensor, Tensor]:
        """Of each row: its vector and its tokens."""
        first = (state[f"{encoder}token"] + state[f"{encoder}position"]).expand(len(h), 1, -1)
        h = transformer(torch.cat([first, h], 1), f"{encoder}trunk", depth, ["space"])
        return h[:, 0], h[:, 1:]

    if config.variant in ("factorised_encoder", "average"):
        each, tokens = with_class(h + table, "encoder.spatial.", config.depth)
        if config.variant == "average":
            pooled = each.mean(0)
        else:
            times = state["encoder.over.trunk.positions.table"][: grid.t, 0, 0]
            pooled = with_class((each + times)[None], "encoder.over.", config.temporal_depth)[0][0]
    elif config.variant == "joint":
        first, tokens = with_class((h + table).flatten(0, 1)[None], "encoder.", config.depth)
        pooled = first[0]
    else:
        ways = ["space", "time"] if config.variant == "factorised_self_attention" else ["both"]
        tokens = transformer(h + table, "encoder.trunk", config.depth, ways)
        pooled = tokens.flatten(0, 1).mean(0)
    logits = pooled if config.classes is None else linear(pooled, "head")
    return logits, tokens.reshape(-1, config.dim)
