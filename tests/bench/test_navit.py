"""NaViT against vit-pytorch's with the same weights, and the benchmark's ways to run both."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import error
from torch import Tensor

from tubelet.layout import TokenLayout
from tubelet.models import NaViTConfig
from tubelet.patchify import fold_packed

ROOT = Path(__file__).parents[2]
IMAGES = NaViTConfig(dim=32, depth=2, heads=2, mlp_dim=48, grid=(1, 6, 8), patch=(1, 4, 4), classes=7)
VIDEOS = replace(IMAGES, grid=(4, 6, 8), patch=(2, 4, 4))
GRIDS = [(1, 3, 4), (3, 2, 2), (2, 6, 8), (4, 1, 1), (1, 1, 7)]
KINDS = ("na_vit", "na_vit_nested_tensor", "na_vit_nested_tensor_3d")

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    found = importlib.import_module("benchmarks.navit_peers")
    if not found.installed():
        pytest.skip("vit-pytorch is not installed: pip install --no-deps vit-pytorch")
    return found


def asked(kind: str) -> tuple[NaViTConfig, list[Tensor], list[Tensor]]:
    """The sizes, our samples and theirs, which have no frames where they are images."""
    draw, video = torch.Generator().manual_seed(0), kind.endswith("3d")
    ours = [
        torch.randn(3, 2 * t if video else 1, 4 * h, 4 * w, generator=draw, dtype=torch.float64) for t, h, w in GRIDS
    ]
    return (VIDEOS, ours, ours) if video else (IMAGES, ours, [sample[:, 0] for sample in ours])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_vit_pytorch(kind: str, seed: int, peers: Any) -> None:
    """Packed on one axis, in float64 and float32."""
    config, samples, given = asked(kind)
    theirs = peers.peer(kind, config, seed)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        ours = peers.matched(kind, theirs, config, dtype)
        patches, grids = fold_packed([sample.to(dtype) for sample in samples], config.patch)
        expected = theirs.to(dtype)([sample.to(dtype) for sample in given])
        assert error(ours(patches, TokenLayout.packed(grids)), expected) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_vit_pytorch(kind: str, peers: Any) -> None:
    """In float64; no gradient of theirs goes from a nested tensor to what it was made of, embedding and positions."""
    config, samples, given = asked(kind)
    theirs = peers.peer(kind, config).double()
    ours = peers.matched(kind, theirs, config, torch.float64)
    patches, grids = fold_packed(samples, config.patch)
    cotangent = torch.randn(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours(patches, TokenLayout.packed(grids)).backward(cotangent)
    theirs(given).backward(cotangent)
    own, grads = ({name: p.grad for name, p in model.named_parameters()} for model in (ours, theirs))
    for name, other in same_places(kind).items():
        assert error(own[name], grads[other]) <= 1e-10, name


def same_places(kind: str) -> dict[str, str]:
    """Our names and theirs of weights that are the same numbers."""
    dense = kind == "na_vit"
    q, out = ("to_q", "to_out.0") if dense else ("to_queries", "to_out")
    pairs = {"head.weight": "mlp_head.1.weight", "pool.attention.out_proj.weight": f"attn_pool.{out}.weight"}
    if dense:
        pairs |= {"positions.height": "pos_embed_height", "embed.1.bias": "to_patch_embedding.1.bias"}
    for i in range(2):
        block, layer = f"blocks.{i}.branches", f"transformer.layers.{i}"
        pairs |= {f"{block}.0.inner.q_proj.weight": f"{layer}.0.{q}.weight"}
        pairs |= {f"{block}.0.inner.out_proj.weight": f"{layer}.0.{out}.weight"}
        pairs |= {f"{block}.1.inner.up.weight": f"{layer}.1.1.weight"}
        pairs |= {f"{block}.1.inner.down.bias": f"{layer}.1.4.bias"}
    return pairs


def test_every_way_of_the_benchmark_is_right(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("benchmarks.navit")
    measure = importlib.import_module("benchmarks").measure
    sizes = suite.sizes()
    tokens = sorted(h * w for h, w in sizes)
    assert len(sizes) == 32 and (tokens[0], tokens[-1]) == (16, 252)
    monkeypatch.setattr(suite, "sizes", lambda: [(h // 4, w // 4) for h, w in sizes[::3]])
    monkeypatch.setattr(suite, "CLIPS", [(1, 2, 2), (2, 1, 3)])
    monkeypatch.setattr(suite, "IMAGES", replace(suite.IMAGES, dim=32, depth=1, heads=2, mlp_dim=32, classes=9))
    monkeypatch.setattr(suite, "VIDEOS", replace(suite.VIDEOS, dim=32, depth=1, heads=2, mlp_dim=32, classes=9))
    groups = list(suite.cases("cpu"))
    assert [len(group) for group in groups] == [14, 3, 3]
    for group in groups:
        results = measure(group, 2)
        assert all(result.right for result in results), [(result.name, result.error) for result in results]
