"""Counts of real models against papers' numbers, closed formulas, and PyTorch's own counter on explicit products."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tubelet import models, planner
from tubelet.attention import Attention, CrossAttention, HeadSplit, Joint, Spatial, Temporal, Window, attend
from tubelet.layout import Grid, TokenInfo, TokenLayout
from tubelet.models import DiT, DiTConfig, dit_adaln, dit_adaln_zero, dit_cross_attention, dit_in_context
from tubelet.planner import count, count_parameters, counting, forward_inputs

SIZES = {"s": models.dit_s, "b": models.dit_b, "l": models.dit_l, "xl": models.dit_xl}
DIT = {
    ("s", 8): (0.36, 33_148_160), ("s", 4): (1.41, 32_945_024), ("s", 2): (6.06, 32_963_360),
    ("b", 8): (1.42, 130_881_536), ("b", 4): (5.56, 130_475_648), ("b", 2): (23.01, 130_512_416),
    ("l", 8): (5.01, 458_594_816), ("l", 4): (19.70, 458_053_760), ("l", 2): (80.71, 458_102_816),
    ("xl", 8): (7.39, 675_683_072), ("xl", 4): (29.05, 675_074_432), ("xl", 2): (118.64, 675_129_632),
}  # fmt: skip
"""The paper's "Gflops" at 256 pixels, and parameters with the fixed positions, which are none of ours."""
ABLATION = {
    dit_in_context: (119.37, 449e6),
    dit_cross_attention: (137.62, 598e6),
    dit_adaln: (118.56, 600e6),
    dit_adaln_zero: (118.64, 675e6),
}
UVIT = {
    "uvit_cifar10": 12.20, "uvit_celeba64": 12.21, "uvit_m_imagenet64": 35.24, "uvit_l_imagenet64": 76.47,
    "uvit_l_imagenet256": 76.46, "uvit_h_imagenet256": 133.2, "uvit_l_imagenet512": 76.5, "uvit_h_imagenet512": 133.2,
    "uvit_coco": 16.2, "uvit_coco_deep": 21.2,
}  # fmt: skip


def dit_formula(config: DiTConfig, tokens: int) -> int:
    """Products alone; the paper's counter has ``(2N + 1)·T·d`` of the norms beside them."""
    d, p2 = config.dim, config.patch[1] ** 2
    blocks = config.depth * (12 * tokens * d * d + 2 * tokens**2 * d + 6 * d * d)
    return blocks + tokens * p2 * 4 * d + 256 * d + d * d + tokens * d * p2 * 8 + 2 * d * d


def counted(config: DiTConfig, side: int, conditioning=dit_adaln_zero) -> planner.Counts:
    model = DiT(config, conditioning=conditioning, device="meta")
    return count(model, **forward_inputs(model, Grid(1, side, side)))


@pytest.mark.parametrize(("size", "patch"), DIT)
def test_all_twelve_sizes_of_dit(size: str, patch: int) -> None:
    config, side = SIZES[size](patch), 32 // patch
    counts, (paper, parameters) = counted(config, side), DIT[size, patch]
    assert counts.macs == dit_formula(config, side**2)
    assert counts.macs == pytest.approx(paper * 1e9, rel=0.006)
    assert counts.parameters + side**2 * config.dim == parameters


def test_dit_at_512_pixels() -> None:
    assert counted(models.dit_xl(), 32).macs == pytest.approx(524.60e9, rel=1e-3)


@pytest.mark.parametrize("conditioning", ABLATION, ids=lambda each: each.__name__)
def test_the_rows_of_the_ablation(conditioning) -> None:
    counts, (macs, parameters) = counted(models.dit_xl(), 16, conditioning), ABLATION[conditioning]
    assert counts.macs == pytest.approx(macs * 1e9, rel=1e-3)
    assert counts.parameters == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("name", UVIT)
def test_uvit(name: str) -> None:
    digits = 4 if UVIT[name] < 100 and name not in ("uvit_l_imagenet512", "uvit_coco", "uvit_coco_deep") else 3
    macs = planner.plan(name).counts.macs / 1e9
    assert float(f"{macs:.{max(digits, 3 if macs < 100 else 4)}g}") == UVIT[name]


VIVIT = {
    "joint": (455.2, 451.5, 88.95), "factorised_encoder": (284.4, 283.3, 115.06),
    "factorised_self_attention": (372.3, 371.1, 117.32), "factorised_dot_product": (277.1, 276.2, 88.95),
    "average": (283.9, 282.9, 86.70),
}  # fmt: skip
"""The paper's "GFLOPs" of B/16x2, those of its formula, and millions of parameters."""


