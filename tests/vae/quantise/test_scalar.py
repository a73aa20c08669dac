"""Finite scalar quantisers, single and residual: every index, two other implementations, definitions."""

import itertools
import math

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_vidtok import FSQRegularizer
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.xcodec2.configuration_xcodec2 import Xcodec2Config
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2FiniteScalarQuantization

from tubelet.vae.quantise import FiniteScalar, Quantiser, ResidualScalar

F64 = torch.float64
LEVELS = [(8, 5, 5, 5), (2, 3), (7,), (8, 8, 8, 5, 5, 5), (4, 2, 6)]


def latents(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 3 * torch.randn(3, 50, channels, dtype=dtype, generator=torch.Generator().manual_seed(channels))


@pytest.mark.parametrize("levels", LEVELS)
def test_the_codes_are_the_product_of_the_levels(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalar(levels)
    assert fsq.size == math.prod(levels)
    numbers = torch.arange(fsq.size)
    codes = fsq.codes(numbers, F64)
    assert torch.equal(fsq.indices(codes), numbers)
    if fsq.size < 2000:
        grids = [[k / (level // 2) for k in range(-(level // 2), level - level // 2)] for level in levels]
        # the first channel turns fastest
        expected = [list(reversed(code)) for code in itertools.product(*reversed(grids))]
        assert torch.equal(codes, torch.tensor(expected, dtype=F64))
    assert torch.equal(fsq.codes(numbers.reshape(1, -1, 1))[0, :, 0], codes.float())


@pytest.mark.parametrize("levels", LEVELS)
def test_equal_to_diffusers_and_transformers(levels: tuple[int, ...]) -> None:
    x = latents(len(levels))
    ours = FiniteScalar(levels)(x)
    codes, numbers = FSQRegularizer(list(levels))(x)
    assert torch.equal(ours.codes, codes)
    theirs = Xcodec2FiniteScalarQuantization(Xcodec2Config(quantization_levels=list(levels)))
    codes, _ = theirs(x)
    torch.testing.assert_close(ours.codes, codes, rtol=0, atol=1e-6)
    assert torch.equal(ours.codes, theirs.codebook[ours.indices])
    off = (ours.indices - numbers).count_nonzero()  # diffusers cuts off what its floats make of a whole number
    assert off <= 0.02 * numbers.numel()


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_can_be_reached_and_zero_stays_zero(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalar(levels)
    line = torch.linspace(-20, 20, 20001, dtype=F64)[:, None].expand(-1, len(levels))
    out = fsq(line)
    assert [len(column.unique()) for column in out.codes.unbind(1)] == list(levels)
    assert fsq(torch.zeros(len(levels))).codes.abs().max() == 0
    assert torch.equal(fsq.codes(out.indices, F64), out.codes)


def test_the_gradient_is_that_of_the_bound() -> None:
    levels = (4, 5)
    x = latents(2, F64).requires_grad_()
    weight = torch.randn(x.shape, dtype=F64)
    (ours,) = torch.autograd.grad((FiniteScalar(levels)(x).codes * weight).sum(), x)
    expected = torch.empty_like(x)
    for i, level in enumerate(levels):
        half, offset = 1.001 * (level - 1) / 2, 0.0 if level % 2 else 0.5
        slope = half / torch.cosh(x[..., i] + math.atanh(offset / half)) ** 2 / (level // 2)
        expected[..., i] = slope * weight[..., i]
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-12, atol=1e-14)


@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=3), stages=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_stage_leaves_at_most_its_share(levels: list[int], stages: int, seed: int) -> None:
    x = 3 * torch.randn(40, len(levels), dtype=F64, generator=torch.Generator().manual_seed(seed))
    rfsq = ResidualScalar(levels, stages)
    out = rfsq(x)
    assert out.indices.shape == (40, stages)
    assert torch.equal(rfsq.codes(out.indices, F64), out.codes)
    bound = torch.tensor(levels, dtype=F64) - 1
    for q in range(1, stages + 1):
        left = (rfsq.codes(out.indices[:, :q], F64) - torch.tanh(x)).abs()
        assert (left <= bound**-q * (1 + 1e-9)).all()


def test_residual_numbers_by_the_definition() -> None:
    levels, stages = (5, 8), 3
    x = latents(2, F64)
    out = ResidualScalar(levels, stages)(x)
    for place in itertools.product(range(3), range(0, 50, 7)):
        left, digits = [math.tanh(value) for value in x[place].tolist()], []
        for q in range(stages):
            row = []
            for c, level in enumerate(levels):
                grid = [(2 * k / (level - 1) - 1) / (level - 1) ** q for k in range(level)]
                nearest = min(range(level), key=lambda k: abs(grid[k] - left[c]))
                left[c] -= grid[nearest]
                row.append(nearest)
            digits.append(row[0] + 5 * row[1])
        assert out.indices[place].tolist() == digits


@pytest.mark.parametrize(("levels", "stages"), [((3,), 2), ((4,), 2), ((5, 3), 2), ((4, 3), 3)])
def test_residual_codes_survive_every_number(levels: tuple[int, ...], stages: int) -> None:
    rfsq = ResidualScalar(levels, stages)
    numbers = torch.cartesian_prod(*[torch.arange(rfsq.size)] * stages)
    codes = rfsq.codes(numbers, F64)
    torch.testing.assert_close(rfsq.codes(rfsq.indices(codes), F64), codes, rtol=0, atol=1e-12)


def test_one_residual_stage_of_odd_levels_is_the_rounded_tanh() -> None:
    x = latents(3, F64)
    torch.testing.assert_close(ResidualScalar((5, 7, 9), 1)(x).codes, (torch.tanh(x) * torch.tensor([2, 3, 4])).round()
                               / torch.tensor([2, 3, 4]), rtol=0, atol=1e-15)  # fmt: skip


def test_the_residual_gradient_is_that_of_tanh() -> None:
    x = latents(3, F64).requires_grad_()
    weight = torch.randn(x.shape, dtype=F64)
    (ours,) = torch.autograd.grad((ResidualScalar((4, 5, 6), 2)(x).codes * weight).sum(), x)
    torch.testing.assert_close(ours, (weight / torch.cosh(x) ** 2).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [lambda: FiniteScalar((8, 5, 5)), lambda: ResidualScalar((5, 4, 3), 2)])
def test_packed_and_dense_and_low_precision(make) -> None:
    quantiser = make()
    assert isinstance(quantiser, Quantiser)
    x = latents(3)
    dense, packed = quantiser(x), quantiser(x.flatten(0, 1))
    assert torch.equal(dense.codes.flatten(0, 1), packed.codes)
    assert torch.equal(dense.indices.flatten(0, 1), packed.indices)
    low = quantiser(x.bfloat16())
    assert low.codes.dtype == torch.bfloat16
    assert torch.equal(low.indices, quantiser(x.bfloat16().float()).indices)
    again = quantiser.codes(quantiser.indices(low.codes))
    torch.testing.assert_close(again, quantiser.codes(low.indices), rtol=0, atol=1e-6)


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_errors_name_the_argument() -> None:
    for levels in ((), (1, 5), (5, 1000), (2.5,)):
        with pytest.raises(ValueError, match=r"levels must be whole numbers from 2 to 999"):
            FiniteScalar(levels)
    with pytest.raises(ValueError, match=r"levels .* more than the 2\^63"):
        FiniteScalar((999,) * 7)
    with pytest.raises(ValueError, match=r"from 3 to 999"):
        ResidualScalar((2,), 2)
    with pytest.raises(ValueError, match=r"stages must be a positive whole number, not 0"):
        ResidualScalar((5,), 0)
    with pytest.raises(ValueError, match=r"latents must have 2 channels on the last axis, got shape \(4, 3\)"):
        FiniteScalar((5, 5))(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 25\), got 0 to 25"):
        FiniteScalar((5, 5)).codes(torch.tensor([0, 25]))
    with pytest.raises(ValueError, match=r"indices must end in 1 to 2 stages, got shape \(4, 3\)"):
        ResidualScalar((5,), 2).codes(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"codes must be those of levels \(5, 5\), got -9.0 to 0.5"):
        FiniteScalar((5, 5)).indices(torch.tensor([[0.5, -9.0]]))


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize("make", [lambda: FiniteScalar((5, 5)), lambda: ResidualScalar((5,), 2)])
def test_parts_of_numbers_are_refused(make) -> None:
    with pytest.raises(ValueError, match="indices must be whole numbers, got torch.float32"):
        make().codes(torch.tensor([[1.5, 0.0]]))
