"""The two losses of a step: their sums, who gets gradients of which, and the balance against autograd by hand."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tubelet.metrics import LPIPS
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig, kl_loss, reconstruction_loss
from tubelet.vae.objectives import (
    NON_SATURATING,
    R1,
    Adversary,
    Judged,
    LeCam,
    Objective,
    PatchDiscriminator,
    Reconstruction,
    adaptive_weight,
    draw_frames,
    draw_window,
    frozen,
    perceptual_loss,
    reconstruct,
)

SIZES = CausalAutoencoderConfig(in_channels=3, latent_channels=2, widths=(4, 8), depths=(1, 1))


def autoencoder() -> CausalAutoencoder:
    torch.manual_seed(0)
    return CausalAutoencoder(SIZES).double()


def discriminator(kernel: tuple[int, int, int] = (1, 4, 4)) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(3, 4, 2, kernel=kernel, norm=lambda n: nn.GroupNorm(2, n)).double()


def objective(vae: CausalAutoencoder, **adversaries: Adversary) -> Objective:
    lpips = LPIPS((4, 4, 8, 8, 8)).double()
    last = vae.decoder.ungroups
    return Objective(
        {
            "l1": lambda made, _: reconstruction_loss(made.decoded, made.video, l1=1.0),
            "kl": lambda made, _: kl_loss(made.posterior),
            "lpips": lambda made, g: perceptual_loss(lpips, made.decoded, made.video, frames=2, generator=g),
        },
        adversaries,
        balance_at=(last.first.weight, last.rest.weight),
    )


def batch(frames: int = 5) -> Tensor:
    return torch.rand(2, 3, frames, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def through(vae: CausalAutoencoder, video: Tensor) -> Reconstruction:
    return reconstruct(vae, video, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("frames", [1, 5])
def test_the_loss_is_the_weighted_sum(frames: int) -> None:
    vae = autoencoder()
    whole, weights = objective(vae), {"l1": 2.0, "kl": 0.1, "lpips": 0.5}
    made = through(vae, batch(frames))
    loss, numbers = whole.autoencoder_loss(made, weights, torch.Generator().manual_seed(4))
    assert loss.item() == pytest.approx(sum(weights[name] * numbers[name].item() for name in weights), rel=1e-12)
    assert numbers["l1"].item() == pytest.approx((made.decoded - made.video).abs().mean().item(), rel=1e-12)
    mean, logvar = made.posterior.mean, made.posterior.logvar
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    assert numbers["kl"].item() == pytest.approx(kl.item(), rel=1e-12)
    assert not any(value.requires_grad for value in numbers.values())


@pytest.mark.parametrize("frames", [1, 5])
def test_the_balance_is_the_ratio_of_gradients_at_the_last_layer(frames: int) -> None:
    """Against gradients of the whole weights of the last layer, taken by separate backward passes."""
    vae, judge = autoencoder(), discriminator()
    weights = {"l1": 1.0, "kl": 0.1, "frames": 0.5}
    loss, numbers = objective(vae, frames=Adversary(judge)).autoencoder_loss(through(vae, batch(frames)), weights)
    norms = []
    for part in ("terms", "adversary"):
        vae.zero_grad()
        made = through(vae, batch(frames))
        terms = (made.decoded - made.video).abs().mean() + 0.1 * kl_loss(made.posterior)
        (terms if part == "terms" else -judge(made.decoded).mean()).backward()
        grads = [layer.weight.grad for layer in (vae.decoder.ungroups.first, vae.decoder.ungroups.rest)]
        norms.append(sum(g.square().sum() for g in grads if g is not None).sqrt().item())
    balance = norms[0] / (norms[1] + 1e-4)
    assert numbers["frames.balance"].item() == pytest.approx(balance, rel=1e-6)
    fooling = -judge(made.decoded).mean().item()
    assert numbers["frames"].item() == pytest.approx(fooling, rel=1e-12)
    expected = numbers["l1"].item() + 0.1 * numbers["kl"].item() + 0.5 * balance * fooling
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_equal_differences_at_a_fixed_balance() -> None:
    vae, judge = autoencoder(), discriminator((3, 4, 4))
    whole, weights = objective(vae, clips=Adversary(judge, NON_SATURATING)), {"l1": 1.0, "lpips": 0.3, "clips": 0.7}
    weight = vae.decoder.project.weight

    def parts() -> tuple[Tensor, dict[str, Tensor]]:
        return whole.autoencoder_loss(through(vae, batch()), weights, torch.Generator().manual_seed(4))

    loss, numbers = parts()
    loss.backward()
    balance, direction = numbers["clips.balance"], torch.randn_like(weight)
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-6 * direction
        moved = parts()[1]
        sums.append(moved["l1"] + 0.3 * moved["lpips"] + 0.7 * balance * moved["clips"])
        with torch.no_grad():
            weight -= sign * 1e-6 * direction
    torch.testing.assert_close((weight.grad * direction).sum(), (sums[0] - sums[1]) / 2e-6, rtol=1e-5, atol=1e-9)


def test_each_half_has_gradients_on_its_side_alone() -> None:
    vae = autoencoder()
    whole = objective(vae, frames=Adversary(discriminator(), penalties={"r1": R1(1.0), "lecam": LeCam(0.1)}))
    weights = {"l1": 1.0, "kl": 1e-3, "frames": 0.5}
    for parameter in vae.parameters():  # branches that start at zero pass no gradients on
        nn.init.normal_(parameter, std=0.2)
    made = through(vae, batch())
    whole.autoencoder_loss(made, weights)[0].backward()
    assert all(p.grad is None and p.requires_grad for p in whole.adversaries.parameters())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in vae.parameters())
    vae.zero_grad()
    whole.discriminator_loss(made, weights)[0].backward()
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in whole.adversaries.parameters())


def test_the_loss_of_discriminators_is_the_sum_of_games_and_penalties() -> None:
    vae, judges = autoencoder(), {"frames": discriminator(), "clips": discriminator((3, 4, 4))}
    whole = objective(
        vae, frames=Adversary(judges["frames"], penalties={"r1": R1(10.0)}), clips=Adversary(judges["clips"])
    )
    made = through(vae, batch())
    loss, numbers = whole.discriminator_loss(made, {"frames": 0.1, "clips": 3.0})
    expected = 0.0
    for name, judge in judges.items():
        real, fake = judge(made.video), judge(made.decoded)
        game = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
        assert numbers[f"{name}.game"].item() == pytest.approx(game.item(), rel=1e-12)
        assert numbers[f"{name}.real"].item() == pytest.approx(real.mean().item(), rel=1e-12)
        assert numbers[f"{name}.fake"].item() == pytest.approx(fake.mean().item(), rel=1e-12)
        expected += game.item()
    video = made.video.clone().requires_grad_()
    (slope,) = torch.autograd.grad(judges["frames"](video).mean((1, 2, 3, 4)).sum(), video)
    r1 = 10 * 0.5 * slope.square().sum((1, 2, 3, 4)).mean().item()
    assert numbers["frames.r1"].item() == pytest.approx(r1, rel=1e-9)
    assert loss.item() == pytest.approx(expected + r1, rel=1e-9)


def test_what_does_not_count_is_not_computed() -> None:
    def fail(made: Reconstruction, generator: torch.Generator | None) -> Tensor:
        raise AssertionError

    vae, adversary = autoencoder(), Adversary(discriminator())
    made = through(vae, batch(1))
    whole = Objective({"l1": lambda made, _: made.decoded.abs().mean(), "far": fail}, {"frames": adversary})
    assert list(whole.autoencoder_loss(made, {"l1": 1.0, "far": 0.0, "frames": 0.0})[1]) == ["l1"]
    assert list(whole.discriminator_loss(made, {"l1": 1.0})[1]) == []
    assert "frames.game" in whole.discriminator_loss(made, {"l1": 1.0, "frames": 0.0})[1]


def test_without_a_place_to_balance_weights_count_as_they_are() -> None:
    vae, judge = autoencoder(), discriminator()
    made = through(vae, batch(1))
    whole = Objective({"l1": lambda made, _: made.decoded.abs().mean()}, {"frames": Adversary(judge)})
    loss, numbers = whole.autoencoder_loss(made, {"l1": 1.0, "frames": 0.25})
    expected = made.decoded.abs().mean() - 0.25 * judge(made.decoded).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert numbers["frames.balance"].item() == 1.0


@pytest.mark.parametrize("draw", [draw_frames, draw_window])
def test_an_adversary_sees_the_drawn_frames_of_both_videos(draw) -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            seen.append(video)
            return video.mean((1, 2, 3, 4))

    real = torch.arange(7.0).reshape(1, 1, 7, 1, 1).expand(3, 1, 7, 2, 2)
    fake = (-real).clone().requires_grad_()
    adversary = Adversary(Watch(), draw=partial(draw, 3))
    adversary.judging(real, fake, torch.Generator().manual_seed(0))
    index = draw(3, 3, 7, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0][:, 0, :, 0, 0], index.float()) and torch.equal(seen[1], -seen[0])
    adversary.fooling(fake, torch.Generator().manual_seed(0)).backward()
    assert torch.equal(fake.grad[:, 0, :, 0, 0] != 0, nn.functional.one_hot(index, 7).sum(1).bool())


def test_lecam_follows_its_formula_and_its_averages() -> None:
    lecam = LeCam(0.5, decay=0.9)
    x, means = torch.zeros(1, 1, 1, 1, 1), [0.0, 0.0]
    for seed in range(3):
        real, fake = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(seed))
        found = lecam(Judged(lecam, x, x, real, fake)).item()
        means = [0.9 * old + 0.1 * new.mean().item() for old, new in zip(means, (real, fake), strict=True)]
        expected = 0.5 * ((real - means[1]) ** 2).mean() + 0.5 * ((fake - means[0]) ** 2).mean()
        assert found == pytest.approx(expected.item(), rel=1e-5)
    assert sorted(lecam.state_dict()) == ["fake_mean", "real_mean"]


def test_frozen_modules_thaw_even_after_errors_and_what_was_frozen_stays() -> None:
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(layer):
        assert not layer.weight.requires_grad
        raise RuntimeError
    assert layer.weight.requires_grad and not layer.bias.requires_grad


def test_names_that_do_not_fit_are_named() -> None:
    vae = autoencoder()
    made, whole = through(vae, batch(1)), objective(vae)
    with pytest.raises(ValueError, match=r"weights name \['l3'\], but the objective has \['l1', 'kl', 'lpips'\]"):
        whole.autoencoder_loss(made, {"l1": 1.0, "l3": 1.0})
    with pytest.raises(ValueError, match=r"weights name \['l3'\]"):
        whole.discriminator_loss(made, {"l1": 1.0, "l3": 1.0})
    with pytest.raises(ValueError, match=r"one of the terms \['l1', 'kl', 'lpips'\], got \{'l1': 0.0\}"):
        whole.autoencoder_loss(made, {"l1": 0.0})
    with pytest.raises(ValueError, match=r"\['l1'\] are of both"):
        objective(vae, l1=Adversary(discriminator()))


def test_the_balance_divides_by_a_norm_in_float32() -> None:
    tiny = torch.full((1000,), 1e-3, dtype=torch.bfloat16)
    assert adaptive_weight([tiny], [tiny], eps=0.0).dtype == torch.float32
