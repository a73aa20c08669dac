"""ViViT: five models by their definition, sizes and costs, image initialisations, and packed mixtures."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from parity import error, randomise, size
from torch import Tensor, nn
from torch.nn import functional as F
from vivits import TINY, defined

from tubelet import hub
from tubelet.demo import digits
from tubelet.layout import Grid, TokenLayout
from tubelet.models import ViViT, ViViTConfig, ViViTVariant, vivit_b, vivit_from_image_, vivit_h, vivit_l
from tubelet.patchify import Patchify, central_frame_, fold, fold_packed, inflate_
from tubelet.planner import count, forward_inputs

F64: dict[str, Any] = {"dtype": torch.float64}
VARIANTS = get_args(ViViTVariant)
GRIDS = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)]  # 4 + 3 + 6 tokens
PUBLISHED = {
    # parameters; billions of multiply-adds as counted, and as the paper has them (table 1 and section 4.2)
    "joint": (88_954_000, 451.5, 455.2),
    "factorised_encoder": (115_062_928, 283.3, 284.4),
    "factorised_self_attention": (117_319_312, 371.1, 372.3),
    "factorised_dot_product": (88_952_464, 276.2, 277.1),
    "average": (86_696_080, 282.9, 283.9),
}


def tiny(variant: str = "joint", **changes: Any) -> ViViT:
    return randomise(ViViT(dataclasses.replace(TINY, variant=variant, **changes), **F64))


def tubelets(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, TINY.patch_dim, generator=torch.Generator().manual_seed(seed), **F64)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "gelu": "none", "classes": None, "eps": 1e-3}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_its_definition(variant: str, changes: dict[str, Any]) -> None:
    model, grid = tiny(variant, **changes), Grid(3, 2, 3)
    x, layout = tubelets(grid.tokens), TokenLayout.packed([grid])
    logits, tokens = defined(model, x, grid)
    torch.testing.assert_close(model(x, layout)[0], logits, rtol=1e-12, atol=1e-12)
    encoded = model.encode(x, layout)
    torch.testing.assert_close(encoded.tokens, tokens, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.head(encoded.pooled)[0], logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_b_16x2_has_the_published_size_and_cost(variant: ViViTVariant) -> None:
    parameters, counted, paper = PUBLISHED[variant]
    model = ViViT(vivit_b(variant), device="meta")
    counts = count(model, **forward_inputs(model, Grid(16, 14, 14)))
    assert size(model) == counts.parameters == parameters
    assert counts.macs / 1e9 == pytest.approx(counted, abs=0.05)
    assert counts.macs / 1e9 == pytest.approx(paper, rel=0.01)


def test_larger_backbones_have_the_sizes_of_their_formula() -> None:
    """12 d² + 13 d a block, and the ends; classes of Kinetics 400."""
    for config, side, frames in ((vivit_l(), 14, 16), (vivit_h(), 16, 16), (vivit_h(patch=16, frames=4), 14, 8)):
        d, places = config.dim, frames * side**2
        ends = (config.patch_dim + 1) * d + (places + 1) * d + d + 2 * d + 400 * (d + 1)
        one = size(ViViT(dataclasses.replace(config, depth=1), device="meta"))
        two = size(ViViT(dataclasses.replace(config, depth=2), device="meta"))
        assert two - one == 12 * d * d + 13 * d and 2 * one - two == ends
    config = vivit_b(patch=32, frames=4)
    assert (config.dim, config.depth, config.heads, config.grid) == (768, 12, 12, (8, 7, 7))
    assert [(c.dim, c.depth, c.heads, c.mlp_dim) for c in (vivit_l(), vivit_h())] == [
        (1024, 24, 16, 4096), (1280, 32, 16, 5120),
    ]  # fmt: skip


def test_factorised_dot_product_adds_no_parameter() -> None:
    """Its layers are those of joint attention, which has a class token and its place besides."""
    shapes = [
        {name: p.shape for name, p in tiny(how).named_parameters()} for how in ("joint", "factorised_dot_product")
    ]
    assert set(shapes[0].items()) - set(shapes[1].items()) == {(f"encoder.{n}", (16,)) for n in ("token", "position")}
    assert not shapes[1].keys() - shapes[0].keys()


def test_factorised_self_attention_starts_as_the_model_of_single_frames() -> None:
    """Bit by bit equal with other attention over time; and it has a gradient, so that it does not stay so."""
    torch.manual_seed(0)
    model, grid = ViViT(dataclasses.replace(TINY, variant="factorised_self_attention"), **F64), Grid(3, 2, 3)
    nn.init.normal_(model.head.weight)
    x, layout = tubelets(grid.tokens), TokenLayout.packed([grid])
    logits, tokens = defined(model, x, grid, over_time=False)
    got = model.encode(x, layout)
    torch.testing.assert_close(got.tokens, tokens, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x, layout)[0], logits, rtol=1e-12, atol=1e-12)
    for frame in range(grid.t):  # its own tokens alone, at its place in time
        alone = torch.zeros_like(x)
        alone[frame * 6 : frame * 6 + 6] = x[frame * 6 : frame * 6 + 6]
        mine = model.encode(alone, layout).tokens[frame * 6 : frame * 6 + 6]
        assert torch.equal(mine, got.tokens[frame * 6 : frame * 6 + 6])
    model(x, layout).square().sum().backward()
    over_time = [block.branches[1].inner for block in model.encoder.trunk.blocks]
    assert all(each.out_proj.weight.grad.any() and not each.v_proj.weight.grad.any() for each in over_time)
    assert error(randomise(model)(x, layout)[0], defined(model, x, grid, over_time=False)[0]) > 1e-2


@pytest.mark.parametrize("variant", ["factorised_encoder", "average"])
def test_frames_are_independent_before_the_stage_over_time(variant: str) -> None:
    """Another frame changes no bit of the tokens of the rest, and every logit."""
    model, grid = tiny(variant), Grid(3, 2, 3)
    layout, x = TokenLayout.packed([grid]), tubelets(grid.tokens)
    other = x.clone()
    other[6:12] += 1
    before, after = model.encode(x, layout), model.encode(other, layout)
    same = (before.tokens == after.tokens).all(-1)
    assert same.tolist() == [True] * 6 + [False] * 6 + [True] * 6
    assert not (before.pooled == after.pooled).any()
    joint = tiny("joint")
    assert not (joint.encode(x, layout).tokens == joint.encode(other, layout).tokens).any()


def image_model(**changes: Any) -> ViViT:
    return tiny(**{"grid": (1, 2, 3), "patch": (1, 1, 2), **changes})


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_central_frame_is_embedded_as_by_the_image_model(variant: str, frames: int) -> None:
    """The difference is 0: of numbers whose sums are exact in any order."""
    image, model = image_model(), tiny(variant, patch=(frames, 1, 2))
    with torch.no_grad():
        for parameter in image.embed.parameters():
            parameter.copy_((16 * parameter).round() / 16)
    vivit_from_image_(model, image)
    video = torch.randint(-64, 64, (2, 2, 3 * frames, 2, 6)).double() / 64
    tokens = model.embed(video).unflatten(1, (3, -1))
    for tubelet in range(3):
        middle = video[:, :, [tubelet * frames + frames // 2]]
        assert torch.equal(tokens[:, tubelet], image.embed(middle))
    table = getattr(model.encoder, "spatial", model.encoder).trunk.positions.table
    assert all(torch.equal(each, image.encoder.trunk.positions.table[0]) for each in table)


@pytest.mark.parametrize("embed", [central_frame_, inflate_])
@pytest.mark.parametrize("frames", [2, 3])
def test_both_starts_equal_the_image_model_on_a_still_video(embed: Callable[..., None], frames: int) -> None:
    """In float32: vectors of the frames' mean, tokens of every frame, and the logits where the head comes along."""
    image, picture = image_model().float(), torch.randn(2, 2, 1, 2, 6)
    video = picture.expand(-1, -1, 3 * frames, -1, -1)
    one = image.encode(fold(picture, image.config.patch), TokenLayout.dense(2, Grid(1, 2, 3)))
    for variant in ("average", "factorised_encoder"):
        model = tiny(variant, patch=(frames, 1, 2)).float()
        vivit_from_image_(model, image, embed)
        layout, x = TokenLayout.dense(2, Grid(3, 2, 3)), fold(video, model.config.patch)
        encoded = model.encode(x, layout)
        assert error(encoded.tokens.unflatten(1, (3, -1)), one.tokens[:, None].expand(-1, 3, -1, -1)) <= 1e-5
        if variant == "average":
            assert error(encoded.pooled, one.pooled) <= 1e-5
            model.head.load_state_dict(image.head.state_dict())
            assert error(model(x, layout), image.head(one.pooled)) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_an_image_model_starts(variant: str) -> None:
    """All but the head and what is over time alone; factorised self-attention is the image model of each frame."""
    image, model = image_model(), tiny(variant)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    vivit_from_image_(model, image)
    kept = {name for name, p in model.state_dict().items() if torch.equal(p, before[name])}
    over_time = {name for name in before if name.startswith(("encoder.over", "head"))}
    if variant == "factorised_self_attention":
        over_time |= {name for name in before if ".branches.1." in name}
    assert kept == over_time
    for block, theirs in zip(
        getattr(model.encoder, "spatial", model.encoder).trunk.blocks, image.encoder.trunk.blocks, strict=True
    ):
        assert torch.equal(block.branches[0].inner.k_proj.weight, theirs.branches[0].inner.k_proj.weight)
        assert torch.equal(block.branches[-1].inner.down.weight, theirs.branches[1].inner.down.weight)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid": (2, 2, 3)}, r"joint model of single frames, got variant='joint', grid=\(2, 2, 3\)"),
        ({"variant": "average"}, "single frames, got variant='average'"),
        ({"grid": (1, 3, 3)}, r"sizes but for time, got grid=\(1, 2, 3\) and \(1, 3, 3\)"),
        ({"mlp_dim": 24, "gelu": "none"}, "got mlp_dim=20 and 24, gelu=tanh and none"),
    ],
)
def test_other_image_models_are_refused(changes: dict[str, Any], says: str) -> None:
    model = tiny()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        vivit_from_image_(model, image_model(**changes))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("capacity", [None, 20])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_separate(variant: str, capacity: int | None) -> None:
    """Logits, tokens, and the gradients of weights and inputs; padding is NaN."""
    model, layout = tiny(variant), TokenLayout.packed(GRIDS, capacity=capacity)
    x = torch.cat([tubelets(13), torch.full((layout.width - 13, TINY.patch_dim), torch.nan, **F64)]).requires_grad_()
    logits, encoded = model(x, layout.on("cpu")), model.encode(x, layout)
    (logits[:3].square().sum() + encoded.tokens[:13].pow(3).sum()).backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for i, (start, stop) in enumerate(pairwise([0, 4, 7, 13])):
        one, own = x.detach()[start:stop][None].requires_grad_(), TokenLayout.dense(1, GRIDS[i])
        alone, inside = model(one, own), model.encode(one, own)
        torch.testing.assert_close(logits[i], alone[0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(encoded.tokens[start:stop], inside.tokens[0], rtol=1e-11, atol=1e-11)
        (alone.square().sum() + inside.tokens.pow(3).sum()).backward()
        torch.testing.assert_close(x.grad[start:stop], one.grad[0], rtol=1e-10, atol=1e-10)
    assert not x.grad[13:].any()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)
    if capacity is not None:
        assert not model.encode(x, layout).pooled[3:].any()


def test_the_tokeniser_takes_videos() -> None:
    """A batch, or videos of any sizes: the tokens that the encoder is given."""
    model = tiny()
    videos = [torch.randn(2, 2 * t, h, 2 * w, **F64) for t, h, w in ((2, 2, 1), (1, 1, 3))]
    assert isinstance(model.embed, Patchify)
    x, grids = fold_packed(videos, TINY.patch)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x, TokenLayout.packed(grids))
    assert torch.equal(model.embed(videos), seen[0]) and model.embed(videos[0][None]).shape == (1, 4, 16)


