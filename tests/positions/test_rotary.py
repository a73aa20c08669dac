"""One rotation in three layouts: converted weights give the same attention, and nothing is lost on the way."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.layout import Grid, TokenLayout
from tubelet.norms import RMSNorm
from tubelet.positions import Rope3d, apply_rope, convert_rope

LAYOUTS = ("interleaved", "half", "half_per_axis")
PAIRS = list(itertools.product(LAYOUTS, LAYOUTS))


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_converted_weights_attend_alike(source: str, target: str, across: bool) -> None:
    axes = (6, 4, 2)
    first = Attention(10, 4, kv_heads=2, head_dim=12, qk_norm=RMSNorm, across_heads=across, dtype=torch.float64)
    second = Attention(10, 4, kv_heads=2, head_dim=12, qk_norm=RMSNorm, across_heads=across, dtype=torch.float64)
    for parameter in first.parameters():
        nn.init.normal_(parameter)
    converted = {
        name: convert_rope(t, 12, source, target, axes) if name.split("_")[0] in "qk" else t
        for name, t in first.state_dict().items()
    }
    second.load_state_dict(converted)
    index = TokenLayout.packed([Grid(2, 2, 2), Grid(1, 3, 1)], [1, 2]).on("cpu")
    x = torch.randn(*index.shape, 10, dtype=torch.float64)
    ropes = [Rope3d(12, axes, layout=layout, dtype=torch.float64)(index.coords) for layout in (source, target)]
    expected = first(x, layout=index, rope=ropes[0])
    torch.testing.assert_close(second(x, layout=index, rope=ropes[1]), expected, rtol=1e-11, atol=1e-12)
    wrong = second(x, layout=index, rope=Rope3d(12, axes, layout=source, dtype=torch.float64)(index.coords))
    assert source == target or not torch.allclose(wrong, expected, rtol=1e-3)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversion_is_lossless(source: str, target: str) -> None:
    weight = torch.randn(36, 5)
    there = convert_rope(weight, 12, source, target)
    assert torch.equal(convert_rope(there, 12, target, source), weight)
    assert torch.equal(there.sort(0).values, weight.sort(0).values)
    for middle in LAYOUTS:
        assert torch.equal(convert_rope(convert_rope(weight, 12, source, middle), 12, middle, target), there)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_one_rotation_under_another_order_of_the_features(source: str, target: str) -> None:
    """Feature by feature, on axes of unequal widths: scores alone would not see all moved alike."""
    axes, coords, x = (6, 4, 2), torch.randint(0, 9, (5, 3)), torch.randn(5, 3, 12, dtype=torch.float64)

    def moved(x: Tensor) -> Tensor:
        return convert_rope(x.movedim(-1, 0), 12, source, target, axes).movedim(0, -1)

    def turned(x: Tensor, layout: str) -> Tensor:
        return apply_rope(x, Rope3d(12, axes, layout=layout, dtype=torch.float64)(coords))

    torch.testing.assert_close(turned(moved(x), target), moved(turned(x, source)), rtol=1e-12, atol=1e-12)


def test_halves_by_hand() -> None:
    numbers = torch.arange(12)
    assert convert_rope(numbers, 12, "interleaved", "half", (4, 4, 4)).tolist() == [
        0,
        2,
        4,
        6,
        8,
        10,
        1,
        3,
        5,
        7,
        9,
        11,
    ]
    per_axis = convert_rope(numbers, 12, "interleaved", "half_per_axis", (6, 4, 2)).tolist()
    assert per_axis == [0, 2, 4, 1, 3, 5, 6, 8, 7, 9, 10, 11]


@pytest.mark.graph  # the shape checks would refuse the layout's name first
def test_bad_input_names_the_values() -> None:
    with pytest.raises(ValueError, match="13 rows, not a multiple of head_dim=12"):
        convert_rope(torch.zeros(13), 12, "half", "interleaved")
    for make in (lambda: Rope3d(12, layout="halves"), lambda: convert_rope(torch.zeros(12), 12, "half", "halves")):
        with pytest.raises(ValueError, match="'half_per_axis', got 'halves'"):
            make()
