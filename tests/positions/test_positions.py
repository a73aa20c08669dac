"""Positions against diffusers in float64, and against the properties that define them."""

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers.models import embeddings
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tubelet.layout import Grid, TokenLayout
from tubelet.positions import (
    Interpolation,
    LearnedGridPositions,
    LearnedPositions,
    LearnedSpaceTimePositions,
    LearnedTextPositions,
    Rope3d,
    Rotary,
    SinCos2d,
    SinCos3d,
    apply_rope,
    rope_angles,
    rope_axes,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
ROUNDED = {"rtol": 0, "atol": 2e-6}  # the peer rounds its frequencies or its table to float32
LAYOUTS = ["interleaved", "half", "half_per_axis"]


def cells(t: int, h: int, w: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(t), range(h), range(w))))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_sincos_1d_equals_diffusers_in_float64() -> None:
    position = torch.tensor([0.0, 1.0, 2.5, 300.0], dtype=torch.float64)
    expected = embeddings.get_1d_sincos_pos_embed_from_grid(10, position, output_type="pt")
    torch.testing.assert_close(sincos_1d(position, 10, dtype=torch.float64), expected, **EXACT)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_sincos_2d_equals_diffusers_in_float64(height: int, width: int) -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).double()
    expected = embeddings.get_2d_sincos_pos_embed_from_grid(24, grid, output_type="pt")
    ours = sincos_2d(cells(1, height, width)[:, 1:], 24, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, **EXACT)


def test_sincos_2d_equals_dit_table() -> None:
    expected = embeddings.get_2d_sincos_pos_embed(1152, 16, base_size=16, output_type="pt")
    torch.testing.assert_close(sincos_2d(cells(1, 16, 16)[:, 1:], 1152), expected.float(), **ROUNDED)


