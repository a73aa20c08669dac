"""Denoisers without a network for tests of guidance, a packed mixture to ask them about, and every guidance by name."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tubelet.diffusion import (
    Guided,
    Momentum,
    PerSample,
    Process,
    apg,
    autoguidance,
    cfg,
    cfg_excess,
    cfg_zero_star,
    compose,
    dynamic_threshold,
    interval,
    only_channels,
    rescale,
    restate,
    skip_layer,
    two_conditions,
    within,
    zero_init,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.protocols import Denoiser

GRIDS = (Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed: int, channels: int = 4) -> Denoiser:
    """A smooth function of each token and its noise level."""
    weight = randn(channels, channels, seed=seed) / channels**0.5

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        time = t.expand().to(x.dtype)
        time = time.reshape(time.shape + (1,) * (x.ndim - time.ndim))
        return torch.tanh(x @ weight.to(x.dtype) + torch.sin(3 * time)) * 2 + 0.3 * x

    return denoiser


C, U, V, W = (network(seed) for seed in (11, 12, 13, 14))

Make = Callable[[PerSample, Process], Guided]
EVERY: dict[str, Make] = {
    "cfg": lambda s, p: cfg(C, U, 4.0),
    "excess": lambda s, p: cfg_excess(C, U, interval(3.0, 0.2, 0.6, outside=0.0)),
    "autoguidance": lambda s, p: autoguidance(C, V, lambda t: 1 + t),
    "two conditions": lambda s, p: two_conditions(C, V, U, image_scale=1.5, text_scale=7.5),
    "compose": lambda s, p: compose(U, (2.0, C, U), (-0.5, V, U), (0.3, W, C)),
    "skip layer": lambda s, p: skip_layer(cfg(C, U, 4.0), C, V, 2.8),
    "channels": lambda s, p: only_channels(cfg(C, U, 4.0), C, 1, 2),
    "within": lambda s, p: within(cfg(C, U, 4.0), C, 0.3, 0.7),
    "rescale": lambda s, p: rescale(cfg(C, U, 7.5), C, 0.7, samples=s),
    "threshold": lambda s, p: dynamic_threshold(cfg(C, U, 7.5), p, quantile=0.8, limit=0.5, samples=s),
    "zero star": lambda s, p: cfg_zero_star(C, U, 5.0, p, samples=s),
    "zero init": lambda s, p: zero_init(cfg_zero_star(C, U, 5.0, p, samples=s), p, above=0.8),
    "apg": lambda s, p: apg(C, U, 7.5, p, parallel=0.2, radius=1.5, samples=s),
    "apg with momentum": lambda s, p: apg(C, U, 7.5, p, radius=1.5, momentum=Momentum(-0.5), samples=s),
    "apg in an interval": lambda s, p: apg(C, U, interval(7.5, 0.2, 0.6), p, samples=s),
    "restated": lambda s, p: restate(cfg(C, U, 4.0), p, "x0"),
    "guidance of guidance": lambda s, p: rescale(
        autoguidance(apg(C, U, 4.0, p, samples=s), cfg_zero_star(V, W, 3.0, p, samples=s), 1.5), C, 0.5, samples=s
    ),
    "all at once": lambda s, p: dynamic_threshold(
        within(skip_layer(cfg_zero_star(C, U, 4.0, p, samples=s), C, V, 1.0), C, 0.1, 0.9), p, limit=0.3, samples=s
    ),
}
"""Every guidance, as a function of where the samples lie and of what the denoisers predict."""


def packed_state(capacity: int | None = None) -> tuple[TokenLayout, Tensor, Rows]:
    """A packed mixture, its state with NaN in the padding, and a noise level for each sample."""
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    real = randn(sum(layout.lengths), 4)
    x = torch.cat([real, torch.full((layout.width - len(real), 4), torch.nan, dtype=torch.float64)])
    return layout, x, layout.rows(torch.tensor([0.9, 0.5, 0.25], dtype=torch.float64), "sample")


def alone(x: Tensor, layout: TokenLayout, t: Rows) -> Iterator[tuple[Tensor, Rows]]:
    """Each sample and its noise level."""
    for i, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        yield x[start : start + length], Rows(t.values[i : i + 1])


def counted(denoiser: Denoiser, calls: list[tuple[int, ...]]) -> Denoiser:
    """The denoiser, which notes the shape of each state it is asked about."""

    def noted(x: Tensor, t: Rows) -> Tensor:
        calls.append(tuple(x.shape))
        return denoiser(x, t)

    return noted
