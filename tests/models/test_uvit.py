"""U-ViT: its sizes, its long skips, the trunk against diffusers', and what the published code cannot do."""

import dataclasses
from typing import Any

import pytest
import torch
import uvits
from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UTransformer2DModel
from parity import error, in_bfloat16, randomise, size
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet import models
from tubelet.attention import Attention, FrameCausal, Joint, Window
from tubelet.layout import Grid, JointIndex, Rows, TokenLayout
from tubelet.models import PatchConv, UViT, UViTConfig
from tubelet.norms import LayerNorm
from tubelet.patchify import fold, fold_packed
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
GRIDS, LABELS, TEXT = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], torch.tensor([4, 1, 0]), [2, 0, 3]
BOUNDS = {"grid": (3, 2, 3), "patch": (1, 1, 2)}
LEVELS = torch.tensor([0.2, 0.5, 0.9], **F64)
PUBLISHED = {
    # parameters, billions of multiply-adds
    "uvit_cifar10": (44_255_328, 12.20), "uvit_celeba64": (44_292_228, 12.21),
    "uvit_m_imagenet64": (130_940_292, 35.24), "uvit_l_imagenet64": (286_827_652, 76.47),
    "uvit_l_imagenet256": (286_763_172, 76.46), "uvit_h_imagenet256": (500_832_016, 133.2),
    "uvit_l_imagenet512": (286_861_524, 76.5), "uvit_h_imagenet512": (500_942_656, 133.2),
    "uvit_coco": (44_692_644, 16.2), "uvit_coco_deep": (58_345_636, 21.2),
}  # fmt: skip


def multiply_adds(config: UViTConfig) -> float:
    """Billions for one image of the size of the positions, counted where they happen."""
    model, total = UViT(config, device="meta"), 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, Attention):
            total += 2 * inputs[0].shape[-2] * inputs[0].numel()  # scores, and the sum of values
        elif isinstance(module, LayerNorm):
            total += out.numel()
        elif isinstance(module, PatchConv):
            total += out.numel() * 9 * module.conv.in_channels

    for module in model.modules():
        module.register_forward_hook(count)
    layout, meta = TokenLayout.dense(1, Grid(*config.grid)).on("meta"), {"device": "meta"}
    given: dict[str, Any] = {}
    if config.classes is not None:
        given["labels"] = torch.zeros(1, dtype=torch.long, **meta)
    if config.text_dim is not None:
        given |= {"text": torch.zeros(1, 77, config.text_dim, **meta), "text_layout": TokenLayout.padded([77], 77)}
    x = torch.zeros(1, layout.shape[1], config.patch_dim, **meta)
    model(x, layout.rows(torch.zeros(1, **meta), "sample"), layout, **given)
    return total / 1e9


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes_and_costs(preset: str) -> None:
    """Both grow by the same amount with every pair of blocks."""
    config: UViTConfig = getattr(models, preset)()
    two, four = (dataclasses.replace(config, depth=depth) for depth in (2, 4))
    pairs, (count, cost) = config.depth // 2 - 1, PUBLISHED[preset]
    sizes = [size(UViT(each, device="meta")) for each in (two, four)]
    assert sizes[0] + pairs * (sizes[1] - sizes[0]) == count
    costs = [multiply_adds(each) for each in (two, four)]
    assert costs[0] + pairs * (costs[1] - costs[0]) == pytest.approx(cost, rel=5e-3)