def test_sincos_2d_puts_w_first_and_sin_before_cos() -> None:
    vector = sincos_2d(torch.tensor([2, 3]), 8, dtype=torch.float64)
    expected = [f(p * s) for p in (3, 2) for f in (math.sin, math.cos) for s in (1, 0.01)]
    torch.testing.assert_close(vector, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_sincos_3d_equals_diffusers() -> None:
    expected = embeddings.get_3d_sincos_pos_embed(64, (5, 4), 3, 1.875, 2.0, output_type="pt")  # (width, height)
    coords = cells(3, 4, 5) / torch.tensor([2.0, 1.875, 1.875])
    torch.testing.assert_close(sincos_3d(coords, 64), expected.flatten(0, 1).float(), **ROUNDED)


def test_sincos_3d_is_time_then_plane_in_float64() -> None:
    coords = random(7, 3) * 20
    ours = sincos_3d(coords, 32, base=500.0, dtype=torch.float64)
    parts = [(0, 8), (2, 12), (1, 12)]
    for part, (axis, width) in zip(ours.split([8, 12, 12], dim=-1), parts, strict=True):
        frequencies = 500.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
        angles = coords[:, axis, None] * frequencies
        torch.testing.assert_close(part, torch.cat([angles.sin(), angles.cos()], dim=-1), **EXACT)


def test_sincos_of_the_plane_is_the_same_in_every_frame_and_zero_for_text() -> None:
    index = mixed().on("cpu")
    got = SinCos2d(24)(index.coords, torch.float64)
    text = index.coords[:, 0] < 0
    torch.testing.assert_close(got, torch.where(text[:, None], 0, sincos_2d(index.coords[:, 1:], 24, dtype=got.dtype)))
    assert got.dtype == torch.float64 and SinCos3d(16)(index.coords, torch.float64).dtype == torch.float64
    assert torch.equal(got[3:15], got[15:27])  # behind three tokens of text, two frames of 3 by 4


def test_large_coordinates_keep_their_precision_in_float32() -> None:
    far = torch.tensor([[100_003, 0, 0]])
    assert sincos_3d(far, 16)[0, 0].item() == pytest.approx(math.sin(100_003), abs=1e-7)
    assert Rope3d(6)(far).cos[0, 0].item() == pytest.approx(math.cos(100_003), abs=1e-7)


def mixed() -> TokenLayout:
    return TokenLayout.packed([Grid(2, 3, 4), Grid(1, 2, 2)], text_lengths=[3, 1], capacity=64)


@pytest.mark.parametrize(
    "positions",
    [
        SinCos3d(32),
        LearnedPositions((2, 3, 4), 32),
        LearnedGridPositions((2, 3, 4), 32),
        LearnedSpaceTimePositions((2, 3, 4), 32),
    ],
)
def test_packed_tokens_get_what_their_grid_alone_gets(positions: torch.nn.Module) -> None:
    vectors = positions(mixed().on("cpu").coords)
    real = torch.cat([torch.zeros(3, 32), positions(cells(2, 3, 4)), torch.zeros(1, 32), positions(cells(1, 2, 2))])
    assert torch.equal(vectors, torch.cat([real, torch.zeros(64 - len(real), 32)]))
    assert len(real.unique(dim=0)) == 24 + 1  # every cell has a vector of its own, and all text shares zero


def test_dense_layouts_broadcast() -> None:
    coords = TokenLayout.dense(2, Grid(2, 1, 3), text_length=2).on("cpu").coords
    assert torch.equal(SinCos3d(16)(coords)[1], SinCos3d(16)(coords[1]))
    assert Rope3d(12)(coords).cos.shape == (2, 8, 6)


def test_rope_leaves_text_unrotated() -> None:
    layout = mixed().on("cpu")
    x = torch.randn(64, 2, 12)
    turned = apply_rope(x, Rope3d(12)(layout.coords))
    still = layout.coords[:, 0] < 0
    assert still.sum() == 64 - 28
    assert torch.equal(turned[still], x[still])
    moved = (turned != x).flatten(1).any(1)
    assert torch.equal(moved, layout.coords.clamp(min=0).sum(-1).bool() & ~still)


def test_learned_positions_sum_their_tables() -> None:
    positions, coords = LearnedPositions((2, 3, 4), 8), cells(2, 3, 4)
    expected = torch.stack([positions.time[t] + positions.height[h] + positions.width[w] for t, h, w in coords])
    assert torch.equal(positions(coords), expected)
    positions(torch.tensor([[1, 2, 3], [-1, 0, 3]])).sum().backward()
    assert positions.time.grad[:, 0].tolist() == [0, 1]
    assert positions.width.grad[:, 0].tolist() == [0, 0, 0, 1]


def test_tables_are_read_between_their_entries_too() -> None:
    """Linear in each axis, with the gradient of an entry the share that it has; behind the last entry lies the last."""
    positions = LearnedPositions((2, 3, 4), 8, dtype=torch.float64)
    t, h, w = positions.time, positions.height, positions.width
    got = positions(torch.tensor([[0.25, 1.5, 3.0], [1.9, 2.0, 0.0], [-1.0, 0.0, 9.0]], dtype=torch.float64))
    expected = [0.75 * t[0] + 0.25 * t[1] + 0.5 * h[1] + 0.5 * h[2] + w[3], t[1] + h[2] + w[0], torch.zeros(8)]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-14, atol=1e-14)
    got[0].sum().backward()
    assert t.grad[:, 0].tolist() == [0.75, 0.25] and h.grad[:, 0].tolist() == [0, 0.5, 0.5]
    whole = cells(2, 3, 4)
    torch.testing.assert_close(positions(whole.double()), positions(whole), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"coords span .*outside extent=\(2, 3, 4\)"):
        positions(torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64))


def test_an_axis_may_have_no_table() -> None:
    """All is alike along it, however long it is."""
    plane, whole = LearnedPositions((None, 3, 4), 8), LearnedPositions((2, 3, 4), 8)
    assert list(plane.state_dict()) == ["height", "width"]
    whole.load_state_dict(plane.state_dict() | {"time": torch.zeros(2, 8)})
    coords = cells(2, 3, 4)
    torch.testing.assert_close(plane(coords), whole(coords))
    assert torch.equal(plane(torch.tensor([[50, 1, 1]])), plane(torch.tensor([[0, 1, 1]])))
    with pytest.raises(ValueError, match=r"extent must name an axis, got \(None, None, None\) for dim=8"):
        LearnedPositions((None, None, None), 8)


