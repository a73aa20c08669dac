"""W.A.L.T against its definition pair by pair, mixtures against each sample alone, counts, images among videos."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import (
    F64,
    GRIDS,
    LEVELS,
    Mixture,
    check_finer_levels,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, randomise, size
from torch import Tensor, nn
from walts import EVERYTHING, TINY, defined

from tubelet import hub
from tubelet.attention import VideoOnly, Window, set_pattern
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import Walt, WaltConfig, walt_l, walt_xl


class Asked(nn.Module):
    """The model with a class for each sample, and levels of noise that lie in [0, 1], whatever is drawn."""

    def __init__(self, walt: Walt) -> None:
        super().__init__()
        self.walt = walt

    def reset_parameters(self) -> None:
        self.walt.reset_parameters()

    def forward(self, noise: Tensor, **given: Any) -> Tensor:
        labels = torch.zeros(len(noise), dtype=torch.long)
        return self.walt(labels=labels, noise=noise.tanh(), **given)


MIXTURE = Mixture({"x": 4, "estimate": 4, "known": 5, "low": 4}, {"text": 6}, {"noise": ()})


def tiny(**changed: Any) -> Walt:
    return randomise(Walt(dataclasses.replace(TINY, **changed), **F64))


def everything(**changed: Any) -> Asked:
    return Asked(tiny(**EVERYTHING, **changed))


@pytest.mark.parametrize("grid", [Grid(3, 3, 5), Grid(1, 4, 3), Grid(4, 2, 2)])
@pytest.mark.parametrize("words", [3, 0])
def test_equal_to_the_definition(grid: Grid, words: int) -> None:
    """Windows are full attention under a mask, images see themselves alone in blocks over space and time."""
    model, n = tiny(**EVERYTHING), grid.tokens
    parts = [torch.randn(n, width, **F64) for width in (4, 4, 5, 4)]
    text = torch.randn(words, 6, **F64)
    out = model(
        parts[0],
        Rows(torch.tensor([0.3], **F64)),
        TokenLayout.packed([grid]),
        torch.tensor([2]),
        text,
        TokenLayout.packed([None], [words]),
        estimate=parts[1],
        known=parts[2],
        low=parts[3],
        noise=torch.tensor([0.7], **F64),
    )
    torch.testing.assert_close(out, defined(model, parts, 0.3, grid, 2, text, 0.7), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (17, 9)])
def test_packed_equals_separate(level: Any, capacities: Any) -> None:
    check_packed_equals_separate(everything(), MIXTURE, level, capacities)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_levels_are_per_frame_or_token(level: Any) -> None:
    check_finer_levels(everything(), MIXTURE, level)


@pytest.mark.parametrize("padding", [0.0, torch.nan])
def test_padding_never_counts(padding: float) -> None:
    check_padding_never_counts(everything(), MIXTURE, padding)


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    check_one_graph(everything(depth=2), MIXTURE)


def test_a_model_made_on_meta_resets_whole_and_its_blocks_start_closed() -> None:
    model = check_reset(lambda **made: Asked(Walt(dataclasses.replace(TINY, **EVERYTHING), **made)), MIXTURE)
    h, index = torch.randn(4, 16, **F64), TokenLayout.packed([Grid(1, 2, 2)]).on("cpu")
    for block in model.walt.blocks:
        before = h
        for branch in (block.branches[0], block.branches[-1]):
            rows = block.modulation(Rows(torch.cat([torch.randn(1, 16, **F64), torch.zeros(1, 96, **F64)], -1)))
            assert torch.equal(branch(h, rows, {"layout": index}), before)


SIZES = {2: 313, 4: 314, 16: 316, 64: 324, 256: 357}  # table 5 of the paper, in millions


@pytest.mark.parametrize("rank", SIZES)
def test_counts_are_those_of_the_paper(rank: int) -> None:
    """Within 2 million, for each rank of adaLN-LoRA; of which 6 d² + 23·7 d·r are the modulation's."""
    model = Walt(walt_l(rank=rank, classes=101), device="meta")
    assert abs(size(model) - SIZES[rank] * 10**6) < 2 * 10**6
    sources = [model.modulation, *(block.modulation for block in model.blocks)]
    assert sum(map(size, sources)) == 6 * 1024**2 + 6 * 1024 + 23 * rank * 7 * 1024