def test_the_whole_of_a_preset_is_made_on_meta() -> None:
    model = UViT(models.uvit_cifar10(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert size(model) == 44_255_328


def peer(model: UViT) -> UTransformer2DModel:
    """The trunk as diffusers' UniDiffuser has it, but for its norms behind the skips, with our weights."""
    c = model.config
    theirs = UTransformer2DModel(
        num_attention_heads=c.heads, attention_head_dim=c.dim // c.heads, in_channels=2, num_layers=c.depth,
        sample_size=4, activation_fn="gelu", block_type="plain", pre_layer_norm=True,
    ).double()  # fmt: skip
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out.0"}
    pairs = [(mine, f"in_blocks.{i}") for i, mine in enumerate(model.in_blocks)] + [(model.mid_block, "mid_block")]
    state: dict[str, Tensor] = {}
    for i, skip in enumerate(model.out_blocks):
        theirs.transformer_out_blocks[i]["skip"].norm = nn.Identity()
        pairs.append((skip.block, f"out_blocks.{i}.block"))
        state |= {f"transformer_out_blocks.{i}.skip.skip_linear.{k}": v for k, v in skip.join.state_dict().items()}
    for mine, name in pairs:
        parts = {f"attn1.{theirs}": getattr(mine.branches[0].inner, ours) for ours, theirs in names.items()}
        parts |= {"norm1": mine.branches[0].norm, "norm3": mine.branches[1].norm}
        parts |= {"ff.net.0.proj": mine.branches[1].inner.up, "ff.net.2": mine.branches[1].inner.down}
        for part, module in parts.items():
            state |= {f"transformer_{name}.{part}.{k}": v for k, v in module.state_dict().items()}
    state |= {f"norm_out.{k}": v for k, v in model.final_norm.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"pos_embed.proj.weight", "pos_embed.proj.bias"}
    return theirs.eval()


def test_the_trunk_equals_that_of_diffusers() -> None:
    """On the same embedded tokens: in float64, in float32, and in bfloat16 as exactly as the peer."""
    ratios = []
    for seed in range(4):
        config = uvits.tiny("labels", mlp_dim=64)
        model = randomise(UViT(config, **F64), seed)
        theirs = peer(model)
        seen: dict[str, Tensor] = {}
        model.in_blocks[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(tokens=inputs[0]))
        model.final_norm.register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(out=out))
        layout = TokenLayout.dense(2, Grid(1, 3, 3))
        x, t = torch.randn(2, 9, 2, **F64), layout.rows(torch.rand(2, **F64), "sample")
        results = {}
        for dtype, their in ((torch.float64, theirs), (torch.float32, theirs), (torch.bfloat16, theirs)):
            model.to(dtype)
            their = in_bfloat16(their) if dtype == torch.bfloat16 else their.to(dtype)
            with torch.no_grad():
                model(x.to(dtype), t, layout, LABELS[:2])
                options = {"hidden_states_is_embedding": True, "unpatchify": False, "return_dict": False}
                expected = their(seen["tokens"], **options)[0][:, 2:]
            results[dtype] = error(seen["out"], expected)
            if dtype == torch.float64:
                exact = expected
            if dtype == torch.bfloat16:  # both from tokens that are rounded alike
                ratios.append(error(seen["out"], exact) / error(expected, exact))
        assert results[torch.float64] <= 1e-12 and results[torch.float32] <= 1e-5
    assert torch.tensor(ratios).log().mean().exp() <= 1.1


@pytest.mark.parametrize("j", [0, 1, 2])
def test_each_skip_is_that_of_its_mirror_image(j: int) -> None:
    """Cut all other ways: the output then depends on the in-block that the j-th out-block is paired with."""
    model = randomise(UViT(uvits.tiny("plain", depth=6), **F64))
    with torch.no_grad():
        for i, block in enumerate(model.out_blocks):
            of_tokens, of_skip = block.join.weight.chunk(2, dim=1)
            if i == j:
                of_tokens.zero_()
            elif i > j:
                of_skip.zero_()
    layout = TokenLayout.dense(1, Grid(1, 3, 3))
    model(torch.randn(1, 9, 8, **F64), Rows(torch.tensor([0.5], **F64)), layout).square().sum().backward()
    reached = [bool(block.branches[1].inner.up.weight.grad.any()) for block in model.in_blocks]
    assert reached == [i <= 2 - j for i in range(3)]
    assert not model.mid_block.branches[1].inner.up.weight.grad.any()


def tiny(kind: str, pattern: Pattern | None = None, **changes: Any) -> UViT:
    config = uvits.tiny(kind, **{**BOUNDS, **changes})
    return randomise(UViT(config, pattern=Joint() if pattern is None else pattern, **F64))


def inputs(kind: str, capacity: int | None = None, text_capacity: int | None = None) -> dict[str, Any]:
    """Everything that a tiny model takes; what is real does not depend on capacities, and padding is rubbish."""
    layout, draw = TokenLayout.packed(GRIDS, capacity=capacity), torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"layout": layout, "t": layout.rows(LEVELS, "sample")}
    given["x"] = padded(torch.randn(13, 4, generator=draw, **F64), layout.width)
    if kind in ("labels", "classes"):
        given["labels"] = LABELS.clamp(max=3 + (kind == "labels"))
    if kind == "text":
        given["text_layout"] = TokenLayout.packed([None] * 3, TEXT, capacity=text_capacity)
        given["text"] = padded(torch.randn(5, 5, generator=draw, **F64), given["text_layout"].width)
    return given