@pytest.mark.parametrize("variant", VIVIT)
def test_vivit(variant: str) -> None:
    model = models.ViViT(models.vivit_b(variant), device="meta")
    counts, (paper, formula, millions) = count(model, **forward_inputs(model, Grid(16, 14, 14))), VIVIT[variant]
    assert counts.macs / 1e9 == pytest.approx(paper, rel=0.01)
    assert counts.macs / 1e9 == pytest.approx(formula, rel=5e-4)
    assert counts.parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_windows_with_a_bias_are_counted_by_their_keys() -> None:
    """W.A.L.T alternates windows of a frame and of 5×8×8; the backend that serves a bias would multiply all pairs."""
    config = models.walt_l(classes=101)
    model = models.Walt(config, device="meta")
    counts = count(model, **forward_inputs(model, Grid(5, 16, 16)))
    assert counts.attention == 5 * 16 * 16 * 2 * 1024 * (12 * 16 * 16 + 12 * 5 * 8 * 8)


TINY = {
    "AllegroTransformer": models.AllegroConfig(dim=48, depth=2, heads=2, text_dim=8),
    "CogVideoXTransformer": models.CogVideoXConfig(dim=64, depth=2, heads=2, text_dim=8),
    "CosmosTransformer": models.CosmosConfig(dim=48, depth=2, heads=2, text_dim=8, known_channel=True),
    "DiT": DiTConfig(dim=48, depth=2, heads=2, mlp_dim=96),
    "HunyuanVideoTransformer": models.HunyuanVideoConfig(
        dim=48, depth=2, single_depth=3, heads=2, rope_axes=(8, 8, 8), text_dim=8, pooled_dim=5, guidance=True
    ),
    "LTXTransformer": models.LTXConfig(dim=48, depth=2, heads=2, text_dim=8),
    "LatteTransformer": models.LatteConfig(dim=48, depth=4, heads=2, text_dim=8, sample_size=8),
    "MochiTransformer": models.MochiConfig(dim=48, depth=2, heads=2, text_width=24, text_dim=8),
    "UViT": models.UViTConfig(dim=48, depth=4, heads=2, mlp_dim=96, grid=(2, 3, 4), classes=5),
    "WanTransformer": models.WanConfig(
        dim=48, depth=2, heads=2, mlp_dim=96, text_dim=8, given_channels=3, image_dim=8
    ),
}  # fmt: skip


def on_cpu(inputs: dict[str, object], grid: Grid, text: int) -> dict[str, object]:
    """The same inputs with numbers."""
    layouts = {
        "layout": TokenLayout.dense(1, grid).on("cpu"),
        "text_layout": TokenLayout.padded([text], text).on("cpu"),
        "image_layout": TokenLayout.padded([257], 257).on("cpu"),
    }
    found: dict[str, object] = {name: layouts[name] for name in inputs if name in layouts}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            found[name] = torch.zeros(value.shape, dtype=value.dtype)
    return found | {"t": layouts["layout"].rows(torch.full((1,), 0.5), "sample")}


@pytest.mark.graph  # the runtime shape checks would not know tensors of PyTorch's counter
@pytest.mark.parametrize("name", TINY)
def test_counts_are_those_of_explicit_products_on_the_cpu(name: str) -> None:
    kind, grid = getattr(models, name), Grid(2, 3, 4)
    on_meta = kind(TINY[name], device="meta")
    inputs = forward_inputs(on_meta, grid, text=5)
    counts = count(on_meta, **inputs)
    model = kind(TINY[name])
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
        if isinstance(getattr(module, "pattern", None), Spatial | Temporal):
            module.pattern = Joint()
    numbers = on_cpu(inputs, grid, 5)
    joint = count(model, **numbers)
    with FlopCounterMode(display=False) as counter:
        model(**numbers)
    assert 2 * joint.macs == counter.get_total_flops()
    assert counts.dense == joint.dense
    assert counts.attention == joint.attention if name != "LatteTransformer" else counts.attention < joint.attention
    assert counts.parameters == count_parameters(model)


