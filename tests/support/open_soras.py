"""Open-Sora 2 in plain PyTorch, a function of a state dict under its authors' names, and one input for either form.

Written from the recipe (Flux's equations; arXiv:2503.09642) for rows of one size: every text token counts.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Grid, TokenLayout
from tubelet.models import OpenSoraTransformer
from tubelet.patchify import fold, unfold

KINDS = ("text", "given", "guided", "interleaved", "unbiased")
"""Text alone; with given frames; distilled with a guidance strength; the other pairs of features; q, k, v unbiased."""

State = dict[str, Tensor]


def sizes(kind: str, seed: int = 0) -> dict[str, Any]:
    """A config of theirs with drawn sizes."""
    draw = random.Random(seed)
    axes, heads, patch = draw.choice([(4, 4, 4), (2, 6, 4), (4, 2, 2)]), draw.randint(1, 3), draw.choice([1, 2])
    return {
        "in_channels": 3 * patch**2,
        "vec_in_dim": draw.choice([3, 7]),
        "context_in_dim": draw.choice([6, 10]),
        "hidden_size": heads * sum(axes),
        "mlp_ratio": draw.choice([1.5, 2.0]),
        "num_heads": heads,
        "depth": draw.randint(1, 2),
        "depth_single_blocks": draw.randint(1, 2),
        "axes_dim": list(axes),
        "theta": draw.choice([10000.0, 100.0]),
        "qkv_bias": kind != "unbiased",
        "guidance_embed": kind == "guided",
        "cond_embed": kind == "given",
        "fused_qkv": False,
        "use_liger_rope": kind != "interleaved",
        "patch_size": patch,
    }


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a checkpoint."""
    d, channels = c["hidden_size"], c["in_channels"]
    m, e = int(d * c["mlp_ratio"]), d // c["num_heads"]
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, into: int, outof: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = (into, outof)
        if bias:
            out[f"{name}.bias"] = (into,)

    linear("img_in", d, channels)
    linear("txt_in", d, c["context_in_dim"])
    if c["cond_embed"]:
        linear("cond_in", d, channels + c["patch_size"] ** 2)
    inputs = {"time_in": 256, "vector_in": c["vec_in_dim"], **({"guidance_in": 256} if c["guidance_embed"] else {})}
    for name, width in inputs.items():
        linear(f"{name}.in_layer", d, width)
        linear(f"{name}.out_layer", d, d)
    for i in range(c["depth"]):
        for side in ("img", "txt"):
            at = f"double_blocks.{i}.{side}"
            linear(f"{at}_mod.lin", 6 * d, d)
            for x in "qkv":
                linear(f"{at}_attn.{x}_proj", d, d, c["qkv_bias"])
            linear(f"{at}_attn.proj", d, d)
            out |= {f"{at}_attn.norm.{x}_norm.scale": (e,) for x in ("query", "key")}
            linear(f"{at}_mlp.0", m, d)
            linear(f"{at}_mlp.2", d, m)
    for i in range(c["depth_single_blocks"]):
        at = f"single_blocks.{i}"
        linear(f"{at}.modulation.lin", 3 * d, d)
        for x, width in (("q_proj", d), ("k_proj", d), ("v_mlp", d + m)):
            linear(f"{at}.{x}", width, d)
        out |= {f"{at}.norm.{x}_norm.scale": (e,) for x in ("query", "key")}
        linear(f"{at}.linear2", d, d + m)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    linear("final_layer.linear", channels, d)
    return out


