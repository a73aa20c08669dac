"""CogVideoX against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

import dataclasses
from typing import Any

import cogvideoxs
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from mixtures import (
    LEVELS,
    Mixture,
    check_finer_levels,
    check_joint,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, randomise, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Spatial, Window
from tubelet.hub import from_diffusers
from tubelet.hub.cogvideox import cogvideox_config_to_diffusers, cogvideox_keys
from tubelet.layout import Grid, JointLayout, Rows, TokenLayout
from tubelet.models import CogVideoXConfig, CogVideoXTransformer
from tubelet.protocols import Pattern

F64: dict[str, Any] = {"dtype": torch.float64}
TINY = CogVideoXConfig(
    dim=32, depth=2, heads=2, time_dim=6, latent_channels=2, text_dim=5, patch=(1, 1, 2), given_channels=1,
    base=(2, 3), sincos=(1.0, 1.5, 1.5), learned=(3, 2, 4), learned_text=3, ofs=True,
)  # fmt: skip
MIXTURE = Mixture({"x": 4, "given": 2}, {"text": 5}, {"ofs": ()})


def loaded(theirs: CogVideoXTransformer3DModel, dtype: torch.dtype | None = None) -> CogVideoXTransformer:
    config = dict(theirs.config) | {"_class_name": "CogVideoXTransformer3DModel"}
    return from_diffusers(config, {name: p.clone() for name, p in theirs.state_dict().items()}, dtype=dtype)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", cogvideoxs.KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = cogvideoxs.peer(kind, seed)
    asked = cogvideoxs.question(kind, theirs, seed)
    single, double, half = (loaded(theirs, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16))
    assert error(asked.ours(single), asked.theirs(theirs)) <= 1e-5
    with cogvideoxs.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(asked.ours(double), expected) <= 1e-10
    rough = in_bfloat16(cogvideoxs.peer(kind, seed))
    assert error(asked.ours(half), expected) <= 1.5 * error(asked.theirs(rough), expected)


@pytest.mark.parametrize("kind", cogvideoxs.KINDS)
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, the learned table among them, in float64, mapped by the same table as the weights."""
    theirs = cogvideoxs.peer(kind)
    asked = cogvideoxs.question(kind, theirs)
    ours = loaded(theirs, torch.float64)
    with cogvideoxs.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        weights = dict(theirs.named_parameters())
        if kind == "image":
            weights["patch_embed.pos_embedding"] = theirs.patch_embed.pos_embedding.requires_grad_()
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = cogvideox_keys(ours.config).to_ours({name: p.grad for name, p in weights.items()})
    for name, parameter in ours.named_parameters():
        # the bias of keys that are not rotated changes no weight of attention: its gradient is 0
        assert (parameter.grad - expected[name]).norm() <= 1e-10 * expected[name].norm().clamp(min=1), name


def test_text_may_have_a_level_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the peer whose norms modulate the text of each sample by the level of the other."""
    theirs = cogvideoxs.peer("rotary")
    asked = cogvideoxs.question("rotary", theirs)
    ours = loaded(theirs)
    with monkeypatch.context() as patch:
        for norm in (norm for block in theirs.transformer_blocks for norm in (block.norm1, block.norm2)):
            patch.setattr(norm.linear, "forward", crossed(norm.linear.forward))
        expected = asked.theirs(theirs)
    other = (asked.time.flip(0).double() + 1) / 1000
    text_layout = TokenLayout.padded([cogvideoxs.TEXT] * 2, cogvideoxs.TEXT)
    assert error(asked.ours(ours, text_t=text_layout.rows(other, "sample")), expected) <= 1e-5
    each = text_layout.rows(other.repeat_interleave(cogvideoxs.TEXT), "token")
    assert error(asked.ours(ours, text_t=each), expected) <= 1e-5
    assert error(asked.ours(ours), expected) > 1e-3


def crossed(linear: Any) -> Any:
    return lambda c: torch.cat([linear(c).chunk(2, -1)[0], linear(c.flip(0)).chunk(2, -1)[1]], -1)


PUBLISHED = {
    "cogvideox_2b": 1_693_783_872,
    "cogvideox_5b": 5_570_283_072,
    "cogvideox_5b_i2v": 5_570_479_680 + (226 + 13 * 30 * 45) * 3072,  # its table is a buffer there
    "cogvideox_1_5_5b": 5_570_676_352,
    "cogvideox_1_5_5b_i2v": 5_571_594_880,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config = getattr(models, preset)()
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel(**cogvideox_config_to_diffusers(config))
    ours = CogVideoXTransformer(config, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    stored = {name: t.shape for name, t in theirs.state_dict().items()}
    mapped = cogvideox_keys(config).to_theirs(ours.state_dict())
    assert {name: t.shape for name, t in mapped.items()} == stored
    assert size(ours) == sum(shape.numel() for shape in stored.values()) == PUBLISHED[preset]


def tiny(pattern: Pattern | None = None, config: CogVideoXConfig = TINY) -> CogVideoXTransformer:
    return randomise(CogVideoXTransformer(config, pattern=Joint() if pattern is None else pattern, **F64))  # type: ignore[return-value]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    check_packed_equals_separate(tiny(), MIXTURE, level, capacities)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


def test_frames_that_see_only_themselves_are_images_at_their_own_levels() -> None:
    """Levels per frame against one per sample: without text and with rotations alone, a frame has no place in time."""
    model = tiny(Spatial(), dataclasses.replace(TINY, sincos=None, learned=None, learned_text=0, ofs=False))
    x, given, values = torch.randn(18, 4, **F64), torch.randn(18, 2, **F64), torch.tensor([0.1, 0.9, 0.4], **F64)
    none = {"text": torch.zeros(0, 5, **F64)}
    whole, images = TokenLayout.packed([Grid(3, 2, 3)]), TokenLayout.packed([Grid(1, 2, 3)] * 3)
    got = model(x, whole.rows(values, "frame"), **none, layout=whole, text_layout=no_text(1), given=given)
    expected = model(x, images.rows(values, "sample"), **none, layout=images, text_layout=no_text(3), given=given)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def no_text(samples: int) -> TokenLayout:
    return TokenLayout.packed([None] * samples, [0] * samples)


@pytest.mark.parametrize("level", LEVELS)
def test_text_has_the_highest_level_of_its_sample_by_default(level: Any) -> None:
    model, given, values = tiny(), MIXTURE.inputs(), MIXTURE.levels(level)
    owner = given["layout"].on("cpu").lift(torch.arange(3), level)
    highest = torch.stack([values[owner == i].max() for i in range(3)])
    default = MIXTURE.ask(model, given, values, level)
    told = MIXTURE.ask(model, given | {"text_t": given["text_layout"].rows(highest, "sample")}, values, level)
    torch.testing.assert_close(default, told, rtol=1e-11, atol=1e-11)
    lower = given["text_layout"].rows(highest / 2, "sample")
    assert error(MIXTURE.ask(model, given | {"text_t": lower}, values, level), default) > 1e-3


def test_levels_are_fed_as_indices_of_the_discrete_path() -> None:
    """``(i + 1)/1000`` as ``i``, and clean data as index 0."""
    model, seen = tiny(), []
    model.time.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    given = MIXTURE.inputs()
    for t in (0.0, 0.001, 0.5, 1.0):
        model(t=Rows(torch.tensor([t], **F64)), **given)
    torch.testing.assert_close(torch.cat(seen[::2]), torch.tensor([0.0, 0.0, 499.0, 999.0], **F64))


class Masked(nn.Module):
    """A self-attention by its definition, under a mask of all pairs of tokens."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, x: Tensor, layout: Any, rope: Any) -> Tensor:
        q, k, v = self.inner.qkv(x, rope)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.allowed, -torch.inf).softmax(-1)
        return self.inner.out_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal(), FrameCausal(window=2)])
