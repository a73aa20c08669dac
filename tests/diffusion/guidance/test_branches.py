"""Conditions in one call against one call each: rows of a batch, and texts of different lengths on one packed axis."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from denoisers import C, U, V, counted, packed_state, randn
from torch import Tensor, nn

from tubelet.diffusion import apg, batched, cfg, one_row, packed, two_conditions
from tubelet.diffusion.guidance import PerSample
from tubelet.diffusion.process import Process
from tubelet.layout import Grid, JointLayout, Level, Rows, TokenLayout
from tubelet.models import MochiConfig, MochiTransformer, VideoDiT, VideoDiTConfig, WanConfig, WanTransformer
from tubelet.protocols import Denoiser

F64: dict[str, Any] = {"dtype": torch.float64}
GRIDS, TEXTS = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], ([2, 0, 3], [1, 4, 1], [5, 1, 2])
MODELS: dict[str, Callable[[], nn.Module]] = {
    "wan": lambda: WanTransformer(
        WanConfig(dim=24, depth=2, heads=2, mlp_dim=20, latent_channels=2, text_dim=5, patch=(1, 1, 2), frequencies=8),
        **F64,
    ),
    "dit": lambda: VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=5), **F64),
    "mochi": lambda: MochiTransformer(
        MochiConfig(
            dim=24,
            depth=2,
            heads=2,
            text_width=10,
            latent_channels=2,
            text_dim=5,
            pool_heads=1,
            patch=(1, 1, 2),
            frequencies=8,
            area=30.0,
        ),
        **F64,
    ),
}


def random_model(name: str) -> nn.Module:
    model, draw = MODELS[name](), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model.requires_grad_(False)


def denoiser(
    model: nn.Module, layout: TokenLayout, lengths: Sequence[int], text: Tensor, capacity: int | None
) -> Denoiser:
    """The model with prompts of these lengths end to end, and NaN behind them up to the capacity."""
    own = TokenLayout.packed([None] * len(lengths), lengths, capacity=capacity)
    text = torch.cat([text, text.new_full((own.width - len(text), text.shape[1]), torch.nan)])
    index, text_index = layout.on("cpu"), own.on("cpu")
    more = {"joint": JointLayout((own, layout)).on("cpu")} if isinstance(model, MochiTransformer) else {}
    return lambda x, t: model(x, t, text, index, text_index, **more)


@pytest.mark.parametrize(
    ("name", "level", "capacity"),
    [
        ("wan", "sample", 20),
        ("wan", "token", None),
        ("dit", "sample", 20),
        ("dit", "frame", None),
        ("dit", "token", 20),
        ("mochi", "sample", 20),
        ("mochi", "frame", None),
        ("mochi", "frame", 20),
    ],
)
def test_packed_conditions_equal_one_call_each(name: str, level: Level, capacity: int | None) -> None:
    model = random_model(name)
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    index = layout.on("cpu")
    x = torch.full((layout.width, 4), torch.nan, **F64)
    x[:13] = randn(13, 4)
    values = randn(index.row_counts(level)[0], seed=1).sigmoid()
    t = index.rows(values, level)
    texts = [randn(sum(lengths), 5, seed=i) for i, lengths in enumerate(TEXTS)]
    each = [denoiser(model, layout, lengths, text, capacity) for lengths, text in zip(TEXTS, texts, strict=True)]
    calls: list[tuple[int, ...]] = []
    for branches in (2, 3):
        lengths = [n for some in TEXTS[:branches] for n in some]
        wide = None if capacity is None else branches * capacity
        together = denoiser(model, layout.repeat(branches), lengths, torch.cat(texts[:branches]), wide)
        parts = packed(counted(together, calls), index, branches)
        for part, own in zip(parts, each, strict=False):
            torch.testing.assert_close(part(x, t)[:13], own(x, t)[:13], rtol=1e-11, atol=1e-11)
        calls.clear()
        if branches == 2:
            got, expected = cfg(*parts, 5.0)(x, t), cfg(*each[:2], 5.0)(x, t)
        else:
            scales = {"image_scale": 1.5, "text_scale": 7.5}
            got, expected = two_conditions(*parts, **scales)(x, t), two_conditions(*each, **scales)(x, t)
        torch.testing.assert_close(got[:13], expected[:13], rtol=1e-11, atol=1e-11)
        assert calls == [(branches * layout.width, 4)]


@pytest.mark.parametrize("level", ["one", "row", "sample", "frame", "token"])
def test_batched_conditions_equal_one_call_each(level: str) -> None:
    model = random_model("dit")
    layout = TokenLayout.dense(2, Grid(2, 1, 3))
    x, index = randn(2, 6, 4), layout.on("cpu")
    texts = [randn(2, 3, 5, seed=i) for i in range(2)]
    if level in ("one", "row"):
        t = Rows(torch.tensor([0.3, 0.8][: 1 if level == "one" else 2], **F64))
    else:
        t = index.rows(randn(index.row_counts(level)[0], seed=1).sigmoid(), level)

    def ask(rows: TokenLayout, text: Tensor) -> Denoiser:
        words = TokenLayout.padded([3] * len(text), 3)
        return lambda x, t: model(x, t, text, rows, words)

    calls: list[tuple[int, ...]] = []
    together = counted(ask(layout.repeat(2), torch.cat(texts)), calls)
    got = apg(*batched(together), 5.0, Process(), samples=PerSample(index))(x, t)
    expected = apg(*(ask(layout, text) for text in texts), 5.0, Process())(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    assert calls == [(4, 6, 4)]


def test_branches_come_copy_by_copy() -> None:
    x, t = randn(2, 3, 4), Rows(torch.tensor([0.2, 0.9], **F64))
    joint = lambda x, t: torch.cat([net(own, t) for net, own in zip((C, U, V), x.chunk(3), strict=True)])  # noqa: E731
    per_row = lambda x, t: joint(x, Rows(t.values[:2]))  # noqa: E731
    for part, net in zip(batched(per_row, 3), (C, U, V), strict=True):
        assert torch.equal(part(x, t), net(x, t))
    layout, x, t = packed_state()
    own = layout.repeat(2).on("cpu").sample[:, None] < 3
    both = lambda x, t: torch.where(own, C(x, t), U(x, t))  # noqa: E731
    for part, net in zip(packed(both, layout.on("cpu")), (C, U), strict=True):
        assert torch.equal(part(x, t), net(x, t))


def test_other_than_video_shapes_keep_theirs() -> None:
    """Raw videos as rows, and predictions of another width than the state (a learned variance)."""
    videos, t = randn(2, 3, 2, 4, 4), one_row(torch.tensor(0.5, **F64))
    wide = lambda x, t: torch.cat([x, 2 * x], dim=-1)  # noqa: E731
    assert torch.equal(batched(wide)[1](videos, t), wide(videos, t))
    layout, x, t = packed_state()
    assert torch.equal(packed(wide, layout.on("cpu"))[1](x, t), wide(x, t))


@pytest.mark.graph
def test_bad_input_is_refused() -> None:
    index = TokenLayout.packed([Grid(3, 1, 1)]).on("cpu")
    t = one_row(torch.tensor(0.5))
    with pytest.raises(ValueError, match="branches must be at least 1, got 0"):
        batched(C, 0)
    with pytest.raises(ValueError, match="branches must be at least 1, got 0"):
        packed(C, index, 0)
    with pytest.raises(ValueError, match=r"layout must be packed, \(n,\), but has tokens \(2, 3\)"):
        packed(C, TokenLayout.dense(2, Grid(3, 1, 1)).on("cpu"))
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\), but batched needs rows"):
        batched(C)[0](torch.zeros(3, 4), t)
    with pytest.raises(ValueError, match="x has 4 tokens, but the layout of packed has 3"):
        packed(C, index)[0](torch.zeros(4, 4), t)
