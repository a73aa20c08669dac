"""What is compared of a family, and what the questions to ours have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tubelet.layout import Grid, JointIndex, JointLayout, LayoutIndex, Rows, TokenLayout
from tubelet.patchify import fold, unfold

__all__ = ["Family", "ask", "index", "text"]


@dataclass(frozen=True)
class Family:
    """A class of diffusers', its config with few layers, and one question to both.

    ``channels`` and ``sides`` (frames, height, width) are of the latents, ``patch`` of their cells; ``theirs`` takes
    the peer and the latents, ``ours`` our model, the patches and their layout. ``prepare`` changes the peer, once made,
    to what its checkpoints hold.
    """

    peer: str
    config: Mapping[str, Any]
    channels: int
    sides: tuple[int, int, int]
    patch: tuple[int, int, int]
    theirs: Callable[[Any, Tensor], Tensor]
    ours: Callable[[Any, Tensor, TokenLayout], Tensor]
    prepare: Callable[[Any], None] = lambda peer: None

    def with_one_layer(self) -> "Family":
        """The same with one layer of each kind of block."""
        layers = {name: 1 for name in self.config if name in ("num_layers", "num_single_layers")}
        return replace(self, config={**self.config, **layers})

    def latents(self, tokens: int | None = None) -> Tensor:
        """One clip ``(1, c, t, h, w)``, the frames as they are and the picture smaller, to about so many tokens."""
        grid = [side // p for side, p in zip(self.sides, self.patch, strict=True)]
        shrink = 1.0 if tokens is None else (tokens / (grid[0] * grid[1] * grid[2])) ** 0.5
        h, w = (max(round(side * shrink), 1) for side in grid[1:])
        sides = (p * side for p, side in zip(self.patch, (grid[0], h, w), strict=True))
        return torch.randn(1, self.channels, *sides, generator=torch.Generator().manual_seed(2), device="cpu")

    def ask_ours(self, model: Any, x: Tensor) -> Tensor:
        """Latents to latents, as the peer; a variance comes behind the prediction."""
        grid = Grid(*(side // p for side, p in zip(x.shape[2:], self.patch, strict=True)))
        patches = fold(x, self.patch)
        out = self.ours(model, patches, TokenLayout.dense(1, grid))
        parts = out.split(patches.shape[-1], dim=-1)
        return torch.cat([unfold(part, grid, self.patch) for part in parts], dim=1)


def index(layout: TokenLayout) -> LayoutIndex:
    """A layout on the default device, made once, as a sampler holds it."""
    return _index(layout, torch.get_default_device())


@cache
def _index(layout: TokenLayout, device: torch.device) -> LayoutIndex:
    return layout.on(device)


@cache
def _joint(text_layout: TokenLayout, layout: TokenLayout, device: torch.device) -> JointIndex:
    return JointLayout((text_layout, layout)).on(device)


@cache
def _drawn(tokens: int, width: int) -> Tensor:
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(1), device="cpu")


def text(tokens: int, width: int, like: Tensor) -> Tensor:
    """One prompt ``(1, m, e)``, the same to both."""
    return _drawn(tokens, width).to(like)


def ask(
    model: Any, x: Tensor, layout: TokenLayout, t: float | Rows, prompt: Tensor, joint: bool = False, **more: Any
) -> Tensor:
    """Our answer by indices; ``joint`` models are handed that of the merged axis as well."""
    text_layout = TokenLayout.padded([prompt.shape[1]], prompt.shape[1])
    if joint:
        more["joint"] = _joint(text_layout, layout, x.device)
    level = t if isinstance(t, Rows) else Rows(torch.full((1,), t))
    out: Tensor = model(x, level, prompt, index(layout), index(text_layout), **more)
    return out