def padded(real: Tensor, width: int) -> Tensor:
    return torch.cat([real, real.new_full((width - len(real), real.shape[1]), torch.nan)]).requires_grad_()


@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
@pytest.mark.parametrize("kind", uvits.KINDS)
def test_packed_equals_separate(kind: str, capacities: tuple[int | None, int | None]) -> None:
    """Outputs, and the gradients of weights and inputs: each sample with a size and a condition of its own."""
    model, given = tiny(kind), inputs(kind, *capacities)
    out = model(**given)[:13]
    out.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pieces: list[dict[str, Tensor]] = []
    start = first = 0
    for i, (grid, words) in enumerate(zip(GRIDS, TEXT, strict=True)):
        layout, stop, last = TokenLayout.dense(1, grid), start + grid.tokens, first + words
        one: dict[str, Any] = {"x": given["x"].detach()[start:stop][None].requires_grad_(), "layout": layout}
        if "labels" in given:
            one["labels"] = given["labels"][i : i + 1]
        if "text" in given:
            one["text"] = given["text"].detach()[first:last][None].requires_grad_()
            one["text_layout"] = TokenLayout.padded([words], words)
        pieces.append(one | {"out": model(t=layout.rows(LEVELS[i : i + 1], "sample"), **one)})
        pieces[-1]["out"].square().sum().backward()
        start, first = stop, last
    torch.testing.assert_close(out, torch.cat([p["out"][0] for p in pieces]), rtol=1e-11, atol=1e-11)
    for name in {"x", "text"} & set(given):
        whole = torch.cat([p[name].grad[0] for p in pieces])
        torch.testing.assert_close(given[name].grad[: len(whole)], whole, rtol=1e-11, atol=1e-10)
        assert not given[name].grad[len(whole) :].any()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("padding", [0.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    model, given = tiny("text"), inputs("text")
    layout = TokenLayout.dense(3, Grid(1, 2, 2))
    packed = TokenLayout.packed([Grid(1, 2, 2)] * 3)
    x, rows = torch.randn(3, 4, 4, **F64), torch.full((3, 6, 5), padding, **F64)
    rows[torch.arange(6) < torch.tensor(TEXT)[:, None]] = given["text"].detach()
    got = model(x, layout.rows(LEVELS, "sample"), layout, text=rows, text_layout=TokenLayout.padded(TEXT, 6))
    text = {name: given[name] for name in ("text", "text_layout")}
    expected = model(x.flatten(0, 1), packed.rows(LEVELS, "sample"), packed, **text)
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-11, atol=1e-11)


class Masked(nn.Module):
    """A self-attention by its definition, under a mask of all pairs of tokens."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, x: Tensor, layout: Any) -> Tensor:
        q, k, v = self.inner.qkv(x, None)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.allowed, -torch.inf).softmax(-1)
        return self.inner.out_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal()])
def test_any_pattern_equals_its_mask(pattern: Pattern) -> None:
    """What stands before the patches is text to a pattern: it attends itself alone where frames are causal."""
    model, given = tiny("labels", pattern), inputs("labels")
    grid = given["layout"].on("cpu")
    index = JointIndex.of(grid.prefix(2), grid).index
    c, text = index.coords, index.coords[:, 0] < 0
    if isinstance(pattern, Window):
        allowed = ((c // torch.tensor([2, 1, 2]))[:, None] == (c // torch.tensor([2, 1, 2]))[None]).all(-1)
        allowed |= text[:, None] | text[None]
    else:
        allowed = text[None] | (~text[:, None] & (c[:, None, 0] >= c[None, :, 0]))
    got = model(**given)
    assert error(tiny("labels")(**given), got) > 1e-3
    for block in (*model.in_blocks, model.mid_block, *(skip.block for skip in model.out_blocks)):
        branch = block.branches[0]
        branch.inner = Masked(branch.inner, allowed & (index.sample[:, None] == index.sample))
    torch.testing.assert_close(got, model(**given), rtol=1e-11, atol=1e-11)


def test_a_model_made_on_meta_resets_whole() -> None:
    for kind in uvits.KINDS:
        model = UViT(uvits.tiny(kind, **BOUNDS), device="meta", **F64).to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.constant_(parameter, torch.nan)
        model.reset_parameters()
        assert model(**inputs(kind)).isfinite().all()
        assert all(0.01 < skip.join.weight.std() < 0.03 for skip in model.out_blocks)
        assert model.label is None or model.label.table.weight.std() > 0.5


@pytest.mark.graph
@pytest.mark.parametrize("kind", ["labels", "text"])
def test_one_graph_serves_many_layouts(kind: str) -> None:
    model, compiles = tiny(kind, depth=2), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        given: dict[str, Any] = {"x": torch.randn(16, 4, **F64), "layout": index}
        given["t"] = index.rows(torch.rand(len(grids), **F64), "sample")
        if kind == "labels":
            given["labels"] = index.rows(torch.arange(len(grids)) % 5, "sample").values
        else:
            lengths = [i % 4 for i in range(len(grids))]
            given["text_layout"] = TokenLayout.packed([None] * len(grids), lengths, capacity=20).on("cpu")
            given["text"] = torch.randn(20, 5, **F64)
        torch.testing.assert_close(compiled(**given), model(**given))
    assert len(compiles) == 1


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3), (1, 1, 1)])
def test_a_convolution_of_patches_is_that_of_whole_frames(patch: tuple[int, int, int]) -> None:
    conv = PatchConv(3, patch, **F64)
    videos = [torch.randn(3, *(n * p for n, p in zip(sides, patch, strict=True)), **F64) for sides in
              ((2, 3, 2), (1, 1, 1), (1, 2, 4))]  # fmt: skip
    patches, grids = fold_packed(videos, patch)
    layout = TokenLayout.packed(grids, [1, 0, 2], capacity=30)
    index = layout.on("cpu")
    tokens = torch.full((30, patches.shape[1]), torch.nan, **F64)
    tokens[index.coords[:, 0] >= 0] = patches
    tokens.requires_grad_()
    got = conv(tokens, index)[index.coords[:, 0] >= 0]
    whole = [F.conv2d(v.transpose(0, 1), conv.conv.weight, conv.conv.bias, padding=1).transpose(0, 1) for v in videos]
    torch.testing.assert_close(got, fold_packed(whole, patch)[0], rtol=1e-12, atol=1e-12)
    got.square().sum().backward()
    assert tokens.grad.isfinite().all() and not tokens.grad[index.coords[:, 0] < 0].any()
    dense = TokenLayout.dense(2, Grid(1, 2, 3)).on("cpu")
    video = torch.randn(2, 3, patch[0], 2 * patch[1], 3 * patch[2], **F64)
    frames = F.conv2d(video.transpose(1, 2).flatten(0, 1), conv.conv.weight, conv.conv.bias, padding=1)
    expected = fold(frames.unflatten(0, (2, -1)).transpose(1, 2), patch)
    torch.testing.assert_close(conv(fold(video, patch), dense), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="patches are 5 wide, but patch and channels ask for"):
        conv(torch.zeros(2, 6, 5, **F64), dense)
    with pytest.raises(ValueError, match="dropped tokens"):
        conv(tokens[:1], layout.keep([1]).on("cpu"))


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("plain", {"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ("plain", {"labels": LABELS}, r"labels is of shape \(3,\), but the model has classes=None"),
        ("labels", {"labels": None}, "labels is None, but the model has classes=4"),
        ("labels", {"labels": LABELS[:2]}, r"labels has shape \(2,\), but layout has 3 samples"),
        ("classes", {"labels": LABELS}, "labels lie between 0 and 4, but the table has 0 to 3"),
        ("plain", {"text": torch.zeros(5, 5, **F64)}, "text has shape"),
        ("text", {"text": None}, "text_dim=5: give text and text_layout"),
        ("text", {"text_layout": TokenLayout.packed([None], [5])}, "layout has 3 samples, but that of text has 1"),
        (
            "text",
            {"text_layout": TokenLayout.packed([None] * 3, [4, 0, 1])},
            "has 4 tokens, but the model has text_tok",
        ),
        ("plain", {"t": TokenLayout.packed(GRIDS).rows(torch.zeros(6, **F64), "frame")}, "t has 6 noise levels, but"),
        ("plain", {"layout": TokenLayout.packed([Grid(13, 1, 1), None, None])}, r"outside extent=\(3, 2, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(kind: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(kind)(**inputs(kind) | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"heads": 3}, "dim=16 must be even and a multiple of heads=3"),
        ({"depth": 3}, "depth must be even, half before and half behind the middle, got 3"),
        ({"grid": (0, 3, 3)}, r"grid must be .*, got \(0, 3, 3\)"),
        ({"text_dim": 4, "classes": 3}, "classes=3 and text_dim=4 exclude each other"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        uvits.tiny("plain", **change)
