"""Static-typing tests: `make types` reads this file, nothing runs it.

Each protocol is given what the library plugs into it. A deliberate mistake carries the error that mypy must report;
when mypy stops to report one, the needless comment is itself an error under `strict`.
"""

from collections.abc import Sequence
from typing import assert_type

import torch
from torch import Tensor

from tubelet import Attention, Grid, Patchify, RMSNorm, Rows, SinCos3d, TokenLayout, TransformerBlock, attend, fold
from tubelet.attention import Joint, backends, explain
from tubelet.conditioning import AdaLNZero
from tubelet.diffusion import EDM, VESDE, VP, VPSDE, Normalized, Process, RectifiedFlow, cfg, euler_step, heun_step
from tubelet.layout import LayoutIndex, TokenInfo
from tubelet.protocols import (
    Autoencoder,
    Backend,
    Block,
    Denoiser,
    ModulationSource,
    Patchifier,
    Path,
    Pattern,
    Positions,
    SamplerStep,
    TextEncoder,
    TextTokens,
)
from tubelet.text import WordEncoder
from tubelet.vae import CausalAutoencoder


class SameFrame:
    """A third party's pattern: nothing inherited, nothing registered."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return q.coords[..., 0] == k.coords[..., 0]


def predict(x: Tensor, t: Rows) -> Tensor:
    return x * t.expand()


def what_plugs_in(
    patchify: Patchify, block: TransformerBlock, ada: AdaLNZero, vae: CausalAutoencoder, words: WordEncoder
) -> None:
    patterns: list[Pattern] = [Joint(), SameFrame()]
    chosen: dict[str, Backend] = backends()
    patchifier: Patchifier = patchify
    positions: Positions = SinCos3d(32)
    modulation: ModulationSource = ada
    stack: Block = block
    denoiser: Denoiser = predict
    guided: Denoiser = cfg(predict, predict, 3.0)
    paths: list[Path] = [RectifiedFlow(), VP.linear(), VPSDE(), EDM(), VESDE(), Normalized(EDM())]
    steps: list[SamplerStep] = [euler_step, heun_step]
    autoencoder: Autoencoder = vae
    encoder: TextEncoder = words


def what_does_not(vae: CausalAutoencoder) -> None:
    pattern: Pattern = "joint"  # type: ignore[assignment]
    path: Path = Joint()  # type: ignore[assignment]
    denoiser: Denoiser = torch.relu  # type: ignore[assignment]
    encoder: TextEncoder = vae  # type: ignore[assignment]
    process = Process(path="rectified")  # type: ignore[arg-type]
    grid = Grid(1, 2)  # type: ignore[call-arg]
    layout = TokenLayout.dense(2, (1, 2, 2))  # type: ignore[arg-type]
    mixed = attend(torch.ones(1), torch.ones(1), torch.ones(1), pattern=Grid(1, 1, 1))  # type: ignore[arg-type]


def what_comes_out(video: Tensor, x: Tensor, words: WordEncoder, prompts: Sequence[str]) -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 2, 2)])
    assert_type(layout, TokenLayout)
    assert_type(layout.on("cpu"), LayoutIndex)
    assert_type(layout.lengths, tuple[int, ...])
    assert_type(layout.rows(x, "sample"), Rows)
    assert_type(fold(video, (1, 2, 2)), Tensor)
    assert_type(Attention(8, heads=2)(x), Tensor)
    assert_type(RMSNorm(8)(x), Tensor)
    assert_type(attend(x, x, x), Tensor)
    assert_type(words(prompts), TextTokens)
    assert_type(RectifiedFlow().alpha(x), Tensor)
    explain(x, x, x)
