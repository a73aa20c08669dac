"""Embeddings and modulation against diffusers and against their formulas."""

import math

import pytest
import torch
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, get_timestep_embedding
from diffusers.models.transformers.transformer_cosmos import CosmosAdaLayerNorm, CosmosAdaLayerNormZero
from torch import Tensor
from torch.nn import functional as F

from tubelet.blocks import modulate
from tubelet.conditioning import (
    AdaLNLoRA,
    AdaLNSingle,
    AdaLNZero,
    LabelEmbedding,
    ModulationSlice,
    NumbersEmbedding,
    TimestepEmbedding,
    timestep_sinusoid,
)
from tubelet.layout import Rows
from tubelet.testing import check_modulation

TIMES = torch.tensor([0.0, 1.0, 17.5, 999.0])


@pytest.mark.parametrize("dim", [2, 8, 256])
def test_sinusoid_equals_diffusers(dim: int) -> None:
    expected = get_timestep_embedding(TIMES, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_sinusoid(TIMES, dim), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("freq_shift", [0, 1])
def test_sinusoid_equals_its_formula_in_float64(freq_shift: int) -> None:
    got = timestep_sinusoid(TIMES.double(), 6, max_period=100.0, freq_shift=freq_shift)
    for row, t in zip(got, TIMES.tolist(), strict=True):
        angles = [t * 100.0 ** (-i / (3 - freq_shift)) for i in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)


def test_sinusoid_of_half_precision_times_is_float32() -> None:
    assert timestep_sinusoid(TIMES.bfloat16(), 4).dtype == torch.float32
    with pytest.raises(ValueError, match="dim must be even, got 5"):
        timestep_sinusoid(TIMES, 5)
    with pytest.raises(ValueError, match="freq_shift=2 must be less than half of dim=4"):
        timestep_sinusoid(TIMES, 4, freq_shift=2)


def test_embeddings_of_time_and_label_equal_dits() -> None:
    theirs = CombinedTimestepLabelEmbeddings(num_classes=10, embedding_dim=32, class_dropout_prob=0.1).double().eval()
    time, label = TimestepEmbedding(32, freq_shift=1, dtype=torch.float64), LabelEmbedding(10, 32, dtype=torch.float64)
    time.up.load_state_dict(theirs.timestep_embedder.linear_1.state_dict())
    time.down.load_state_dict(theirs.timestep_embedder.linear_2.state_dict())
    label.table.load_state_dict(theirs.class_embedder.embedding_table.state_dict())
    labels = torch.tensor([0, 3, 9, label.null])
    expected = theirs(TIMES, labels, hidden_dtype=torch.float64)
    got = time(TIMES.double()) + label(labels)
    assert label.null == 10
    assert (got - expected).norm() <= 1e-5 * expected.norm()  # their sinusoid is float32
    theirs.time_proj.downscale_freq_shift = time.freq_shift = 0  # as DiT's own code has it
    expected, got = theirs(TIMES, labels, hidden_dtype=torch.float64), time(TIMES.double()) + label(labels)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_labels_outside_the_table_are_named() -> None:
    with pytest.raises(ValueError, match="labels lie between -1 and 3, but the table has 0 to 10"):
        LabelEmbedding(10, 4)(torch.tensor([3, -1]))
    without = LabelEmbedding(10, 4, null=False)
    with pytest.raises(ValueError, match="labels lie between 2 and 10, but the table has 0 to 9"):
        without(torch.tensor([10, 2]))
    assert without.null is None and without(torch.tensor([9])).shape == (1, 4)


def test_adaln_is_closed_at_the_start_and_is_linear_of_silu() -> None:
    source = AdaLNZero(4, 6, parts=2, dtype=torch.float64)
    cond = Rows(torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 1]))
    assert source(cond).values.shape == (3, 8) and not source(cond).values.any()
    with torch.no_grad():
        source.proj.weight.normal_()
        source.proj.bias.normal_()
    out = source(cond)
    expected = F.linear(cond.values * torch.sigmoid(cond.values), source.proj.weight, source.proj.bias)
    torch.testing.assert_close(out.values, expected, rtol=1e-11, atol=1e-12)
    assert out.index is cond.index and out.owner is cond.owner


def test_adaln_single_adds_its_table_in_float32() -> None:
    source = AdaLNSingle(4, parts=6, dtype=torch.bfloat16)
    cond = Rows(torch.randn(3, 24).bfloat16(), torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 1]))
    out = source(cond)
    assert out.values.dtype == torch.float32 and out.index is cond.index and out.owner is cond.owner
    assert torch.equal(out.values.unflatten(-1, (6, 4)), cond.values.float().unflatten(-1, (6, 4)) + source.table)
    parts = [ModulationSlice(4, start)(out).values for start in (0, 3)]
    assert torch.equal(torch.cat(parts, -1), out.values)
    assert source.double()(cond.map(Tensor.double)).values.dtype == torch.float64