def test_presets_have_the_published_shapes() -> None:
    assert (walt_l().depth, walt_l().dim, walt_l().heads) == (24, 1024, 16)
    assert (walt_xl().depth, walt_xl().dim, walt_xl().heads) == (28, 1152, 16)
    attentions = [block.branches[0].inner for block in Walt(walt_l(), device="meta").blocks]
    assert [each.pattern for each in attentions[:2]] == [Window((1, 16, 16)), VideoOnly(Window((5, 8, 8)))]
    assert attentions[0].relative.table.shape == (16, 1, 31, 31)
    assert attentions[1].relative.table.shape == (16, 9, 15, 15)


def test_an_image_among_videos_is_the_image_alone() -> None:
    """To the bit where the shapes stay: whatever the videos hold; and in the blocks over time its tokens stay apart."""
    model, image = everything(), GRIDS[1]
    given, values = MIXTURE.inputs(), MIXTURE.levels("sample")
    start = GRIDS[0].tokens
    cut = slice(start, start + image.tokens)
    first = MIXTURE.ask(model, given, values, "sample")[cut]
    others = {name: given[name].detach().clone() for name in (*MIXTURE.video, *MIXTURE.text)}
    for name in MIXTURE.video:
        others[name][:start] += 1
        others[name][cut.stop :] -= 1
    others["text"] += 1  # the image has none
    assert torch.equal(MIXTURE.ask(model, given | others, values, "sample")[cut], first)
    alone = list(MIXTURE.alone(given, values, "sample"))[1]
    assert error(MIXTURE.ask(model, alone[0], alone[1], "sample")[0], first) < 1e-13


def test_tokens_of_an_image_meet_in_blocks_over_space_alone() -> None:
    model = tiny(depth=2)
    block, index = model.blocks[1], TokenLayout.packed([Grid(1, 2, 4), Grid(2, 2, 4)]).on("cpu")
    h, rows = torch.randn(24, 16, **F64, requires_grad=True), Rows(torch.randn(1, 16 * 7, **F64))
    out = block(h, rows, {"layout": index})
    for token, sees in ((0, 1), (8, 4)):  # a video's window holds two frames and two columns
        grad = torch.autograd.grad(out[token].sum(), h, retain_graph=True)[0]
        assert int((grad != 0).any(-1).sum()) == sees


def test_without_an_estimate_or_given_frames_the_model_is_shown_zeros() -> None:
    model, index = tiny(frame_prediction=True), TokenLayout.packed(GRIDS).on("cpu")
    x, t = torch.randn(13, 4, **F64), Rows(torch.tensor([0.5], **F64))
    blank = {"estimate": torch.zeros(13, 4, **F64), "known": torch.zeros(13, 5, **F64)}
    assert torch.equal(model(x, t, index), model(x, t, index, **blank))
    for name, width in (("estimate", 4), ("known", 5)):
        changed = blank | {name: torch.randn(13, width, **F64)}
        assert error(model(x, t, index, **changed), model(x, t, index)) > 1e-3


def given_everything() -> dict[str, Any]:
    given = MIXTURE.inputs() | {"t": Rows(torch.zeros(1, **F64)), "labels": torch.tensor([0, 1, 3])}
    return given | {"noise": torch.tensor([0.0, 0.5, 1.0], **F64)}


