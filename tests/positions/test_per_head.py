"""Rotations of single heads against the peers that have them, and on packed samples with text."""

import itertools

import pytest
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed, apply_rotary_emb
from diffusers.models.transformers.transformer_mochi import MochiRoPE
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.layout import Grid, TokenLayout
from tubelet.norms import RMSNorm
from tubelet.positions import AreaNormalised, FractionalRope3d, Interpolation, MixedRope3d, apply_rope


def cells(t: int, h: int, w: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(t), range(h), range(w))))


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # the peer asks for float32
def test_mixed_axes_over_a_normalised_area_equal_mochi() -> None:
    grid, heads, half = (3, 4, 6), 5, 8
    rope = MixedRope3d(heads, 2 * half)
    nn.init.normal_(rope.frequencies, std=0.1)
    cos, sin = MochiRoPE()(rope.frequencies, *grid, dtype=torch.float32)
    coords = cells(*grid)
    ours = rope(AreaNormalised(192.0 * 192.0)(coords, torch.tensor(grid).expand_as(coords)))
    torch.testing.assert_close(ours.cos, cos, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.sin, sin, rtol=0, atol=1e-5)
    x = torch.randn(len(coords), heads, 2 * half)
    even, odd = x[..., ::2], x[..., 1::2]
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    torch.testing.assert_close(apply_rope(x, ours), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 12), (2, 16), (5, 8)])  # nothing, one and two pairs left over
def test_fractions_over_the_whole_width_equal_ltx(heads: int, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; the peer's own angles in float32 reach 15,708 and are off by a thousandth."""
    scale, peer = (8 / 25, 32.0, 32.0), LTXVideoRotaryPosEmbed(heads * head_dim)
    place = Interpolation((20 / scale[0], 2048 / 32, 2048 / 32))
    x, coords = torch.randn(60, heads * head_dim, dtype=torch.float64), cells(3, 4, 5)
    rotary = FractionalRope3d(heads, head_dim, place=place)(coords, torch.float64)
    got = apply_rope(x.unflatten(-1, (heads, head_dim)), rotary).flatten(-2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        exact = apply_rotary_emb(x[None], peer(x[None], 3, 4, 5, rope_interpolation_scale=scale))[0]
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-10)


def test_fractions_by_their_formula_in_float64() -> None:
    rope = FractionalRope3d(2, 16, theta=100.0, dtype=torch.float64)
    rotary = rope(torch.tensor([[0.25, 0.5, 1.0]]))
    turns = [0.0] + [(2 * f - 1) * torch.pi / 2 * 100 ** (i / 4) for i in range(5) for f in (0.25, 0.5, 1.0)]
    expected = torch.tensor(turns, dtype=torch.float64).view(1, 2, 8)
    torch.testing.assert_close(rotary.cos, expected.cos(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rotary.sin, expected.sin(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mixed", "fractional"])
def test_packed_equals_separate_and_text_does_not_turn(kind: str) -> None:
    f64 = {"dtype": torch.float64}
    grids, texts = [Grid(2, 2, 1), Grid(1, 3, 2)], [2, 1]
    attention = Attention(10, 3, head_dim=8, qk_norm=RMSNorm, across_heads=True, **f64)
    mixed, area = MixedRope3d(3, 8, **f64), AreaNormalised(36.0)
    fractional = FractionalRope3d(3, 8, place=Interpolation((4.0, 4.0, 4.0)), **f64)

    def run(x: Tensor, layout: TokenLayout) -> Tensor:
        index = layout.on("cpu")
        rope = mixed(area(index.coords, index.extent)) if kind == "mixed" else fractional(index.coords)
        assert area(index.coords, index.extent).isfinite().all()  # padding too, which has no grid
        assert not rope.sin[index.frame < 0].any()
        assert rope.cos.shape == (*index.shape, 3, 4)
        return attention(x, layout=index, rope=rope)

    x = torch.randn(16, 10, **f64)  # 13 tokens and three of padding
    packed = run(x, TokenLayout.packed(grids, texts, capacity=16))
    packed[:13].square().sum().backward()
    if kind == "mixed":
        gradient = mixed.frequencies.grad.clone()
        mixed.zero_grad()
    apart = [
        run(x[None, start : start + n], TokenLayout.dense(1, grid, text))[0]
        for start, n, grid, text in ((0, 6, grids[0], 2), (6, 7, grids[1], 1))
    ]
    torch.testing.assert_close(packed[:13], torch.cat(apart), rtol=1e-11, atol=1e-12)
    if kind == "mixed":
        torch.cat(apart).square().sum().backward()
        assert gradient.isfinite().all() and gradient.any()
        torch.testing.assert_close(gradient, mixed.frequencies.grad, rtol=1e-11, atol=1e-11)


def test_frequencies_start_as_long_as_those_of_one_axis() -> None:
    rope = MixedRope3d(4, 12, device="meta").to_empty(device="cpu")
    rope.reset_parameters()
    expected = (10000.0 ** (-torch.arange(6) / 6)).expand(4, 6)
    torch.testing.assert_close(rope.frequencies.norm(dim=0), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rope(cells(1, 2, 9)).cos, rope.float()(cells(1, 2, 9)).cos)
    assert repr(rope) == "MixedRope3d(heads=4, head_dim=12)"
    assert repr(FractionalRope3d(2, 6)) == "FractionalRope3d(heads=2, head_dim=6, theta=10000.0, place=None)"


def test_bad_input_names_the_values() -> None:
    rotary = FractionalRope3d(2, 8)(torch.zeros(3, 3))
    for make, message in [
        (lambda: apply_rope(torch.zeros(3, 1, 8), rotary), "x has 1 heads, but rotary turns 2"),
        (lambda: apply_rope(torch.zeros(4, 2, 8), rotary), "4 tokens.*turns 3 tokens"),
        (lambda: MixedRope3d(2, 7), "even to turn pairs, got 7"),
        (lambda: FractionalRope3d(1, 10), "heads=1 of head_dim=10"),
        (lambda: AreaNormalised(0.0), "area must be positive, got 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