def checkpoint(c: dict[str, Any], seed: int = 0) -> State:
    """Every tensor random, in float64."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64) * (0.3 if len(shape) > 1 else 1.0)
        for name, shape in shapes(c).items()
    }


def dense(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def sinusoid(s: State, name: str, t: Tensor) -> Tensor:
    """1000·t at 128 frequencies, cosines first, through two layers."""
    angles = 1000 * t.double()[:, None] * torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
    return embedder(s, name, torch.cat([angles.cos(), angles.sin()], 1).to(s["img_in.weight"].dtype))


def embedder(s: State, name: str, x: Tensor) -> Tensor:
    return dense(s, f"{name}.out_layer", F.silu(dense(s, f"{name}.in_layer", x)))


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms(x: Tensor, scale: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).to(x.dtype) * scale


def angles_of(c: dict[str, Any], ids: Tensor) -> Tensor:
    """(n, head_dim / 2): each axis's place times its frequencies."""
    parts = [
        ids[:, i : i + 1] * c["theta"] ** (-torch.arange(0, width, 2).double() / width)
        for i, width in enumerate(c["axes_dim"])
    ]
    return torch.cat(parts, 1)


def turned(c: dict[str, Any], x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of (b, heads, n, e): halves of a head, or neighbours, as complex numbers."""
    cells = "(two e)" if c["use_liger_rope"] else "(e two)"
    wide = rearrange(x if x.dtype == torch.float64 else x.float(), f"b h n {cells} -> b h n e two", two=2)
    spun = torch.view_as_complex(wide.double().contiguous()) * torch.polar(torch.ones_like(angles), angles)
    return rearrange(torch.view_as_real(spun), f"b h n e two -> b h n {cells}").to(x.dtype)


def heads(s: State, c: dict[str, Any], norm: str, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=c["num_heads"]) for x in (q, k, v))
    return [rms(q, s[f"{norm}.query_norm.scale"]), rms(k, s[f"{norm}.key_norm.scale"]), v]


def attention(c: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
    scores = turned(c, q, angles) @ turned(c, k, angles).mT / math.sqrt(q.shape[-1])
    return rearrange(scores.softmax(-1) @ v, "b h n e -> b n (h e)")


def parts_of(s: State, name: str, vec: Tensor, count: int) -> tuple[Tensor, ...]:
    return dense(s, name, F.silu(vec))[:, None].chunk(count, -1)


def forward(s: State, c: dict[str, Any], img: Tensor, ids: Tensor, txt: Tensor, **given: Any) -> Tensor:
    """Patches (b, n, in_channels) at places ``ids`` (n, 3), text (b, m, e); ``t``, ``y``, ``guidance``, ``cond``."""
    vec = sinusoid(s, "time_in", given["t"]) + embedder(s, "vector_in", given["y"])
    if c["guidance_embed"]:
        vec = vec + sinusoid(s, "guidance_in", given["guidance"])
    x, m = dense(s, "img_in", img), txt.shape[1]
    if c["cond_embed"]:
        x = x + dense(s, "cond_in", given["cond"])
    txt, angles = dense(s, "txt_in", txt), angles_of(c, torch.cat([torch.zeros(m, 3).double(), ids]))
    streams = {"txt": txt, "img": x}
    for i in range(c["depth"]):
        at = f"double_blocks.{i}"
        mods = {side: parts_of(s, f"{at}.{side}_mod.lin", vec, 6) for side in streams}
        qkv = {}
        for side, h in streams.items():
            h = layer_norm(h) * (1 + mods[side][1]) + mods[side][0]
            projected = [dense(s, f"{at}.{side}_attn.{x}_proj", h) for x in "qkv"]
            qkv[side] = heads(s, c, f"{at}.{side}_attn.norm", *projected)
        joined = [torch.cat(pair, 2) for pair in zip(qkv["txt"], qkv["img"], strict=True)]
        out = attention(c, *joined, angles)
        for side, update in (("txt", out[:, :m]), ("img", out[:, m:])):
            _, _, gate, shift, scale, last = mods[side]
            h = streams[side] + gate * dense(s, f"{at}.{side}_attn.proj", update)
            inner = dense(s, f"{at}.{side}_mlp.0", layer_norm(h) * (1 + scale) + shift)
            streams[side] = h + last * dense(s, f"{at}.{side}_mlp.2", F.gelu(inner, approximate="tanh"))
    h = torch.cat([streams["txt"], streams["img"]], 1)
    for i in range(c["depth_single_blocks"]):
        at = f"single_blocks.{i}"
        shift, scale, gate = parts_of(s, f"{at}.modulation.lin", vec, 3)
        inner = layer_norm(h) * (1 + scale) + shift
        v, mlp = dense(s, f"{at}.v_mlp", inner).tensor_split([c["hidden_size"]], -1)
        q, k = dense(s, f"{at}.q_proj", inner), dense(s, f"{at}.k_proj", inner)
        out = attention(c, *heads(s, c, f"{at}.norm", q, k, v), angles)
        h = h + gate * dense(s, f"{at}.linear2", torch.cat([out, F.gelu(mlp, approximate="tanh")], -1))
    shift, scale = parts_of(s, "final_layer.adaLN_modulation.1", vec, 2)
    return dense(s, "final_layer.linear", layer_norm(h[:, m:]) * (1 + scale) + shift)


@dataclass
class Question:
    """Latents (b, c, t, h, w), noise levels in [0, 1], text, pooled text; a mask before given latents; guidance."""

    config: dict[str, Any]
    latents: Tensor
    t: Tensor
    text: Tensor
    pooled: Tensor
    given: Tensor | None
    guidance: Tensor | None

    @property
    def grid(self) -> Grid:
        side = self.config["patch_size"]
        _, _, t, h, w = self.latents.shape
        return Grid(t, h // side, w // side)

    def theirs(self, state: State) -> Tensor:
        """The transcription's answer (b, c, t, h, w) in the dtype of its weights."""
        dtype, side, grid = state["img_in.weight"].dtype, self.config["patch_size"], self.grid
        cells = "b c t (h p) (w q) -> b (t h w) (c p q)"
        packed = [
            None if x is None else rearrange(x.to(dtype), cells, p=side, q=side) for x in (self.latents, self.given)
        ]
        places = torch.cartesian_prod(*(torch.arange(n).double() for n in (grid.t, grid.h, grid.w)))
        others = {"t": self.t, "y": self.pooled.to(dtype), "guidance": self.guidance, "cond": packed[1]}
        out = forward(state, self.config, packed[0], places, self.text.to(dtype), **others)
        sides = {"t": grid.t, "h": grid.h, "w": grid.w}
        return rearrange(out, "b (t h w) (c p q) -> b c t (h p) (w q)", **sides, p=side, q=side)

    def ours(self, model: OpenSoraTransformer) -> Tensor:
        """Our answer in the same form."""
        dtype, patch, layout = model.project.weight.dtype, model.config.patch, TokenLayout.dense(2, self.grid)
        x, given = (None if y is None else fold(y.to(dtype), patch) for y in (self.latents, self.given))
        words = TokenLayout.padded([self.text.shape[1]] * 2, self.text.shape[1])
        t, text, pooled = layout.rows(self.t, "sample"), self.text.to(dtype), self.pooled.to(dtype)
        return unfold(model(x, t, text, layout, words, pooled, self.guidance, given), self.grid, patch)


def question(c: dict[str, Any], seed: int = 0) -> Question:
    """Random inputs in float64 that fit a config."""
    real: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    side = c["patch_size"]
    lead = (3, 2 * side, 3 * side)
    return Question(
        c,
        torch.randn(2, c["in_channels"] // side**2, *lead, **real),
        torch.tensor([0.003, 0.5], dtype=torch.float64),
        torch.randn(2, 5, c["context_in_dim"], **real),
        torch.randn(2, c["vec_in_dim"], **real),
        torch.randn(2, c["in_channels"] // side**2 + 1, *lead, **real) if c["cond_embed"] else None,
        torch.tensor([6.0, 1.5], dtype=torch.float64) if c["guidance_embed"] else None,
    )
