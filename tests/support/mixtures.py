"""One packed mixture for any open model: videos and texts of drawn sizes end to end, and each sample alone.

A model is called as ``model(t=..., layout=..., text=..., text_layout=..., x=..., **others)``. Tensors along the video
or the text tokens are cut apart with their samples, those per sample by rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from parity import error
from torch import Tensor, nn

from tubelet.layout import Grid, JointLayout, Level, Rows, TokenLayout

F64: dict[str, Any] = {"dtype": torch.float64}
GRIDS, TEXT = (Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)), (2, 0, 3)
LEVELS: tuple[Level, ...] = ("sample", "frame", "token")


@dataclass
class Mixture:
    """Widths of what the model takes: along the video, along the text, per sample."""

    video: Mapping[str, int]
    text: Mapping[str, int]
    per_sample: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    grids: tuple[Grid, ...] = GRIDS
    lengths: tuple[int, ...] = TEXT

    def layouts(self, capacity: int | None = None, text_capacity: int | None = None) -> dict[str, TokenLayout]:
        text = TokenLayout.packed([None] * len(self.grids), self.lengths, capacity=text_capacity)
        return {"layout": TokenLayout.packed(self.grids, capacity=capacity), "text_layout": text}

    def inputs(self, capacity: int | None = None, text_capacity: int | None = None) -> dict[str, Any]:
        """All tensors and layouts; what is real does not depend on the capacities, and padding is NaN."""
        out: dict[str, Any] = dict(self.layouts(capacity, text_capacity))
        draw = torch.Generator().manual_seed(0)
        for widths, layout in ((self.video, out["layout"]), (self.text, out["text_layout"])):
            for name, width in widths.items():
                real = torch.randn(sum(layout.lengths), width, generator=draw, **F64)
                padding = torch.full((layout.width - len(real), width), torch.nan, **F64)
                out[name] = torch.cat([real, padding]).requires_grad_()
        for name, shape in self.per_sample.items():
            drawn = torch.randn(len(self.grids), *shape, generator=draw, **F64)
            out[name] = (drawn if shape else drawn.abs() + 0.1).requires_grad_()  # rates and strengths are positive
        return out

    def levels(self, level: Level) -> Tensor:
        count = self.layouts()["layout"].on("cpu").row_counts(level)[0]
        return torch.rand(count, generator=torch.Generator().manual_seed(1), **F64)

    def ask(self, model: nn.Module, given: Mapping[str, Any], values: Tensor, level: Level) -> Tensor:
        """The model's answer, by indices on the device; levels of padding are NaN, or another sample's."""
        index = given["layout"].on("cpu")
        if level == "token":
            values = torch.cat([values, values.new_full((index.sample.numel() - len(values),), torch.nan)])
        t = index.rows(values, level)
        if level == "sample" and t.index is not None:  # padding may use any row, such as that of another sample
            t = replace(t, index=torch.where(index.valid, t.index, int(values.argmax())))
        layouts = {"layout": index, "text_layout": given["text_layout"].on("cpu")}
        return model(t=t, **{**given, **layouts})

    def alone(self, given: Mapping[str, Any], values: Tensor, level: Level) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each sample as a dense batch of one, with its noise levels."""
        at = dict.fromkeys(("video", "text", "levels"), 0)
        for i, grid in enumerate(self.grids):
            sizes = {"video": grid.tokens, "text": self.lengths[i]}
            sizes["levels"] = {"sample": 1, "frame": grid.t, "token": grid.tokens}[level]
            cut = {name: slice(at[name], at[name] + n) for name, n in sizes.items()}
            one: dict[str, Any] = {"layout": TokenLayout.dense(1, grid)}
            one["text_layout"] = TokenLayout.padded([self.lengths[i]], self.lengths[i])
            for kind, names in (("video", self.video), ("text", self.text)):
                one |= {name: given[name].detach()[cut[kind]][None].requires_grad_() for name in names}
            one |= {name: given[name].detach()[i : i + 1].requires_grad_() for name in self.per_sample}
            yield one, values[cut["levels"]]
            at = {name: start + sizes[name] for name, start in at.items()}


def check_packed_equals_separate(
    model: nn.Module, mixture: Mixture, level: Level, capacities: tuple[int | None, int | None] = (None, None)
) -> None:
    """Outputs and the gradients of weights and inputs, in float64."""
    given, values = mixture.inputs(*capacities), mixture.levels(level)
    total = sum(grid.tokens for grid in mixture.grids)
    model.zero_grad()
    out = mixture.ask(model, given, values, level)[:total]
    out.square().sum().backward()
    packed = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    pieces = []
    for one, own in mixture.alone(given, values, level):
        pieces.append(one | {"out": mixture.ask(model, one, own, level)})
        pieces[-1]["out"].square().sum().backward()
    torch.testing.assert_close(out, torch.cat([p["out"][0] for p in pieces]), rtol=1e-11, atol=1e-11)
    for name in (*mixture.video, *mixture.text, *mixture.per_sample):
        whole = torch.cat([p[name].grad if name in mixture.per_sample else p[name].grad[0] for p in pieces])
        _close(name, given[name].grad[: len(whole)], whole)
        assert not given[name].grad[len(whole) :].any(), name
    for name, p in model.named_parameters():
        assert (packed[name] is None) == (p.grad is None), name
        if p.grad is not None:
            _close(name, packed[name], p.grad)


