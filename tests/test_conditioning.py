"""Embeddings and modulation against diffusers and against their formulas."""

import math

import pytest
import torch
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, get_timestep_embedding
from torch.nn import functional as F

from tubelet.conditioning import AdaLNZero, LabelEmbedding, TimestepEmbedding, timestep_sinusoid
from tubelet.layout import Rows

TIMES = torch.tensor([0.0, 1.0, 17.5, 999.0])


@pytest.mark.parametrize("dim", [2, 8, 256])
def test_sinusoid_equals_diffusers(dim: int) -> None:
    expected = get_timestep_embedding(TIMES, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_sinusoid(TIMES, dim), expected, rtol=1e-5, atol=1e-4)


def test_sinusoid_equals_its_formula_in_float64() -> None:
    got = timestep_sinusoid(TIMES.double(), 6, max_period=100.0)
    for row, t in zip(got, TIMES.tolist(), strict=True):
        angles = [t * 100.0 ** (-i / 3) for i in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)


def test_sinusoid_of_half_precision_times_is_float32() -> None:
    assert timestep_sinusoid(TIMES.bfloat16(), 4).dtype == torch.float32
    with pytest.raises(ValueError, match="dim must be even, got 5"):
        timestep_sinusoid(TIMES, 5)


def test_embeddings_of_time_and_label_equal_dits() -> None:
    theirs = CombinedTimestepLabelEmbeddings(num_classes=10, embedding_dim=32, class_dropout_prob=0.1).double().eval()
    theirs.time_proj.downscale_freq_shift = 0  # diffusers has 1 here, DiT's own code 0
    time, label = TimestepEmbedding(32, dtype=torch.float64), LabelEmbedding(10, 32, dtype=torch.float64)
    time.up.load_state_dict(theirs.timestep_embedder.linear_1.state_dict())
    time.down.load_state_dict(theirs.timestep_embedder.linear_2.state_dict())
    label.table.load_state_dict(theirs.class_embedder.embedding_table.state_dict())
    labels = torch.tensor([0, 3, 9, label.null])
    expected = theirs(TIMES, labels, hidden_dtype=torch.float64)
    got = time(TIMES.double()) + label(labels)
    assert label.null == 10
    assert (got - expected).norm() <= 1e-5 * expected.norm()  # their sinusoid is float32


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


def test_meta_construction_and_reset() -> None:
    for make in (
        lambda: TimestepEmbedding(8, device="meta"),
        lambda: LabelEmbedding(4, 8, device="meta"),
        lambda: AdaLNZero(4, 8, device="meta"),
    ):
        module = make()
        assert all(p.is_meta for p in module.parameters())
        filled = module.to_empty(device="cpu")
        for p in filled.parameters():
            torch.nn.init.constant_(p, torch.nan)
        filled.reset_parameters()
        assert all(p.isfinite().all() and p.abs().max() < 0.2 for p in filled.parameters())