def test_learned_grid_positions_are_one_table_in_raster_order() -> None:
    positions = LearnedGridPositions((2, 3, 4), 8)
    assert torch.equal(positions(cells(2, 3, 4)), positions.table.flatten(0, 2))
    positions(torch.tensor([[1, 2, 3], [-1, 0, 3]])).sum().backward()
    assert positions.table.grad[..., 0].nonzero().tolist() == [[1, 2, 3]]


def test_learned_space_time_positions_sum_a_frame_and_a_place_in_it() -> None:
    positions, coords = LearnedSpaceTimePositions((2, 3, 4), 8), cells(2, 3, 4)
    expected = torch.stack([positions.time[t] + positions.space[h, w] for t, h, w in coords])
    assert torch.equal(positions(coords), expected)
    positions(torch.tensor([[1, 2, 3], [-1, 0, 3]])).sum().backward()
    assert positions.time.grad[:, 0].tolist() == [0, 1]
    assert positions.space.grad[..., 0].nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("kind", [LearnedPositions, LearnedGridPositions, LearnedSpaceTimePositions])
def test_learned_positions_refuse_what_lies_outside(kind: type) -> None:
    positions = kind((2, 3, 4), 8)
    positions(torch.tensor([[-1, 0, 50]]))  # text has any position
    for outside in ([2, 0, 0], [0, 3, 0], [1, 2, 4], [0, -1, 0]):
        with pytest.raises(ValueError, match=r"coords span .*outside extent=\(2, 3, 4\)"):
            positions(torch.tensor([[0, 0, 0], outside]))


def test_learned_text_positions_are_one_vector_per_place_in_the_text() -> None:
    """Zero for the grid and for padding, whatever their coordinates; a text that is too long is an error."""
    positions, index = LearnedTextPositions(3, 8), mixed().on("cpu")
    vectors = positions(index.coords)
    expected = torch.zeros(64, 8)
    expected[:3], expected[27] = positions.table, positions.table[0]
    assert torch.equal(vectors, expected)
    vectors[:28].sum().backward()
    assert positions.table.grad[:, 0].tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match=r"coords span .*outside extent=\(1, 1, 3\)"):
        positions(torch.tensor([[-1, 0, 3]]))
    assert torch.nn.init.zeros_(positions.table).std() == 0
    positions.reset_parameters()
    assert positions.table.std().item() == pytest.approx(0.02, rel=0.5)


def test_sinusoids_of_mapped_places_in_any_dtype() -> None:
    coords = cells(2, 3, 4)
    placed = SinCos3d(32, place=Interpolation((2.0, 1.5, 1.5)))
    expected = sincos_3d(coords / torch.tensor([2.0, 1.5, 1.5]).double(), 32, dtype=torch.float64)
    assert torch.equal(placed(coords, torch.float64), expected)
    assert torch.equal(placed(coords), expected.float())
    assert repr(placed) == "SinCos3d(32, base=10000.0, place=Interpolation(scale=(2.0, 1.5, 1.5)))"


@pytest.mark.parametrize("kind", [LearnedPositions, LearnedGridPositions, LearnedSpaceTimePositions])
def test_learned_positions_start_small_and_build_on_meta(kind: type) -> None:
    positions = kind((8, 16, 16), 64, device="meta")
    assert all(p.is_meta for p in positions.parameters())
    positions = positions.to_empty(device="cpu")
    positions.reset_parameters()
    assert all(p.std().item() == pytest.approx(0.02, rel=0.1) for p in positions.parameters())