def test_any_pattern_equals_its_mask(pattern: Pattern) -> None:
    """On the merged axis: under a window text and video see each other, under a causal pattern text sees text alone."""
    model, given, values = tiny(pattern), MIXTURE.inputs(), MIXTURE.levels("frame")
    index = JointLayout((given["text_layout"], given["layout"])).on("cpu").index
    c, text = index.coords, index.coords[:, 0] < 0
    if isinstance(pattern, Window):
        near = ((c // torch.tensor([2, 1, 2]))[:, None] == (c // torch.tensor([2, 1, 2]))[None]).all(-1)
        allowed = near | text[:, None] | text[None]
    else:
        behind = c[:, None, 0] - c[None, :, 0]
        near = (behind >= 0) & (behind < (pattern.window or 99)) & ~text[:, None]
        allowed = near | text[None]
    got = MIXTURE.ask(model, given, values, "frame")
    assert error(MIXTURE.ask(tiny(), given, values, "frame"), got) > 1e-3
    for block in model.blocks:
        branch = block.branches[0]
        branch.inner = Masked(branch.inner, allowed & (index.sample[:, None] == index.sample))
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model = check_reset(lambda **made: CogVideoXTransformer(TINY, **made), MIXTURE)
    assert model.embed.weight.std() > 0.1 and model.tables[0].table.std() > 0.01


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    check_one_graph(tiny(), MIXTURE)


def test_a_joint_index_may_be_given_and_is_made_otherwise() -> None:
    """From layouts on the host, from indices, from one of each; indices with dropped tokens need one."""
    check_joint(tiny(), MIXTURE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"given": None}, "given is None, but the model has given_channels=1"),
        ({"ofs": None}, "ofs is None, but the model has ofs=True"),
        ({"ofs": torch.zeros(2, **F64)}, "ofs has shape .*, but layout has 3 samples"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
        ({"text_t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
        ({"joint": JointLayout((TokenLayout.packed([None], [2]),)).on("cpu")}, r"joint merges tokens of \[\(2,\)\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    given = MIXTURE.inputs() | {"t": Rows(torch.zeros(1, **F64))} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


def test_learned_positions_end_where_their_table_does() -> None:
    """A smaller grid has the first rows and columns; what is larger, or a longer text, is an error."""
    model, x = tiny(), {"x": torch.randn(5, 4, **F64), "given": torch.randn(5, 2, **F64), "ofs": torch.ones(1, **F64)}
    for grid, words in ((Grid(1, 1, 5), 1), (Grid(5, 1, 1), 1), (Grid(5, 1, 1), 4)):
        layout, text_layout = TokenLayout.packed([grid]), TokenLayout.packed([None], [words])
        with pytest.raises(ValueError, match="outside extent"):
            model(t=Rows(torch.zeros(1, **F64)), text=torch.zeros(words, 5, **F64), layout=layout,
                  text_layout=text_layout, **x)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"heads": 5}, "dim=32 does not make heads=5"),
        ({"heads": 4}, "dim=32 does not make heads=4 of widths that 16 divides"),
        ({"time_dim": 7}, "dim=32, time_dim=7"),
        ({"rotary": False}, r"base=\(2, 3\) is a matter of rotations"),
        ({"learned_text": 0}, r"learned=\(3, 2, 4\) and learned_text=0"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)