@pytest.mark.graph
@pytest.mark.parametrize("variant", ["factorised_encoder", "factorised_dot_product"])
def test_one_graph_serves_many_layouts(variant: str) -> None:
    model, compiles = tiny(variant, depth=1), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        x = tubelets(16)
        torch.testing.assert_close(compiled(x, index)[: len(grids)], model(x, index)[: len(grids)])
    assert len(compiles) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_made_on_meta_resets_whole(variant: str) -> None:
    model = ViViT(dataclasses.replace(TINY, variant=variant), device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    encoded = model.encode(tubelets(13), TokenLayout.packed(GRIDS))
    assert encoded.pooled.any() and not model(tubelets(13), TokenLayout.packed(GRIDS)).any()
    if variant == "factorised_self_attention":
        assert not any(block.branches[1].inner.out_proj.weight.any() for block in model.encoder.trunk.blocks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    model = tiny(variant)
    again = hub.load(hub.save(model, tmp_path / "model"))
    x, layout = tubelets(13), TokenLayout.packed(GRIDS)
    assert again.config == model.config  # type: ignore[union-attr]
    assert torch.equal(again(x, layout), model(x, layout))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_directions_of_real_handwriting(variant: ViViTVariant) -> None:
    """Of 192 clips, and reads those of other hands: the held-out loss falls, to less than half."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 48, "depth": 2, "heads": 4, "mlp_dim": 96, "grid": (3, 4, 4), "temporal_depth": 1}
    config = ViViTConfig(**sizes, patch=(3, 6, 6), latent_channels=1, classes=4, variant=variant)
    model, draw, layouts = ViViT(config), torch.Generator().manual_seed(0), {}

    def clips(split: digits.Split, count: int) -> tuple[Tensor, Tensor]:
        made = digits.batch(split, seed=0, start=0, count=count, size=(9, 24, 24))
        layouts[count] = TokenLayout.dense(count, Grid(3, 4, 4)).on("cpu")
        labels = [digits.DIRECTIONS.index(clip.direction) for clip in made if clip.direction is not None]
        return fold(torch.stack([clip.video for clip in made]), config.patch), torch.tensor(labels)

    (x, labels), held_out = clips("train", 192), clips("held_out", 128)
    layouts[32] = TokenLayout.dense(32, Grid(3, 4, 4)).on("cpu")

    def held_out_loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(model(held_out[0], layouts[128]), held_out[1]).item()

    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05), [held_out_loss()]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=100)
    for step in range(100):
        chosen = torch.randint(192, (32,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen], layouts[32]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
        if step in (49, 99):
            losses.append(held_out_loss())
    assert losses[0] == pytest.approx(math.log(4))  # a head of zeros
    assert losses[0] > losses[1] > losses[2] and losses[2] < losses[0] / 2


@pytest.mark.parametrize(
    ("variant", "change", "says"),
    [
        ("joint", {"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 8"),
        (
            "joint",
            {"x": torch.zeros(1, 2, 6, 2, 6, **F64)},
            r"x has shape \(1, 2, 6, 2, 6\), that of videos; .* 8 wide: fold\(x, \(2, 1, 2\)\)",
        ),
        ("joint", {"x": torch.zeros(12, 8, **F64)}, r"x has tokens \(12,\), but its layout has \(13,\)"),
        ("joint", {"x": torch.zeros(13, 8)}, "x is torch.float32, but the model's weights are torch.float64"),
        (
            "factorised_encoder",
            {"layout": TokenLayout.packed([Grid(13, 1, 1)])},
            r"span \(0, 0, 0\) to \(12, 0, 0\), outside extent=\(3, 1, 1\)",
        ),
        ("joint", {"layout": TokenLayout.packed([Grid(1, 1, 13)])}, r"outside extent=\(3, 2, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(variant: str, change: dict[str, Any], says: str) -> None:
    given = {"x": tubelets(13), "layout": TokenLayout.packed(GRIDS)} | change
    with pytest.raises(ValueError, match=says):
        tiny(variant)(**given)


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_and_dropped_tokens_are_refused(variant: str) -> None:
    """No variant takes words for tubelets, nor what is left of a sample for the whole."""
    model, x = tiny(variant), tubelets(13)
    with pytest.raises(ValueError, match=r"text of \[0, 1\] tokens"):
        model(x, TokenLayout.packed([Grid(1, 2, 3), Grid(1, 2, 3)], [0, 1]))
    with pytest.raises(ValueError, match=r"text of \[13\] tokens"):
        model(x, TokenLayout.packed([None], [13]))
    with pytest.raises(ValueError, match="dropped tokens"):
        model(x, TokenLayout.packed([Grid(2, 2, 4)]).keep(range(13)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [1, 2])
def test_samples_without_tokens_alone_are_answered_as_beside_others(variant: str, samples: int) -> None:
    model = randomise(tiny(variant))
    empty = model(tubelets(0), TokenLayout.packed([None] * samples))
    beside = model(tubelets(6), TokenLayout.packed([*[None] * samples, Grid(1, 2, 3)]))
    assert empty.shape == (samples, TINY.classes)
    torch.testing.assert_close(empty, beside[:samples])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"heads": 3}, "dim=16 is not a multiple of heads=3"),
        ({"heads": 1, "variant": "factorised_dot_product"}, "heads=1 do not make two halves"),
        ({"grid": (0, 2, 2)}, r"grid must be .*, got \(0, 2, 2\)"),
        ({"temporal_depth": 0}, "temporal_depth must be positive, got 0"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize("preset", [vivit_b, vivit_l, vivit_h])
def test_presets_refuse_tubelets_that_do_not_divide_the_video(preset: Callable[..., ViViTConfig]) -> None:
    assert preset(patch=28, frames=4).grid == (8, 8, 8)
    with pytest.raises(ValueError, match="patch=15 does not divide the 224 pixels"):
        preset(patch=15)
    with pytest.raises(ValueError, match="frames=5 does not divide the 32 frames"):
        preset("joint", 16, 5)
    with pytest.raises(ValueError, match="patch=0 does not divide the 224"):
        preset(patch=0)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "average"])
def test_of_a_still_video_only_the_average_is_the_image_models_vector(variant: str) -> None:
    """The others read another vector from the same start, as the docs say."""
    image, picture, model = image_model(), torch.randn(2, 2, 1, 2, 6, **F64), tiny(variant)
    vivit_from_image_(model, image)
    one = image.encode(fold(picture, image.config.patch), TokenLayout.dense(2, Grid(1, 2, 3)))
    x = fold(picture.expand(-1, -1, 6, -1, -1), model.config.patch)
    assert error(model.encode(x, TokenLayout.dense(2, Grid(3, 2, 3))).pooled, one.pooled) > 1e-3
    torch.testing.assert_close(model.embed.proj(x).unflatten(1, (3, 6))[:, 1], image.embed(picture))