def peer_rotate(x: Tensor, cos: Tensor, sin: Tensor, pair_dim: int = -1) -> Tensor:
    """diffusers' rotation of (n, heads, head_dim), in float32 as it computes."""
    return embeddings.apply_rotary_emb(x[None].float(), (cos, sin), use_real_unbind_dim=pair_dim, sequence_dim=1)[0]


@pytest.mark.parametrize("theta", [256.0, 10000.0])
def test_angles_equal_diffusers_in_float64(theta: float) -> None:
    position = torch.arange(50, dtype=torch.float64)
    expected = embeddings.get_1d_rotary_pos_embed(20, position, theta, freqs_dtype=torch.float64).angle()
    ours = rope_angles(position[:, None] * torch.tensor([0, 1, 0]), 40, (10, 20, 10), theta)
    assert ours.dtype == torch.float64
    assert ours[:, :5].abs().max() == ours[:, 15:].abs().max() == 0
    wrapped = torch.atan2(ours.sin(), ours.cos())
    torch.testing.assert_close(wrapped[:, 5:15], expected, **EXACT)


def test_equal_to_wan() -> None:
    assert rope_axes(128) == (44, 42, 42)
    cos, sin = WanRotaryPosEmbed(128, (1, 2, 2), 64)(torch.empty(1, 1, 5, 8, 12))
    rotary = Rope3d(128)(cells(5, 4, 6))
    assert torch.equal(rotary.cos, cos[0, :, 0, ::2])
    assert torch.equal(rotary.sin, sin[0, :, 0, ::2])
    x = random(120, 3, 128)
    torch.testing.assert_close(apply_rope(x.float(), rotary), peer_rotate(x, cos[0, :, 0], sin[0, :, 0]), **ROUNDED)


def test_equal_to_hunyuan_video() -> None:
    cos, sin = HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56], 256.0)(torch.empty(1, 1, 5, 8, 12))
    rotary = Rope3d(128, (16, 56, 56), theta=256.0)(cells(5, 4, 6))
    torch.testing.assert_close(rotary.cos, cos[:, ::2], **ROUNDED)
    torch.testing.assert_close(rotary.sin, sin[:, 1::2], **ROUNDED)
    x = random(120, 3, 128)
    torch.testing.assert_close(apply_rope(x.float(), rotary), peer_rotate(x, cos, sin), rtol=0, atol=1e-5)


def test_equal_to_cogvideox() -> None:
    cos, sin = embeddings.get_3d_rotary_pos_embed(64, ((0, 0), (4, 6)), (4, 6), 5)
    rotary = Rope3d(64, (16, 24, 24))(cells(5, 4, 6))
    x = random(120, 3, 64)
    torch.testing.assert_close(apply_rope(x.float(), rotary), peer_rotate(x, cos, sin), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rotation_equals_diffusers_formula_in_float64(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = Rope3d(24, layout=layout, dtype=torch.float64)(random(9, 3).abs() * 30)
    x = random(9, 2, 24)
    repeated = [
        t.repeat_interleave(2, -1) if layout == "interleaved" else t.repeat(1, 2) for t in (rotary.cos, rotary.sin)
    ]
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the peer's only rounding
    expected = peer_rotate(x, *repeated, pair_dim=-1 if layout == "interleaved" else -2)
    torch.testing.assert_close(apply_rope(x, rotary), expected, **EXACT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_orthogonal_and_its_gradient_turns_back(layout: Any) -> None:
    rotary = Rope3d(24, layout=layout, dtype=torch.float64)(random(9, 3).abs() * 30)
    x = random(9, 2, 24).requires_grad_()
    turned = apply_rope(x, rotary)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), **EXACT)
    turned.backward(turned.detach())
    torch.testing.assert_close(x.grad, x.detach(), **EXACT)


shifts = st.tuples(*[st.integers(0, 50)] * 3)


@given(shifts, shifts, shifts, st.sampled_from(LAYOUTS))
def test_scores_depend_on_relative_position_alone(
    q_at: tuple[int, ...], k_at: tuple[int, ...], shift: tuple[int, ...], layout: Any
) -> None:
    rope = Rope3d(12, layout=layout, dtype=torch.float64)
    q, k = random(2, 1, 12)
    coords = torch.tensor([q_at, k_at])

    def score(places: Tensor) -> Tensor:
        turned = apply_rope(torch.stack([q, k]), rope(places))
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(coords + torch.tensor(shift)), score(coords), rtol=0, atol=1e-11)


