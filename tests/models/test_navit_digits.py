"""NaViT trained on real handwriting at mixed sizes: the loss of held-out images falls, and they are read."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.models import NaViT, NaViTConfig
from tubelet.packing import PackedBatch, Sample, ScheduledDrop, collate, drop_tokens, pack_stream
from tubelet.patchify import fold_packed
from tubelet.training import set_lr, warmup_cosine

EPOCHS, BUDGET, VIEWS, READ = 24, 384, 6, 0.9
CONFIG = NaViTConfig(
    dim=64, depth=2, heads=2, mlp_dim=128, grid=(1, 8, 8), channels=1, patch=(1, 4, 4), classes=10,
    positions="fractional",
)  # fmt: skip


def digits() -> tuple[list[list[Sample]], list[int]]:
    """1,797 scans of 8 by 8 pixels, each in views of sizes of their own: 12 to 24 pixels a side, most of them small."""
    from sklearn.datasets import load_digits

    found, rng = load_digits(), np.random.default_rng(0)
    mixed = rng.permutation(len(found.target))
    images = torch.from_numpy(found.images[mixed]).float()[:, None] / 8 - 1

    def view(image: Tensor) -> Sample:
        size = 4 * rng.choice(np.arange(3, 7), 2, p=np.array([4, 3, 2, 1]) / 10)
        stretched = F.interpolate(image[None], tuple(map(int, size)), mode="bilinear")
        patches, (grid,) = fold_packed([stretched[0, :, None]], CONFIG.patch)
        return Sample(patches, grid)

    return [[view(image) for image in images] for _ in range(VIEWS)], found.target[mixed].tolist()


def packs(samples: list[Sample], order: list[int]) -> list[tuple[PackedBatch, list[int]]]:
    """Batches of the samples in this order, and which they hold."""
    members = pack_stream([len(samples[i].tokens) for i in order], BUDGET)
    return [(collate([samples[order[j]] for j in each], BUDGET), [order[j] for j in each]) for each in members]


@torch.no_grad()
def judge(model: NaViT, samples: list[Sample], labels: list[int]) -> tuple[float, float]:
    """The mean loss and the share of digits that are read."""
    loss = right = 0.0
    for batch, members in packs(samples, list(range(len(samples)))):
        logits, target = model(batch.tokens, batch.layout)[: len(members)], torch.tensor([labels[i] for i in members])
        loss += F.cross_entropy(logits, target, reduction="sum").item()
        right += (logits.argmax(1) == target).sum().item()
    return loss / len(samples), right / len(samples)


@pytest.mark.slow
@pytest.mark.graph  # without the checks of shapes, which take most of the time of such small steps
def test_packs_of_handwriting_are_read() -> None:
    """1,437 images train and 360 are held out.

    Each image has another size from epoch to epoch, and loses tokens at a rate that falls to none, as the paper found
    best.
    """
    torch.manual_seed(0)
    views, labels = digits()
    held, labels_held = views[0][1437:], labels[1437:]
    model = NaViT(CONFIG)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    order, judged = np.random.default_rng(1), [judge(model, held, labels_held)]
    law = ScheduledDrop(EPOCHS, start=0.3, end=0.0)
    for epoch in range(EPOCHS):
        set_lr(optimiser, warmup_cosine(epoch, EPOCHS, warmup=2))
        train = views[epoch % VIEWS][:1437]
        seeds = order.integers(1 << 30, size=len(train)).tolist()
        left = [s.keep(drop_tokens(s.layout, law.at(epoch), [seed])) for s, seed in zip(train, seeds, strict=True)]
        for batch, members in packs(left, order.permutation(len(left)).tolist()):
            logits = model(batch.tokens, batch.layout)[: len(members)]
            loss = F.cross_entropy(logits, torch.tensor([labels[i] for i in members]), label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch % 8 == 7:
            judged.append(judge(model, held, labels_held))
    losses, read = zip(*judged, strict=True)
    assert losses[0] == pytest.approx(np.log(10), abs=1e-4)
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert read[-1] >= READ
