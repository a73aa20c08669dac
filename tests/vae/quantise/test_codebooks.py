"""Lookup-free and vector quantisers, losses and statistics: definitions in float64, counts, and what training does."""

import itertools
import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from tubelet.vae.quantise import (
    CodeStatistics,
    LookupFree,
    Quantiser,
    VectorQuantiser,
    commitment_loss,
    entropy_loss,
)

F64 = torch.float64


def latents(channels: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 40, channels, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_lookup_free_numbers_are_the_bits() -> None:
    lfq, x = LookupFree(5), latents(5)
    out = lfq(x)
    for place in itertools.product(range(3), range(40)):
        assert out.indices[place].item() == sum(2**i for i, value in enumerate(x[place].tolist()) if value > 0)
        assert out.codes[place].tolist() == [1.0 if value > 0 else -1.0 for value in x[place].tolist()]
    numbers = torch.arange(lfq.size)
    assert torch.equal(lfq.indices(lfq.codes(numbers)), numbers)
    assert len(lfq.codes(numbers).unique(dim=0)) == 32
    assert lfq(torch.zeros(5)).indices == 0
    big = LookupFree(62)
    assert torch.equal(big.indices(big.codes(torch.tensor([2**62 - 1, 0]))), torch.tensor([2**62 - 1, 0]))


def test_straight_through_is_exact_both_ways() -> None:
    vq = VectorQuantiser(7, 4, dtype=F64).eval()
    for quantiser in (LookupFree(4), vq):
        x = (1e3 * latents(4)).requires_grad_()
        out = quantiser(x)
        assert torch.equal(out.codes, quantiser.codes(out.indices).to(F64))
        weight = torch.randn(x.shape, dtype=F64)
        (gradient,) = torch.autograd.grad((out.codes * weight).sum(), x)
        assert torch.equal(gradient, weight)


def brute_entropy(x: torch.Tensor, temperature: float) -> float:
    """E[H(q)] - H(E[q]) over all codes, distance by distance."""
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=x.shape[-1])), dtype=F64)
    distances = (x.reshape(-1, 1, x.shape[-1]) - codes).square().sum(-1)
    chances = torch.softmax(-distances / temperature, -1)
    return scipy_entropy(chances.numpy(), axis=1).mean() - scipy_entropy(chances.mean(0).numpy())


@pytest.mark.parametrize("temperature", [0.01, 1.0, 7.0])
def test_entropy_loss_by_brute_force(temperature: float) -> None:
    x = latents(4)
    assert entropy_loss(x, temperature=temperature).item() == pytest.approx(brute_entropy(x, temperature), abs=1e-10)
    parts = [brute_entropy(x[..., i : i + 2], temperature) for i in (0, 2)]
    grouped = entropy_loss(x, temperature=temperature, bits=2).item()
    assert grouped == pytest.approx(sum(parts), abs=1e-10)
    assert grouped <= entropy_loss(x, temperature=temperature).item() + 1e-12


def test_entropy_loss_is_lowest_for_sure_and_even_codes() -> None:
    every = LookupFree(3).codes(torch.arange(8), F64)
    assert entropy_loss(every).item() == pytest.approx(-3 * math.log(2), abs=1e-9)
    assert entropy_loss(every[:1].expand(8, -1)).item() == pytest.approx(0, abs=1e-9)
    assert torch.autograd.gradcheck(lambda x: entropy_loss(x, temperature=2.0), latents(3)[0, :5].requires_grad_())


def test_commitment_loss_moves_the_latents_alone() -> None:
    x, codes = latents(4).requires_grad_(), latents(4, seed=1).requires_grad_()
    loss = commitment_loss(x, codes)
    assert loss.item() == pytest.approx(((x - codes) ** 2).mean().item(), rel=1e-12)
    by_latents, by_codes = torch.autograd.grad(loss, (x, codes), allow_unused=True)
    torch.testing.assert_close(by_latents, 2 * (x - codes).detach() / x.numel())
    assert by_codes is None


def test_the_nearest_code_by_distance() -> None:
    vq, x = VectorQuantiser(11, 4, dtype=F64).eval(), latents(4)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    out = vq(x)
    assert torch.equal(out.indices, torch.cdist(x, vq.codebook).argmin(-1))
    assert torch.equal(vq.indices(vq.codes(torch.arange(11))), torch.arange(11))
    assert all(torch.equal(before[name], value) for name, value in vq.state_dict().items())
    assert torch.equal(vq(x).codes, out.codes)