def test_rotary_broadcasts_over_a_batch_and_heads() -> None:
    rotary, x = Rope3d(12)(cells(1, 2, 2)), torch.randn(3, 4, 5, 12)
    turned = apply_rope(x, rotary)
    for i, h in itertools.product(range(3), range(5)):
        torch.testing.assert_close(turned[i, :, h], apply_rope(x[i, :, h : h + 1], rotary)[:, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_low_precision_rotates_in_float32(layout: Any) -> None:
    rotary, x = Rope3d(32, layout=layout)(cells(4, 4, 4)), torch.randn(64, 2, 32)
    assert torch.equal(apply_rope(x.bfloat16(), rotary), apply_rope(x.bfloat16().float(), rotary).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply_rope(x, Rope3d(32, layout=layout)(cells(4, 4, 4)))
    assert torch.equal(inside, apply_rope(x, rotary))


@pytest.mark.graph
def test_positions_trace_as_one_graph_for_any_number_of_tokens() -> None:
    rope, sincos, learned = Rope3d(24), SinCos3d(32), LearnedPositions((5, 5, 5), 32)

    def both(coords: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rope(x, rope(coords)), sincos(coords) + learned(coords)

    counter = CompileCounter()
    compiled = torch.compile(both, fullgraph=True, backend=counter, dynamic=True)
    for n in (6, 9, 20):
        coords, x = torch.randint(0, 5, (n, 3)), torch.randn(n, 2, 24)
        coords[0] = -1
        for ours, expected in zip(compiled(coords, x), both(coords, x), strict=True):
            torch.testing.assert_close(ours, expected)
    assert counter.frame_count == 1


def test_bad_input_names_the_values() -> None:
    for make, message in [
        (lambda: sincos_1d(torch.zeros(2), 3), r"even, got 3"),
        (lambda: sincos_2d(torch.zeros(2, 2), 6), r"multiple of 4.*got 6"),
        (lambda: sincos_3d(torch.zeros(2, 3), 24), r"multiple of 16.*got 24"),
        (lambda: SinCos2d(6), r"multiple of 4.*got 6"),
        (lambda: SinCos3d(40), r"multiple of 16.*got 40"),
        (lambda: Rope3d(4), r"at least 6.*got 4"),
        (lambda: rope_axes(9), r"even.*got 9"),
        (lambda: Rope3d(12, (4, 4, 6)), r"head_dim=12, got \(4, 4, 6\)"),
        (lambda: rope_angles(torch.zeros(1, 3), 12, (3, 5, 4)), r"even widths.*\(3, 5, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    rotary = Rope3d(12)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"head_dim 10.*head_dim 12"):
        apply_rope(torch.zeros(2, 1, 10), rotary)
    with pytest.raises(ValueError, match=r"3 tokens.*turns 2 tokens"):
        apply_rope(torch.zeros(3, 1, 12), rotary)


def test_an_axis_may_have_no_width() -> None:
    rotary = Rope3d(8, (0, 4, 4))(torch.tensor([[7, 1, 2]]))
    expected = torch.tensor([[1.0, 0.01, 2.0, 0.02]])
    torch.testing.assert_close(torch.atan2(rotary.sin, rotary.cos), expected)


def test_repr_says_the_sizes() -> None:
    assert repr(Rope3d(12)) == "Rope3d(12, axes=(4, 4, 4), theta=10000.0, layout='interleaved')"
    assert repr(SinCos2d(8)) == "SinCos2d(8, base=10000.0)"
    assert repr(SinCos3d(16)) == "SinCos3d(16, base=10000.0)"
    assert Rotary(torch.ones(1, 2), torch.zeros(1, 2)).layout == "interleaved"