@pytest.mark.parametrize("parts", [3, 2])
def test_adaln_lora_equals_cosmos(parts: int) -> None:
    theirs = (CosmosAdaLayerNormZero if parts == 3 else CosmosAdaLayerNorm)(8, 5).double()
    ours = AdaLNLoRA(8, 8, rank=5, parts=parts, dtype=torch.float64)
    ours.down.load_state_dict(theirs.linear_1.state_dict())
    ours.up.load_state_dict(theirs.linear_2.state_dict())
    x, c, shared = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((3, 8), (8,), (24,)))
    rows = ours(Rows(torch.cat([c, shared], -1))).chunk(parts)
    ours_x = modulate(F.layer_norm(x, (8,), eps=1e-6), *rows[:2])
    expected = theirs(x, c, shared)
    torch.testing.assert_close(ours_x, expected[0] if parts == 3 else expected, rtol=1e-11, atol=1e-11)
    if parts == 3:
        torch.testing.assert_close(rows[2].values[:, None], expected[1], rtol=1e-11, atol=1e-11)


def test_adaln_lora_counts_are_those_of_walt() -> None:
    """The published millions of parameters at size L and ranks 2 to 256 leave one and the same rest, within 2 M."""
    dim, layers, published = 1024, 24, {2: 313, 4: 314, 16: 316, 64: 324, 256: 357}

    def millions(rank: int) -> float:
        one = AdaLNLoRA(dim, dim, rank, parts=6, device="meta")
        assert sum(p.numel() for p in one.parameters()) == rank * 7 * dim
        return (layers - 1) * sum(p.numel() for p in one.parameters()) / 1e6

    rests = [total - millions(rank) for rank, total in published.items()]
    assert all(abs(rest - sum(rests) / len(rests)) < 2 for rest in rests)


@pytest.mark.parametrize(
    ("source", "cond_dim", "width"),
    [
        (AdaLNSingle(8, parts=3), 24, 24),
        (AdaLNLoRA(8, 6, 2), 6 + 24, 24),
        (AdaLNLoRA(8, 6, 2, parts=2), 6 + 24, 16),
        (AdaLNZero(8, 6, parts=1), 6, 8),
    ],
)
def test_every_source_passes_the_kit(source: torch.nn.Module, cond_dim: int, width: int) -> None:
    check_modulation(source, cond_dim, width)


def test_a_lora_starts_at_the_shared_modulation() -> None:
    shared = torch.randn(2, 24)
    assert torch.equal(AdaLNLoRA(4, 6, 2)(Rows(torch.cat([torch.randn(2, 6), shared], -1))).values, shared[:, :12])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (AdaLNSingle(4, 2), "cond is 7 wide, but the table holds 8"),
        (AdaLNLoRA(4, 3, 1, 2), "cond is 7 wide, but holds c of 3 and a shared modulation of 8"),
        (ModulationSlice(4, 1, 1), "cond is 7 wide, but the part ends at 8"),
    ],
)
def test_rows_of_another_width_are_refused(source: torch.nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        source(Rows(torch.zeros(1, 7)))


def test_meta_construction_and_reset() -> None:
    for make in (
        lambda: TimestepEmbedding(8, device="meta"),
        lambda: LabelEmbedding(4, 8, device="meta"),
        lambda: AdaLNZero(4, 8, device="meta"),
        lambda: AdaLNLoRA(4, 8, 2, device="meta"),
        lambda: AdaLNSingle(400, device="meta"),
    ):
        module = make()
        assert all(p.is_meta for p in module.parameters())
        filled = module.to_empty(device="cpu")
        for p in filled.parameters():
            torch.nn.init.constant_(p, torch.nan)
        filled.reset_parameters()
        assert all(p.isfinite().all() and p.abs().max() < 0.2 for p in filled.parameters())


def test_numbers_of_a_sample_are_embedded_as_pixart_does() -> None:
    """diffusers' embedding of resolution and aspect is two of ours side by side, on top of the time's."""
    from diffusers.models.embeddings import PixArtAlphaCombinedTimestepSizeEmbeddings

    theirs = PixArtAlphaCombinedTimestepSizeEmbeddings(24, 8, use_additional_conditions=True)
    sizes, aspect = NumbersEmbedding(16, count=2), NumbersEmbedding(8, count=1)
    for ours, name in ((sizes, "resolution_embedder"), (aspect, "aspect_ratio_embedder")):
        peer = getattr(theirs, name)
        ours.each.up.load_state_dict(peer.linear_1.state_dict())
        ours.each.down.load_state_dict(peer.linear_2.state_dict())
    resolution, ratio = torch.tensor([[480.0, 832.0], [256.0, 320.0]]), torch.tensor([[0.58], [0.8]])
    time = torch.zeros(2)
    expected = theirs(time, resolution, ratio, 2, torch.float32) - theirs.timestep_embedder(theirs.time_proj(time))
    got = torch.cat([sizes(resolution), aspect(ratio)], dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="dim=16 is not a multiple of count=3"):
        NumbersEmbedding(16, count=3)
    with pytest.raises(ValueError, match="1 a row, but the module was made for count=2"):
        sizes(ratio)