def test_moving_averages_by_their_formula() -> None:
    vq, gamma = VectorQuantiser(5, 3, decay=0.9, least=0.0, dtype=F64), 0.9
    counts, sums = vq.counts.clone(), vq.sums.clone()
    for step in range(3):
        x = latents(3, seed=step)
        used, flat = vq(x).indices.reshape(-1), x.reshape(-1, 3)
        for k in range(5):
            counts[k] = gamma * counts[k] + (1 - gamma) * (used == k).sum().item()
            sums[k] = gamma * sums[k] + (1 - gamma) * flat[used == k].sum(0)
        total = counts.sum()
        expected = sums / ((counts + 1e-5) / (total + 5e-5) * total)[:, None]
        torch.testing.assert_close(vq.codebook, expected, rtol=1e-12, atol=1e-12)


def test_training_finds_the_clusters_and_dead_codes_start_again() -> None:
    centres = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0], [0.0, -10.0]])
    generator = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        return centres[torch.randint(4, (64,), generator=generator)] + 0.1 * torch.randn(64, 2, generator=generator)

    def spread(least: float) -> tuple[float, float]:
        torch.manual_seed(1)
        vq = VectorQuantiser(8, 2, decay=0.8, least=least)
        far = torch.tensor([[0.1, 0.1], *[[90.0 + i, 0.0] for i in range(7)]])
        vq.load_state_dict({"codebook": far, "sums": far, "counts": torch.ones(8)})
        for _ in range(30):
            vq(batch())
        vq.eval()
        x = batch()
        out = vq(x)
        return CodeStatistics.of(out.indices, 8).usage, commitment_loss(x, out.codes).item()

    assert spread(0.0)[0] == 0.125  # without a new start one code takes all
    usage, loss = spread(1.0)
    assert usage > 0.5
    assert loss < 0.1


def test_state_is_saved_and_empty_batches_change_nothing() -> None:
    vq, other = VectorQuantiser(6, 3), VectorQuantiser(6, 3)
    vq(latents(3, torch.float32))
    other.load_state_dict(vq.state_dict())
    assert torch.equal(other.codebook, vq.codebook)
    vq(torch.zeros(0, 3))
    assert torch.equal(other.codebook, vq.codebook)
    assert isinstance(vq, Quantiser)
    assert isinstance(LookupFree(3), Quantiser)


def test_statistics_by_scipy_and_added_over_batches() -> None:
    numbers = torch.randint(0, 20, (7, 30), generator=torch.Generator().manual_seed(0)) ** 2 // 20
    counts = torch.bincount(numbers.reshape(-1), minlength=32)
    whole = CodeStatistics.of(numbers, 32)
    assert torch.equal(whole.counts, counts)
    assert whole.entropy == pytest.approx(scipy_entropy(counts.numpy(), base=2), abs=1e-12)
    assert whole.perplexity == pytest.approx(2**whole.entropy)
    assert whole.usage == len(numbers.unique()) / 32
    parts = CodeStatistics.of(numbers[:3], 32) + CodeStatistics.of(numbers[3:], 32)
    assert torch.equal(parts.counts, whole.counts)
    nothing = CodeStatistics.of(torch.zeros(0, dtype=torch.int64), 4)
    assert (nothing.usage, nothing.entropy, nothing.perplexity) == (0.0, 0.0, 1.0)


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_errors_name_the_argument() -> None:
    for channels in (0, 63, 2.5):
        with pytest.raises(ValueError, match=r"channels must be a positive whole number up to 62"):
            LookupFree(channels)
    with pytest.raises(ValueError, match=r"size must be a positive whole number, not 0"):
        VectorQuantiser(0, 4)
    with pytest.raises(ValueError, match=r"decay must lie between 0 and 1, not 1"):
        VectorQuantiser(4, 4, decay=1)
    with pytest.raises(ValueError, match=r"least must be at least 0, not -1"):
        VectorQuantiser(4, 4, least=-1)
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 4\), got -1 to 2"):
        VectorQuantiser(4, 4).codes(torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=r"bits must divide the 4 channels, not 3"):
        entropy_loss(torch.zeros(2, 4), bits=3)
    with pytest.raises(ValueError, match=r"temperature must be positive, not 0"):
        entropy_loss(torch.zeros(2, 4), temperature=0)
    with pytest.raises(ValueError, match=r"codes have shape \(2, 3\), but latents have \(2, 4\)"):
        commitment_loss(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"statistics of 4 and 5 codes do not add up"):
        CodeStatistics.of(torch.zeros(1).long(), 4) + CodeStatistics.of(torch.zeros(1).long(), 5)
