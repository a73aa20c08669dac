"""Norm + SiLU + padding, interpreted, against the definition in float64."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rounding import near
from torch import Tensor

from tubelet.kernels import norm_silu_pad
from tubelet.kernels._padded import launches

TOLERANCE = 2e-6
EPS = 1e-2


class Case(NamedTuple):
    """One drawn call."""

    shape: tuple[int, int, int, int, int]
    groups: int | None
    affine: bool
    per_frame: bool
    before: Any
    frames: int
    around: tuple[int, int]
    edges: Any
    memory: str
    enough: int
    seed: int


cases = st.builds(
    Case,
    shape=st.tuples(
        st.integers(1, 2), st.sampled_from([2, 6, 40]), st.integers(1, 2), st.integers(1, 5), st.integers(1, 4)
    ),
    groups=st.sampled_from([None, None, 1, 2]),
    affine=st.booleans(),
    per_frame=st.booleans(),
    before=st.sampled_from(["copies", "zeros", "state"]),
    frames=st.integers(0, 2),
    around=st.sampled_from([(0, 0), (1, 1), (2, 0)]),
    edges=st.sampled_from(["zeros", "replicate"]),
    memory=st.sampled_from(["first", "last", "sliced"]),
    enough=st.sampled_from([1, 2048]),  # programs wanted: few walk several tiles
    seed=st.integers(0, 99),
)


def made(shape: tuple[int, ...], memory: str) -> Tensor:
    if memory == "sliced":  # frames that are not dense
        return torch.randn(*shape[:3], shape[3] + 1, shape[4] + 2)[..., 1:, 2:]
    return torch.randn(shape).to(memory_format=torch.channels_last_3d if memory == "last" else torch.contiguous_format)


def definition(leaves: dict[str, Tensor], case: Case) -> Tensor:
    """Written out in float64, position by position of the result."""
    x = leaves["x"]
    if case.groups is None:
        normed = x / (x.square().mean(1, keepdim=True) + EPS).sqrt()
    else:
        parts = x.unflatten(1, (case.groups, -1))
        axes = (2, 4, 5) if case.per_frame else (2, 3, 4, 5)
        centred = parts - parts.mean(axes, keepdim=True)
        normed = (centred / (centred.square().mean(axes, keepdim=True) + EPS).sqrt()).flatten(1, 2)
    if case.affine:
        normed = normed * leaves["weight"].reshape(-1, 1, 1, 1) + leaves["bias"].reshape(-1, 1, 1, 1)
    y = normed / (1 + torch.exp(-normed))
    if case.before == "state":
        y = torch.cat([leaves["state"], y], 2)
    else:
        y = torch.cat([y[:, :, :1] * (case.before == "copies")] * case.frames + [y], 2)
    places = [torch.arange(-pad, side + pad) for pad, side in zip(case.around, y.shape[3:], strict=True)]
    near_h, near_w = (place.clamp(0, side - 1) for place, side in zip(places, y.shape[3:], strict=True))
    out = y[:, :, :, near_h][..., near_w]
    if case.edges == "replicate":
        return out
    return out * ((near_h == places[0])[:, None] & (near_w == places[1]))


def compare(case: Case) -> None:
    torch.manual_seed(case.seed)
    b, c, _, h, w = case.shape
    leaves = {"x": made(case.shape, case.memory)}
    if case.before == "state":
        leaves["state"] = made((b, c, case.frames, h, w), case.memory)
    if case.affine:
        leaves |= {"weight": torch.randn(c), "bias": torch.randn(c)}
    ours, exact = (
        {name: leaf.to(dtype).detach().requires_grad_() for name, leaf in leaves.items()}
        for dtype in (torch.float32, torch.float64)
    )
    got = norm_silu_pad(
        ours["x"],
        norm="rms" if case.groups is None else "group",
        groups=case.groups,
        weight=ours.get("weight"),
        bias=ours.get("bias"),
        per_frame=case.per_frame,
        state=ours.get("state"),
        frames=case.frames,
        before="zeros" if case.before == "zeros" else "copies",
        around=case.around,
        edges=case.edges,
        eps=EPS,
        backend="triton",
    )
    if case.memory == "last" and not ours["x"].is_contiguous():
        assert got.is_contiguous(memory_format=torch.channels_last_3d)
    expected = definition(exact, case)
    near(got, expected, "values", TOLERANCE)
    grad = made(tuple(got.shape), case.memory)
    got.backward(grad)
    expected.backward(grad.double())
    for name, leaf in exact.items():
        near(ours[name].grad, leaf.grad, f"gradient of {name}", TOLERANCE)


@given(cases)
@example(Case((1, 6, 3, 4, 3), None, True, True, "copies", 2, (1, 1), "replicate", "last", 1, 0))
@example(Case((2, 6, 2, 3, 4), 2, True, False, "state", 2, (1, 1), "replicate", "first", 2048, 1))
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    with patch("tubelet.kernels._padded.launches._ENOUGH", case.enough):
        compare(case)


@pytest.mark.parametrize("groups", [None, 5])
def test_frames_of_several_tiles(groups: int | None) -> None:
    """Programs that walk tiles, and more channels than a tile has."""
    case = Case((1, 70, 1, 6, 7), groups, True, True, "copies", 1, (0, 0), "zeros", "first", 1, 0)
    with patch("tubelet.kernels._padded.launches._ENOUGH", 1), patch("tubelet.kernels._padded.launches._TILE", 512):
        compare(case)


def test_a_large_mean_keeps_its_digits() -> None:
    x = 1000 + torch.randn(1, 4, 2, 9, 9)
    got = launches.statistics(x, launches.Shape(2, False), 1e-6)
    parts = x.double().unflatten(1, (2, 2)).movedim(1, 0).flatten(1)
    near(got[0, :, 0], parts.mean(1), "mean", 1e-6)
    near(got[0, :, 1], parts.var(1, unbiased=False).rsqrt(), "1/deviation", 1e-5)


def test_half_precision_is_rounded_once() -> None:
    x, weight = torch.randn(1, 8, 2, 3, 3).half(), torch.randn(8)
    got = norm_silu_pad(x, norm="rms", eps=1e-6, weight=weight, state=torch.randn(1, 8, 1, 3, 3), backend="triton")
    exact = norm_silu_pad(x.double(), norm="rms", eps=1e-6, weight=weight.double())
    assert got.dtype == torch.float16
    assert torch.equal(got[:, :, 1:], exact.half())


def test_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        norm_silu_pad(torch.ones(1, 4, 2, 3, 3).bfloat16(), norm="rms", eps=1e-6, backend="triton")


@pytest.mark.graph
@pytest.mark.parametrize("groups", [None, 2])
def test_the_operators_are_sound(groups: int | None) -> None:
    x, state, weight = (torch.randn(*shape, requires_grad=True) for shape in ((1, 4, 2, 3, 3), (1, 4, 1, 3, 3), (4,)))
    options = (0 if groups is None else 4 // groups, True, 1, False, 1, 1, True, 1e-3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.tubelet.norm_silu_pad.default, (x, state, weight, weight, *options), test_utils=tests
    )


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return norm_silu_pad(x * 2, norm="rms", eps=1e-6, weight=weight, frames=2, backend="triton") ** 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [made((1, 4, 2, 3, 3), "last").requires_grad_(), torch.randn(4, requires_grad=True)]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()