class Backwards:
    """A user's pattern: no spec, no group; each token attends those before it."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: torch.Tensor) -> torch.Tensor:
        return (q.coords[..., 2] >= k.coords[..., 2]) & (head >= 0)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("pattern", "pairs"),
    [
        (Joint(), 2 * 24**2),
        (Spatial(), 2 * 24 * 12),
        (Temporal(), 2 * 24 * 2),
        (Window((2, 3, 2)), 2 * 24 * 12),
        (HeadSplit((Spatial(), Temporal()), (1, 1)), 24 * 12 + 24 * 2),
        (Backwards(), 2 * 2 * 2 * 3 * 3 * (4 * 5 // 2)),
    ],
)
def test_attention_is_counted_by_pairs(device: str, pattern, pairs: int) -> None:
    layout = TokenLayout.dense(1, Grid(2, 3, 4))
    q, v = torch.zeros(1, 24, 2, 8, device=device), torch.zeros(1, 24, 2, 5, device=device)

    class Only(nn.Module):
        def forward(self) -> torch.Tensor:
            return attend(q, q, v, pattern=pattern, layout=layout)

    counts = count(Only())
    assert (counts.dense, counts.attention) == (0, pairs * 13)


def test_padding_is_projected_but_not_attended() -> None:
    layout = TokenLayout.packed([Grid(1, 2, 3), Grid(2, 1, 2)], capacity=32)
    counts = count(Attention(16, heads=2, device="meta"), torch.empty(32, 16, device="meta"), layout.on("meta"))
    assert (counts.dense, counts.attention) == (4 * 32 * 16**2, 2 * (6**2 + 4**2) * 16)


def test_cross_attention_counts_each_sample_with_its_own_text() -> None:
    video, text = TokenLayout.packed([Grid(1, 2, 3), Grid(2, 1, 2)]), TokenLayout.packed([None, None], [5, 1])
    module = CrossAttention(16, heads=2, context_dim=4, device="meta")
    inputs = torch.empty(10, 16, device="meta"), torch.empty(6, 4, device="meta")
    counts = count(module, *inputs, video.on("meta"), text.on("meta"))
    assert counts.dense == 2 * 10 * 16 * 16 + 2 * 6 * 4 * 16
    assert counts.attention == 2 * (6 * 5 + 4 * 1) * 16


def test_attention_of_pytorch_is_counted_on_every_device() -> None:
    class Theirs(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    counts = [
        count(Theirs(), torch.zeros(1, 2, 6, 8, device=device), torch.zeros(1, 2, 5, 8, device=device))
        for device in ("meta", "cpu")
    ]
    assert [(each.dense, each.attention) for each in counts] == [(0, 2 * 6 * 5 * 2 * 8)] * 2


def test_attention_inside_a_function_of_pytorch_is_not_lost() -> None:
    module = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.zeros(1, 6, 16)
    assert count(module, x, x, x, need_weights=False).macs == 4 * 6 * 16**2 + 2 * 6 * 6 * 16


def test_parts_add_up_and_shared_weights_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.scale = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)) @ self.scale

    counts = count(Tied(), torch.ones(3, 4))
    assert [(part.name, part.parameters, part.dense) for part in counts.parts] == [
        ("", 16, 48), ("first", 20, 48), ("second", 4, 48),
    ]  # fmt: skip
    assert counts.parameters == count_parameters(Tied()) == 40
    with pytest.raises(KeyError, match="third"):
        counts["third"]


def test_a_model_runs_with_its_numbers_off_meta() -> None:
    seen = []
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    x = torch.ones(1, 2)
    count(model, x)
    assert torch.equal(seen[0], model(x))
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("name", [*TINY, "VideoDiT"])
def test_equal_blocks_are_counted_as_often_as_they_occur(name: str, monkeypatch) -> None:
    config = TINY.get(name) or models.VideoDiTConfig(latent_channels=4, dim=64, depth=3, heads=2, text_dim=8)
    model = getattr(models, name)(config, device="meta")
    inputs = forward_inputs(model, Grid(2, 3, 4), text=5)
    once = count(model, **inputs)
    monkeypatch.setattr(counting, "repeats", lambda *_: nullcontext())
    assert once == count(model, **inputs)


def test_blocks_of_other_patterns_are_no_repeats() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            patterns = (Spatial(), Temporal(), Spatial(), Joint())
            self.blocks = nn.ModuleList(Attention(16, 2, pattern=each, device="meta") for each in patterns)

        def forward(self, x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
            for block in self.blocks:
                x = block(x, layout)
            return x

    model = Stack()
    counts = count(model, torch.empty(1, 24, 16, device="meta"), TokenLayout.dense(1, Grid(2, 3, 4)))
    assert counts.attention == 2 * 24 * (12 + 2 + 12 + 24) * 16
    assert all("forward" not in vars(block) for block in model.blocks)


class Named(nn.Module):
    """PyTorch's attention with its tensors given by name, by place, and both."""

    def __init__(self, named: int) -> None:
        super().__init__()
        self.named = named

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        given = {"query": q, "key": k, "value": v}
        by_place = list(given.values())[: 3 - self.named]
        return F.scaled_dot_product_attention(*by_place, **dict(list(given.items())[3 - self.named :]))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("named", range(4))
def test_attention_by_names_is_counted(named: int, device: str) -> None:
    q, k, v = (torch.zeros(2, 3, n, d, device=device) for n, d in ((5, 4), (7, 4), (7, 6)))
    counts = count(Named(named), q, k, v)
    assert (counts.attention, counts.dense) == (2 * 3 * 5 * 7 * (4 + 6), 0)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        pairs = nn.ModuleList([nn.Linear(2, 3, device="meta"), nn.Linear(3, 2, device="meta")])
        self.towers = nn.ModuleDict({"one": nn.Linear(4, 2, device="meta"), "pairs": pairs})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.towers["one"](x)
        for linear in self.towers["pairs"]:  # type: ignore[union-attr]
            x = linear(x)
        return x


def test_a_dictionary_of_modules_is_a_part() -> None:
    counts = count(Towers(), torch.zeros(5, 4, device="meta"))
    assert [part.name for part in counts.parts] == ["towers"]
    assert counts["towers"].dense == 5 * (4 * 2 + 2 * 3 + 3 * 2)
