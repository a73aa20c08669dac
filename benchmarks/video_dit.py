"""The video diffusion transformer on clips of mixed sizes: packed on one axis, padded rows, or one clip at a time.

All three are the same model and the same tokens; ``padded`` has one row a clip, as long as the longest. Their results
are compared on the real tokens, with the model in float64 on one clip at a time.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import Case
from tubelet import Grid, Rows, TokenLayout
from tubelet.models import VideoDiT, VideoDiTConfig

__all__ = ["cases"]

GRIDS = [
    *[Grid(1, 4, 4)] * 4,
    *[Grid(1, 6, 8)] * 4,
    *[Grid(3, 4, 6)] * 4,
    *[Grid(5, 6, 6)] * 2,
    *[Grid(4, 8, 8)] * 2,
]
"""Token grids of the batch."""
CONFIG = VideoDiTConfig(latent_channels=16, dim=192, depth=4, heads=6, text_dim=64)
"""Sizes of the model."""

Forward = Callable[[VideoDiT, Tensor], Tensor]


def cases(device: str) -> Iterator[list[Case]]:
    """A group of forward cases and one of whole training steps (forward, backward; no optimiser)."""
    torch.manual_seed(0)
    model = VideoDiT(CONFIG, device=device)
    for parameter in model.parameters():  # the real initialisation is the identity and would hide every error
        torch.nn.init.normal_(parameter, std=0.05)
    tokens = sum(grid.tokens for grid in GRIDS)
    x = torch.randn(tokens, CONFIG.patch_dim, device=device)
    levels, text = torch.rand(len(GRIDS), device=device), torch.randn(6 * len(GRIDS), CONFIG.text_dim, device=device)
    ways = {"packed": _packed(levels, text), "padded": _padded(levels, text), "one by one": _separate(levels, text)}
    exact = _separate(levels.double(), text.double())
    about = f"{len(GRIDS)} clips, {tokens} tokens, width {CONFIG.dim}, {CONFIG.depth} layers, float32"
    for backward in (False, True):
        direction = "forward + backward" if backward else "forward"
        yield _group(f"video DiT, {direction} ({about})", model, x, ways, exact, backward)


def _group(
    title: str, model: VideoDiT, x: Tensor, ways: dict[str, Forward], exact: Forward, backward: bool
) -> list[Case]:
    target = _run(exact, copy.deepcopy(model).double(), x.double(), backward)
    return [
        Case(title, name, partial(_run, way, model, x, backward), target, len(x), 1e-4) for name, way in ways.items()
    ]


def _run(way: Forward, model: VideoDiT, x: Tensor, backward: bool) -> Tensor:
    """The prediction, or the gradient of its sum of squares with regard to one early weight."""
    if not backward:
        with torch.no_grad():
            return way(model, x)
    model.zero_grad()
    torch.autograd.backward(way(model, x).square().sum())
    gradient = model.embed.weight.grad
    return torch.empty(0) if gradient is None else gradient


def _packed(levels: Tensor, text: Tensor) -> Forward:
    layout = TokenLayout.packed(GRIDS).on(levels.device)
    prompts = TokenLayout.packed([None] * len(GRIDS), [6] * len(GRIDS)).on(levels.device)
    return lambda model, x: model(x, layout.rows(levels, "sample"), text, layout, prompts)


def _padded(levels: Tensor, text: Tensor) -> Forward:
    longest = max(grid.tokens for grid in GRIDS)
    layout = TokenLayout(tuple(GRIDS), (0,) * len(GRIDS), longest, batched=True).on(levels.device)
    prompts = TokenLayout.padded([6] * len(GRIDS), 6).on(levels.device)
    rows, valid = text.reshape(len(GRIDS), 6, -1), layout.valid

    def forward(model: VideoDiT, x: Tensor) -> Tensor:
        padded = x.new_zeros(*layout.shape, x.shape[-1])
        padded[valid] = x
        return model(padded, layout.rows(levels, "sample"), rows, layout, prompts)[valid]

    return forward


def _separate(levels: Tensor, text: Tensor) -> Forward:
    layouts = [TokenLayout.dense(1, grid).on(levels.device) for grid in GRIDS]
    prompts = TokenLayout.padded([6], 6).on(levels.device)
    counts: Sequence[int] = [grid.tokens for grid in GRIDS]

    def forward(model: VideoDiT, x: Tensor) -> Tensor:
        parts = []
        for i, clip in enumerate(torch.split(x, list(counts))):
            own = text[None, 6 * i : 6 * i + 6]
            parts.append(model(clip[None], Rows(levels[i : i + 1]), own, layouts[i], prompts)[0])
        return torch.cat(parts)

    return forward