@pytest.mark.graph  # without the tests' own checks of shapes, which come first
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"layout": TokenLayout.packed(GRIDS[:2])}, r"x has tokens \(13,\), but its layout has \(7,\)"),
        ({"layout": TokenLayout.packed([*GRIDS[:2], None], [0, 0, 6])}, r"samples with text of \[0, 0, 6\] tokens"),
        ({"labels": None}, "labels is None, but the model has classes=3"),
        ({"labels": torch.tensor([0])}, r"labels has shape \(1,\), but layout has 3 samples"),
        ({"text": None}, "text is None, but the model has text_dim=6"),
        ({"text_layout": None}, "text_layout is None, but the model has text_dim=6"),
        ({"text": torch.zeros(5, 7, **F64)}, "text is 7 wide, but the model takes 6"),
        ({"estimate": torch.zeros(12, 4, **F64)}, r"estimate has tokens \(12,\)"),
        ({"known": torch.zeros(13, 4, **F64)}, "known is 4 wide, but the model takes 5"),
        ({"low": None}, "low is None, but the model has super_resolution=True"),
        ({"noise": None}, "noise is None, but the model has super_resolution=True"),
        ({"noise": torch.tensor([0.0, 2.0, 0.0], **F64)}, "noise holds noise levels in"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(**EVERYTHING)(**given_everything() | change)


@pytest.mark.graph
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", torch.zeros(3, dtype=torch.long)),
        ("text", torch.zeros(5, 6, **F64)),
        ("estimate", torch.zeros(13, 4, **F64)),
        ("known", torch.zeros(13, 5, **F64)),
        ("low", torch.zeros(13, 4, **F64)),
        ("noise", torch.zeros(3, **F64)),
    ],
)
def test_inputs_that_the_config_has_not_are_refused(name: str, value: Tensor) -> None:
    x, t = torch.zeros(13, 4, **F64), Rows(torch.zeros(1, **F64))
    with pytest.raises(ValueError, match=rf"{name} is of shape .*, but the model has"):
        tiny(self_conditioning=False)(x, t, TokenLayout.packed(GRIDS), **{name: value})


def test_a_layout_of_text_is_refused_without_text() -> None:
    x, t, text_layout = torch.zeros(13, 4, **F64), Rows(torch.zeros(1, **F64)), TokenLayout.packed([None] * 3, [1] * 3)
    with pytest.raises(ValueError, match="text_layout is TokenLayout.*, but the model has text_dim=None"):
        tiny()(x, t, TokenLayout.packed(GRIDS), text_layout=text_layout)


def test_a_saved_model_comes_back_with_its_patterns(tmp_path: Path) -> None:
    model = tiny(**EVERYTHING)
    changed = set_pattern(model.blocks[2], Window((1, 1, 2)))
    assert changed == ["branches.0.inner", "branches.1.inner"]  # the cross-attention's own tokens, too
    hub.save(model, tmp_path / "walt")
    again = hub.load(tmp_path / "walt")
    assert again.config == model.config and again.blocks[2].branches[1].inner.pattern == Window((1, 1, 2))
    given = given_everything()
    assert torch.equal(again(**given), model(**given))


def test_grids_beyond_the_positions_are_refused() -> None:
    grid = Grid(1, 7, 2)
    with pytest.raises(ValueError, match=r"outside extent=\(5, 6, 6\)"):
        tiny()(torch.zeros(14, 4, **F64), Rows(torch.zeros(1, **F64)), TokenLayout.packed([grid]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 0}, "rank must be positive, got 0"),
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"heads": 3}, "dim=16 is not a multiple of heads=3"),
        ({"window": (0, 1, 1)}, r"window must be positive on each axis, got \(0, 1, 1\)"),
        ({"extent": (5, 0, 1)}, r"extent must be positive on each axis, got \(5, 0, 1\)"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"frequencies": 7}, "even and positive, got 7"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)


def test_widths_add_up() -> None:
    assert TINY.patch_dim == 4 and TINY.input_dim == 8
    assert dataclasses.replace(TINY, **EVERYTHING).input_dim == 4 + 4 + 5 + 4
    assert WaltConfig(dim=8, depth=1, heads=1, mlp_dim=8, self_conditioning=False).input_dim == 8
