"""W.A.L.T learns: real handwriting, still and drifting, with classes, given frames and estimates of its own."""

import pytest
import torch
from torch import Tensor

from tubelet.demo.digits import load
from tubelet.layout import TokenLayout
from tubelet.models import Walt, WaltConfig, walt_loss
from tubelet.patchify import fold_packed

CONFIG = WaltConfig(
    dim=48,
    depth=4,
    heads=3,
    mlp_dim=96,
    latent_channels=1,
    classes=10,
    patch=(1, 2, 2),
    extent=(3, 4, 4),
    spatial_window=(1, 4, 4),
    window=(3, 2, 2),
    frame_prediction=True,
)


def batch(split: str, rows: Tensor) -> tuple[Tensor, TokenLayout, Tensor]:
    """Images and clips of three frames that drift by a pixel, a digit each, in turn."""
    hand = load(split)
    ink = 2 * hand.ink[rows][:, None] - 1
    clips = [x[:, None] if i % 3 else torch.stack([x.roll(j, -1) for j in range(3)], 1) for i, x in enumerate(ink)]
    patches, grids = fold_packed(clips, CONFIG.patch)
    return patches, TokenLayout.packed(grids), hand.digits[rows]


def held_out(model: Walt) -> float:
    """The loss on handwriting that is never trained on, with the same draws each time."""
    patches, layout, labels = batch("held_out", torch.arange(64))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        losses = [walt_loss(model, patches, layout, draw, labels=labels, frame_prediction=0.5) for _ in range(4)]
    return float(torch.stack(losses).mean())


@pytest.mark.slow
def test_the_held_out_loss_falls() -> None:
    torch.manual_seed(0)
    model, draw = Walt(CONFIG), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    losses = [held_out(model)]
    for steps in (30, 70):
        for _ in range(steps):
            rows = torch.randint(len(load("train").digits), (24,), generator=draw)
            patches, layout, labels = batch("train", rows)
            loss = walt_loss(model, patches, layout, draw, labels=labels, frame_prediction=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(held_out(model))
    assert losses[1] < 0.8 * losses[0] and losses[2] < 0.9 * losses[1], losses