def check_finer_levels(model: nn.Module, mixture: Mixture, level: Level) -> None:
    """Levels per frame or token that are equal inside each sample are one level per sample; others are not."""
    given, values = mixture.inputs(), mixture.levels("sample")
    finer = given["layout"].on("cpu").lift(values, level)
    got, expected = mixture.ask(model, given, finer, level), mixture.ask(model, given, values, "sample")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    other = mixture.ask(model, given, mixture.levels(level), level)
    assert error(other, expected) > 1e-3


def check_padding_never_counts(model: nn.Module, mixture: Mixture, padding: float) -> None:
    """A batch of rows with padded texts equals the samples end to end, whatever the padding holds."""
    count, grid = len(mixture.lengths), mixture.grids[0]
    same = Mixture(mixture.video, mixture.text, mixture.per_sample, (grid,) * count, mixture.lengths)
    given, values = same.inputs(), mixture.levels("sample")
    width = max(mixture.lengths) + 2
    rows = dict(given) | {name: given[name].unflatten(0, (count, -1)) for name in same.video}
    real = torch.arange(width) < torch.tensor(mixture.lengths)[:, None]
    for name in same.text:
        padded = torch.full((count, width, given[name].shape[-1]), padding, **F64)
        padded[real] = given[name].detach()
        rows[name] = padded
    rows |= {"layout": TokenLayout.dense(count, grid), "text_layout": TokenLayout.padded(mixture.lengths, width)}
    got, expected = same.ask(model, rows, values, "sample"), same.ask(model, given, values, "sample")
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-11, atol=1e-11)


def check_joint(model: nn.Module, mixture: Mixture) -> None:
    """Text and video merge alike from indices, from layouts on the host, from one of each, and by a given index."""
    given, values = mixture.inputs(20, 12), mixture.levels("sample")
    layouts = given["text_layout"], given["layout"]
    text, video = (layout.on("cpu") for layout in layouts)
    total, t = sum(grid.tokens for grid in mixture.grids), video.rows(values, "sample")
    expected = mixture.ask(model, given, values, "sample")[:total]
    joint = JointLayout(layouts).on("cpu")
    for change in ({}, {"text_layout": text}, {"layout": video}, {"joint": joint}, {"layout": video, "joint": joint}):
        torch.testing.assert_close(model(t=t, **given | change)[:total], expected, rtol=1e-11, atol=1e-11)
    for change, said in (
        (
            {"grids": tuple(Grid(g.h, g.w, g.t) for g in mixture.grids)},
            r"another layout: sample 0 has .*2, 1, 2\), not",
        ),
        ({"lengths": tuple(reversed(mixture.lengths))}, r"another text_layout: sample 0 has .*3, 3, 0, 0, 0\), not"),
    ):
        other = replace(mixture, **change).layouts(20, 12)
        wrong = JointLayout((other["text_layout"], other["layout"])).on("cpu")
        for layouts in ({}, {"layout": video, "text_layout": text}):
            with pytest.raises(ValueError, match=f"joint was made of {said}"):
                model(t=t, **given | layouts | {"joint": wrong})
    dropped = {"layout": given["layout"].keep(range(total)).on("cpu"), "x": given["x"][:total]}
    dropped |= {name: given[name][:total] for name in mixture.video}
    with pytest.raises(ValueError, match="has dropped tokens: merge the layouts by a JointLayout"):
        model(t=Rows(values[:1]), **given | dropped)


def check_one_graph(
    model: nn.Module, mixture: Mixture, capacity: int = 20, text_capacity: int = 12, joint: bool = False
) -> None:
    """Compiled whole, once, for several mixtures of a capacity, with the results of eager code; ``joint`` gives it."""
    compiles: list[object] = []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ((Grid(1, 2, 2),), (Grid(2, 2, 2), Grid(1, 1, 3)), (Grid(1, 1, 1),) * 9):
        lengths = tuple(i % 3 for i in range(len(grids)))
        one = Mixture(mixture.video, mixture.text, mixture.per_sample, grids, lengths)
        given, values = one.inputs(capacity, text_capacity), one.levels("sample")
        for name in one.per_sample:  # one shape for any number of samples
            real = given[name].detach()
            given[name] = torch.cat([real, real.new_zeros(16 - len(grids), *real.shape[1:])])
        if joint:
            given["joint"] = JointLayout((given["text_layout"], given["layout"])).on("cpu")
        got, expected = one.ask(compiled, given, values, "sample"), one.ask(model, given, values, "sample")
        total = sum(grid.tokens for grid in grids)
        torch.testing.assert_close(got[:total], expected[:total])
    assert len(compiles) == 1


def check_reset(make: Callable[..., nn.Module], mixture: Mixture, zero: bool = True) -> nn.Module:
    """A model made on meta initialises itself whole, and its prediction starts as zero."""
    model = make(device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()  # type: ignore[operator]
    assert all(p.isfinite().all() for p in model.parameters())
    out = mixture.ask(model, mixture.inputs(), mixture.levels("sample"), "sample")
    assert not (out.any() if zero else out.isnan().any())
    return model


def _close(name: str, got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9, msg=lambda text: f"{name}: {text}")
