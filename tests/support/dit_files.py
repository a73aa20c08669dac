"""Files of DiT's and Latte's authors with random weights, and the models that they define, in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

F64: dict[str, Any] = {"dtype": torch.float64}


def published(config: Any, side: int, frames: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """A file from the sizes that their code gives its modules: DiT's, or with frames Latte's."""
    d, p, hidden = config.dim, config.patch[1], 4 * config.dim
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (d, config.latent_channels, p, p), "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d), "t_embedder.mlp.2.bias": (d,),
        "final_layer.linear.weight": (config.out_dim, d),
        "final_layer.linear.bias": (config.out_dim,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }  # fmt: skip
    if config.classes is not None:
        shapes["y_embedder.embedding_table.weight"] = (config.classes + 1, d)
    for i in range(config.depth):
        for name, out, into in (
            ("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", hidden, d), ("mlp.fc2", d, hidden),
            ("adaLN_modulation.1", 6 * d, d),
        ):  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
    draw = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=draw, **F64) * 0.2 for name, shape in shapes.items()}
    # columns first, sines before cosines
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    state["pos_embed"] = torch.cat([_line(places, d // 2) for places in (columns, rows)], 1)[None].float()
    if frames is not None:
        state["temp_embed"] = _line(torch.arange(frames), d)[None].float()
    return state


def _line(places: Tensor, dim: int) -> Tensor:
    angles = places[:, None] * 10000.0 ** -(torch.arange(dim // 2, **F64) / (dim // 2))
    return torch.cat([angles.sin(), angles.cos()], 1)


def by_definition(state: dict[str, Tensor], config: Any, z: Tensor, steps: Tensor, labels: Tensor | None) -> Tensor:
    """The published model from its file: videos (b, c, t, h, w) to (b, 2c, t, h, w); images have t = 1."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return normed * (1 + scale[:, None, None]) + shift[:, None, None]

    def block(x: Tensor, name: str) -> Tensor:
        """On (b, lines, n, d), each line alone."""
        one, two, three, four, five, six = linear(silu, f"{name}.adaLN_modulation.1").chunk(6, 1)
        q, k, v = linear(modulated(x, one, two), f"{name}.attn.qkv").unflatten(-1, (3, config.heads, -1)).unbind(3)
        weights = (torch.einsum("blqhd,blkhd->blhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("blhqk,blkhd->blqhd", weights, v).flatten(3)
        x = x + three[:, None, None] * linear(mixed, f"{name}.attn.proj")
        u = linear(modulated(x, four, five), f"{name}.mlp.fc1")
        u = 0.5 * u * (1 + ((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)).tanh())
        return x + six[:, None, None] * linear(u, f"{name}.mlp.fc2")

    (b, _, t, side, _), p = z.shape, config.patch[1]
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    x = F.conv2d(z.transpose(1, 2).flatten(0, 1), weight, bias, stride=p).flatten(2).mT.unflatten(0, (b, t))
    x = x + state["pos_embed"].double()
    angles = steps[:, None] * 10000.0 ** -(torch.arange(128, **F64) / 128)
    up = linear(torch.cat([angles.cos(), angles.sin()], 1), "t_embedder.mlp.0")
    c = linear(up * up.sigmoid(), "t_embedder.mlp.2")
    c = c if labels is None else c + state["y_embedder.embedding_table.weight"][labels]
    silu = c * c.sigmoid()
    for i in range(config.depth):
        if "temp_embed" not in state or i % 2 == 0:
            x = block(x, f"blocks.{i}")
            continue
        x = x + (state["temp_embed"].double()[0, :t, None] if i == 1 else 0)
        x = block(x.transpose(1, 2), f"blocks.{i}").transpose(1, 2)
    shift, scale = linear(silu, "final_layer.adaLN_modulation.1").chunk(2, 1)
    x = linear(modulated(x, shift, scale), "final_layer.linear")
    x = x.reshape(b, t, side // p, side // p, p, p, -1)
    return torch.einsum("bthwpqc->bcthpwq", x).reshape(b, -1, t, side, side)
