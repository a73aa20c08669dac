"""Models of classes learn: the held-out loss on scanned digits, still or drifting, falls, and the class lowers it."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from parity import randomise
from torch import Tensor, nn

from tubelet.diffusion import VP, Process, draw_dropped, hybrid_loss
from tubelet.layout import Grid, TokenLayout
from tubelet.models import (
    DiT,
    DiTConfig,
    LatteClassConfig,
    LatteClassTransformer,
    LatteVariant,
    UViT,
    UViTConfig,
    Walt,
    WaltConfig,
    dit_adaln,
    dit_cross_attention,
    dit_in_context,
    walt_loss,
)
from tubelet.models.dit import Conditioning, dit_adaln_zero
from tubelet.patchify import fold
from tubelet.pipeline import bind, packed_loss

PATCH, CLASSES, HELD_OUT = (1, 2, 2), 10, 360
DDPM = Process(path=VP.linear(), prediction="eps")


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 scans ``(n, 1, 1, 8, 8)`` with values in [-1, 1], and which digits they are, in a mixed order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(found.images).float()[order, None, None] / 8 - 1
    return images, torch.from_numpy(found.target)[order].long()


def batch(rows: Tensor, frames: int) -> tuple[Tensor, TokenLayout]:
    """Patches of clips that drift by a pixel a frame, and where they lie."""
    images = digits()[0][rows]
    clips = torch.cat([images.roll(frame, -1) for frame in range(frames)], 2)
    return fold(clips, PATCH), TokenLayout.dense(len(rows), Grid(frames, 4, 4))


def loss_of(
    model: nn.Module, rows: Tensor, frames: int, labels: Tensor, draw: torch.Generator, times: Tensor
) -> Tensor:
    """Of noise, and of the variance where a model learns it, told these labels."""
    x0, layout = batch(rows, frames)
    index = layout.on("cpu")
    t = index.rows(times, "sample")
    noise = torch.randn(x0.shape, generator=draw)
    output = model(DDPM.noise(x0, noise, t), t, index, labels)
    if output.shape[-1] == x0.shape[-1]:
        return DDPM.loss(output, x0, noise, t)
    return hybrid_loss(DDPM, output, x0, noise, t, 1000)


@torch.no_grad()
def held_out(model: nn.Module, frames: int, shift: int = 0, level: float | None = None) -> float:
    """On scans that are never trained on, with the same draws each time, at all levels or at one.

    ``shift`` tells other classes than theirs.
    """
    rows, draw, losses = torch.arange(HELD_OUT), torch.Generator().manual_seed(1), []
    labels = (digits()[1][rows] + shift) % CLASSES
    for _ in range(3):
        times = DDPM.draw_times((HELD_OUT,), draw) if level is None else torch.full((HELD_OUT,), level)
        losses.append(loss_of(model, rows, frames, labels, draw, times))
    return float(torch.stack(losses).mean())


def trained(model: nn.Module, frames: int, steps: int, lr: float = 3e-3, null: int = CLASSES) -> list[float]:
    """The held-out losses before, at half and behind training with a tenth of the labels dropped."""
    draw, losses = torch.Generator().manual_seed(0), [held_out(model, frames)]
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(HELD_OUT, len(digits()[1]), (64,), generator=draw)
        dropped = draw_dropped({("label",): 0.1}, 64, draw)["label"]
        labels = torch.where(dropped, null, digits()[1][rows])
        optimizer.zero_grad()
        loss_of(model, rows, frames, labels, draw, DDPM.draw_times((64,), draw)).backward()
        optimizer.step()
        schedule.step()
        if step + 1 in (steps // 2, steps):
            losses.append(held_out(model, frames))
    return losses


def dit(conditioning: Conditioning) -> nn.Module:
    config = DiTConfig(
        dim=64, depth=3, heads=4, mlp_dim=128, latent_channels=1, variance_channels=1, classes=CLASSES, patch=PATCH
    )
    return DiT(config, conditioning=conditioning)


def uvit(conv: bool) -> nn.Module:
    return UViT(
        UViTConfig(
            dim=64, depth=2, heads=4, mlp_dim=128, grid=(1, 4, 4), latent_channels=1, classes=CLASSES, patch=PATCH,
            conv=conv,
        )
    )  # fmt: skip


def latte(variant: LatteVariant) -> nn.Module:
    return LatteClassTransformer(
        LatteClassConfig(
            dim=64, depth=4, heads=4, latent_channels=1, variance_channels=1, classes=CLASSES, patch=PATCH,
            sample_size=8, variant=variant,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.graph  # without the checks of shapes, which take most of the time of such small steps
@pytest.mark.parametrize(
    ("make", "frames", "steps"),
    [
        pytest.param(lambda: dit(dit_adaln_zero), 1, 300, id="DiT"),
        pytest.param(lambda: dit(dit_adaln), 1, 300, id="DiT, adaLN"),
        pytest.param(lambda: dit(dit_in_context), 1, 300, id="DiT, in context"),
        pytest.param(lambda: dit(dit_cross_attention), 1, 300, id="DiT, cross-attention"),
        pytest.param(lambda: uvit(True), 1, 300, id="U-ViT"),
        pytest.param(lambda: uvit(False), 1, 300, id="U-ViT, no convolution"),
        pytest.param(lambda: latte("interleaved"), 3, 200, id="Latte, interleaved"),
        pytest.param(lambda: latte("late_fusion"), 3, 200, id="Latte, late fusion"),
        pytest.param(lambda: latte("decomposed"), 3, 200, id="Latte, decomposed"),
        pytest.param(lambda: latte("half_heads"), 3, 200, id="Latte, half of the heads"),
    ],
)
def test_the_held_out_loss_falls_and_the_class_helps(make: Callable[[], nn.Module], frames: int, steps: int) -> None:
    torch.manual_seed(0)
    model = make()
    losses = trained(model, frames, steps)
    assert losses[1] < 0.2 * losses[0] and losses[2] < 0.95 * losses[1], losses
    right, *wrong = (held_out(model, frames, shift, level=0.5) for shift in (0, 2, 5, 8))
    assert right < sum(wrong) / 3, (right, wrong)


def test_only_dropped_labels_train_the_null_class() -> None:
    """W.A.L.T's loss and DiT's take labels as they are given: without a null label its row has no gradient."""
    layout, labels = TokenLayout.packed([Grid(3, 2, 2), Grid(1, 2, 2)]), torch.tensor([0, 2])
    dropped = draw_dropped({("label",): 0.5}, 2, torch.Generator().manual_seed(2))["label"]
    assert dropped.sum() == 1
    sizes = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "latent_channels": 2, "classes": 3}
    walt, small = randomise(Walt(WaltConfig(**sizes))), randomise(DiT(DiTConfig(**sizes, variance_channels=2)))
    x0 = {2: torch.randn(16, 2), 8: torch.randn(16, 8)}
    variance = partial(hybrid_loss, DDPM, steps=1000)
    for told in (labels, torch.where(dropped, 3, labels)):
        draw = torch.Generator().manual_seed(0)
        walt_loss(walt, x0[walt.config.patch_dim], layout, draw, labels=told).backward()
        packed_loss(bind(small, layout, labels=told), x0[8], layout, DDPM, draw, loss=variance).backward()
        for model in (walt, small):
            assert model.label.null == 3
            rows = model.label.table.weight.grad.any(-1)
            assert rows.nonzero().flatten().tolist() == sorted(told.tolist()), type(model)
            model.zero_grad()
