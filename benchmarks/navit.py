"""NaViT on images of every size: packed, in dense batches, one by one; and vit-pytorch's implementations of it.

32 images whose sides are the quantiles of the law that NaViT trains on (arXiv:2307.06304, section 3.2; 64 to 256
pixels here), in the usual aspect ratios: 16 to 252 patches. A timed call goes from images to logits: cutting into
patches, layouts, masks, everything. Exact is vit-pytorch's model, one image at a time, in float64; ours has its weights
(:mod:`benchmarks.navit_peers`).

- *packed*: ours, all images on one axis;
- *padded*: ours, a row an image, as long as the longest; *bucketed*: four such batches of eight, sorted by length;
- *one by one*: ours, an image a call;
- *theirs*: ``na_vit`` in rows of a row's length, all images on one row, a row an image, or an image a call; its nested
  tensors of images, and of clips.

Those of ours called *fused* have their linear maps by oneDNN (:func:`tubelet.fused.use_kernels`).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import Case
from benchmarks.navit_peers import KINDS, matched, peer
from tubelet.fused import use_kernels
from tubelet.layout import TokenLayout
from tubelet.models import NaViT, NaViTConfig
from tubelet.packing import pack
from tubelet.patchify import fold_packed

__all__ = ["cases", "sizes"]

RATIOS = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (1, 1)]
"""Height to width."""
CLIPS = [(2, 4, 4), (2, 8, 8), (4, 4, 6), (4, 6, 4), (4, 8, 6), (6, 5, 5), (8, 4, 4), (8, 7, 4)]
"""Grids of tokens of the clips."""
IMAGES = NaViTConfig(dim=384, depth=6, heads=6, mlp_dim=1536, grid=(1, 32, 32), classes=1000)
VIDEOS = NaViTConfig(dim=384, depth=6, heads=6, mlp_dim=1536, grid=(8, 16, 16), patch=(2, 16, 16), classes=1000)

Forward = Callable[[Any, Sequence[Tensor]], Tensor]


def sizes(count: int = 32, low: float = 64, high: float = 256, patch: int = 16) -> list[tuple[int, int]]:
    """Height and width in patches: sides at the quantiles of a normal distribution truncated to [-1, 1]."""
    law = NormalDist(-0.5, 1.0)
    below, above = law.cdf(-1.0), law.cdf(1.0)
    found = []
    for i in range(count):
        side = low + (law.inv_cdf(below + (above - below) * (i + 0.5) / count) + 1) / 2 * (high - low)
        h, w = RATIOS[3 * i % len(RATIOS)]
        found.append((round(side * (h / w) ** 0.5 / patch), round(side * (w / h) ** 0.5 / patch)))
    return found


def cases(device: str) -> Iterator[list[Case]]:
    """A group for each of their modules."""
    if device != "cpu":
        raise SystemExit("the suite of NaViT runs on the CPU")
    draw = torch.Generator().manual_seed(0)
    sorted_grids = sizes()
    grids = [sorted_grids[i] for i in torch.randperm(len(sorted_grids), generator=draw).tolist()]
    images = [torch.randn(3, 1, 16 * h, 16 * w, generator=draw) for h, w in grids]
    clips = [torch.randn(3, 2 * t, 16 * h, 16 * w, generator=draw) for t, h, w in CLIPS]
    yield _group(KINDS[0], IMAGES, images, OURS, THEIRS)
    yield _group(KINDS[1], IMAGES, images, {"packed": _packed}, {"theirs, nested": _nested})
    yield _group(KINDS[2], VIDEOS, clips, {"packed": _packed}, {"theirs, nested": _nested_clips})


def _group(
    kind: str, config: NaViTConfig, samples: list[Tensor], ours: dict[str, Forward], theirs: dict[str, Forward]
) -> list[Case]:
    model = peer(kind, config)
    same = matched(kind, model, config)
    fused = copy.deepcopy(same)
    use_kernels(fused)
    tokens = sum(grid.tokens for grid in fold_packed(samples, config.patch)[1])
    one = next(iter(theirs.values())) if kind != KINDS[0] else _theirs_one_by_one
    exact = _run(one, copy.deepcopy(model).double(), [sample.double() for sample in samples])
    what = "clips" if config.patch[0] > 1 else "images"
    title = f"NaViT against {kind}: {len(samples)} {what}, {tokens} tokens, width {config.dim}, {config.depth} layers"
    runs: dict[str, tuple[Forward, nn.Module]] = {f"{name}, fused": (way, fused) for name, way in ours.items()}
    runs |= {name: (way, same) for name, way in ours.items()} | {name: (way, model) for name, way in theirs.items()}
    return [
        Case(f"{title}, float32", name, partial(_run, way, with_, samples), exact, tokens, 1e-5)
        for name, (way, with_) in runs.items()
    ]


def _run(way: Forward, model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        return way(model, samples)


def _packed(model: NaViT, samples: Sequence[Tensor]) -> Tensor:
    patches, grids = fold_packed(samples, model.config.patch)
    return model(patches, TokenLayout.packed(grids))


def _padded(model: NaViT, samples: Sequence[Tensor]) -> Tensor:
    folded = [fold_packed([sample], model.config.patch) for sample in samples]
    grids = tuple(grids[0] for _, grids in folded)
    longest = max(grid.tokens for grid in grids)
    rows = torch.stack([pack([patches], longest) for patches, _ in folded])
    return model(rows, TokenLayout(grids, (0,) * len(grids), longest, batched=True))


def _bucketed(model: NaViT, samples: Sequence[Tensor], batch: int = 8) -> Tensor:
    order = sorted(range(len(samples)), key=lambda i: samples[i].numel())
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    out = torch.cat([_padded(model, [samples[i] for i in members]) for members in batches])
    return torch.empty_like(out).index_copy_(0, torch.tensor(order), out)


def _one_by_one(model: NaViT, samples: Sequence[Tensor]) -> Tensor:
    return torch.cat([_packed(model, [sample]) for sample in samples])


def _theirs_rows(longest: int, model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    """Rows filled in order, up to a length; their default is 2,048."""
    out: Tensor = model(_images(samples), group_images=True, group_max_seq_len=longest)
    return out


def _theirs_one_row(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    out: Tensor = model([_images(samples)])
    return out


def _theirs_padded(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    out: Tensor = model([[image] for image in _images(samples)])
    return out


def _theirs_one_by_one(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    return torch.cat([model([image]) for image in _images(samples)])


def _nested(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    out: Tensor = model(_images(samples))
    return out


def _nested_clips(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    out: Tensor = model(list(samples))
    return out


def _images(samples: Sequence[Tensor]) -> list[Tensor]:
    return [sample[:, 0] for sample in samples]


OURS: dict[str, Forward] = {
    "packed": _packed,
    "padded": _padded,
    "bucketed": _bucketed,
    "one by one": _one_by_one,
}
THEIRS: dict[str, Forward] = {
    **{f"theirs, rows of {longest}": partial(_theirs_rows, longest) for longest in (256, 512, 2048)},
    "theirs, one row": _theirs_one_row,
    "theirs, padded": _theirs_padded,
    "theirs, one by one": _theirs_one_by_one,
}
