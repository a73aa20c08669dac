"""vit-pytorch's NaViT and ours with the same weights.

Its package imports torchvision, of which NaViT needs nothing: install it by ``pip install --no-deps vit-pytorch``; its
modules are loaded here one by one. It differs from the paper by norms around the embedding, biases in the embedding and
the MLPs, and no MLP behind the pooling; ``na_vit`` also by a residual connection around the pooling and by scores that
are not divided by the root of the head's width. All of it is a config of ours, or goes into weights.
"""

import importlib.machinery
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.models import NaViT, NaViTConfig
from tubelet.norms import RMSNorm

__all__ = ["KINDS", "installed", "matched", "peer"]

KINDS = ("na_vit", "na_vit_nested_tensor", "na_vit_nested_tensor_3d")
"""The package's modules: padded packs under a mask, and nested tensors of images and of videos."""


def installed() -> bool:
    """Whether vit-pytorch is there."""
    return importlib.util.find_spec("vit_pytorch") is not None


def _module(kind: str) -> ModuleType:
    """One module of the package, without the package's own imports."""
    package = importlib.util.find_spec("vit_pytorch")
    if package is None or package.origin is None:
        raise SystemExit("the suite of NaViT needs vit-pytorch: pip install --no-deps vit-pytorch")
    file = Path(package.origin).parent / f"{kind}.py"
    loader = importlib.machinery.SourceFileLoader(f"_vit_pytorch_{kind}", str(file))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def peer(kind: str, config: NaViTConfig, seed: int = 0) -> nn.Module:
    """vit-pytorch's model of the sizes of ours, with random weights, every one of them; in eval mode."""
    (pt, p, _), (t, h, w) = config.patch, config.grid
    sizes: dict[str, Any] = {
        "image_size": (h * p, w * p), "patch_size": p, "num_classes": config.classes, "dim": config.dim,
        "depth": config.depth, "heads": config.heads, "dim_head": config.dim // config.heads,
        "mlp_dim": config.mlp_dim, "channels": config.channels,
    }  # fmt: skip
    if kind == KINDS[2]:
        sizes |= {"max_frames": t * pt, "frame_patch_size": pt, "num_registers": 0}
    model: nn.Module = _module(kind).NaViT(**sizes)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 and "pos_embed" not in name else 0.1
        nn.init.normal_(parameter, mean=float("gamma" in name or "norm" in name), std=std, generator=draw)
        if name.endswith(("q_norm.gamma", "k_norm.gamma")):  # ours have one for all heads
            parameter.data.copy_(parameter.data[:1].clone().expand_as(parameter))
        if name.endswith("q_norm.gamma"):  # a softmax of their undivided scores is nearly a choice, and rounds badly
            parameter.data /= math.sqrt(parameter.shape[-1])
    return model.eval()


def matched(kind: str, theirs: nn.Module, config: NaViTConfig, dtype: torch.dtype = torch.float32) -> NaViT:
    """Our model with the weights of theirs, and their epsilons."""
    qk_norm = "rms" if kind == KINDS[0] else "layer"
    sizes = {"qk_norm": qk_norm, "act": "gelu", "bias": True, "patch_norms": True, "pool_mlp": False, "eps": 1e-5}
    model = NaViT(NaViTConfig(**{**vars(config), **sizes}), dtype=dtype).eval()
    given = {name: value.to(torch.float64) for name, value in theirs.state_dict().items()}
    mapped = dict(_mapped(given, config, kind))
    state = {name: mapped.pop(name, torch.zeros_like(value)) for name, value in model.state_dict().items()}
    assert not mapped, sorted(mapped)
    model.load_state_dict(state)
    for norm in model.modules():
        if isinstance(norm, RMSNorm):
            norm.eps = 0.0
    return model


def _mapped(given: Mapping[str, Tensor], config: NaViTConfig, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Our names with their numbers; what is not named, biases that they lack, is zero."""
    gain = "gamma" if kind == KINDS[0] else "weight"
    yield "embed.0.weight", _reordered(given[f"to_patch_embedding.0.{gain}"], config)
    yield "embed.1.weight", _reordered(given["to_patch_embedding.1.weight"], config)
    yield "embed.1.bias", given["to_patch_embedding.1.bias"]
    yield "embed.2.weight", given[f"to_patch_embedding.2.{gain}"]
    if kind != KINDS[0]:
        for at in (0, 2):
            bias = given[f"to_patch_embedding.{at}.bias"]
            yield f"embed.{at}.bias", _reordered(bias, config) if at == 0 else bias
    axes = {"time": "frame", "height": "height", "width": "width"}
    for ours, theirs in axes.items():
        if f"pos_embed_{theirs}" in given:
            yield f"positions.{ours}", given[f"pos_embed_{theirs}"]
    for i in range(config.depth):
        attention, mlp, block = f"transformer.layers.{i}.0", f"transformer.layers.{i}.1", f"blocks.{i}.branches"
        yield f"{block}.0.norm.weight", given[f"{attention}.norm.{gain}"]
        yield from _attention(given, attention, f"{block}.0.inner", kind)
        yield f"{block}.1.norm.weight", given[f"{mlp}.0.{gain}"]
        for at, ours in ((1, "up"), (4, "down")):
            for part in ("weight", "bias"):
                yield f"{block}.1.inner.{ours}.{part}", given[f"{mlp}.{at}.{part}"]
    yield "final_norm.weight", given[f"transformer.norm.{gain}"]
    query = given["attn_pool_queries"]
    normed = F.layer_norm(query, query.shape) * given[f"attn_pool.norm.{gain}"]
    yield "pool.queries", normed[None]
    yield from _attention(given, "attn_pool", "pool.attention", kind)
    if kind == KINDS[0]:  # a residual connection
        yield "pool.attention.out_proj.bias", query
    yield "pool_norm.weight", given[f"mlp_head.0.{gain}"]
    yield "head.weight", given["mlp_head.1.weight"]


def _attention(given: Mapping[str, Tensor], theirs: str, ours: str, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Projections and norms; a factor of the scores that we have and they have not goes into the norm of q."""
    if kind == KINDS[0]:
        k, v = given[f"{theirs}.to_kv.weight"].chunk(2)
        names = {"q": given[f"{theirs}.to_q.weight"], "k": k, "v": v, "out": given[f"{theirs}.to_out.0.weight"]}
        q_norm, k_norm = (given[f"{theirs}.{name}_norm.gamma"][0, 0] for name in "qk")
        q_norm = q_norm * math.sqrt(len(q_norm))
    else:
        long = {"q": "queries", "k": "keys", "v": "values", "out": "out"}
        names = {name: given[f"{theirs}.to_{each}.weight"] for name, each in long.items()}
        q_norm, k_norm = (given[f"{theirs}.{name}_norm.weight"] for name in ("query", "key"))
    for name, weight in names.items():
        yield f"{ours}.{name}_proj.weight", weight
    yield f"{ours}.q_norm.weight", q_norm
    yield f"{ours}.k_norm.weight", k_norm


def _reordered(weight: Tensor, config: NaViTConfig) -> Tensor:
    """The last axis from their order of a patch's numbers, channels first, to ours, channels last."""
    folded = weight.unflatten(-1, (config.channels, *config.patch))
    return folded.movedim(-4, -1).flatten(-4)
