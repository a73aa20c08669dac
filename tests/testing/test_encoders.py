"""The kit's checks of patchifiers, autoencoders and text encoders."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet.layout import Grid
from tubelet.patchify import Patchify
from tubelet.protocols import TextTokens
from tubelet.testing import check_autoencoder, check_patchifier, check_text_encoder
from tubelet.text import WordEncoder, WordEncoderConfig
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

SMALL = CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1))


def test_patchifiers() -> None:
    check_patchifier(Patchify((2, 2, 1), channels=3, dim=8), 3, 8)

    class Columns(Patchify):
        def forward(self, video: Tensor) -> Tensor:
            return super().forward(video.transpose(-1, -2))

    class Wide(Patchify):
        def forward(self, video: Tensor) -> Tensor:
            return super().forward(video).double()

    class Counting(Patchify):
        def forward(self, video: Tensor) -> Tensor:
            return super().forward(video) * video.shape[0]

    with pytest.raises(AssertionError, match="gave tokens in torch.float64"):
        check_patchifier(Wide((1, 2, 2), channels=3, dim=8), 3, 8)
    with pytest.raises(AssertionError, match="the first video alone differs"):
        check_patchifier(Counting((1, 2, 2), channels=3, dim=8), 3, 8)
    with pytest.raises(AssertionError, match="in raster order, but moved tokens"):
        check_patchifier(Columns((1, 2, 2), channels=3, dim=8), 3, 8)
    with pytest.raises(AssertionError, match=r"not \(2, 12, 6\)"):
        check_patchifier(Patchify((1, 2, 2), channels=3, dim=8), 3, 6)


class Wrapped:
    """Our autoencoder with one fault."""

    def __init__(self, fault: str) -> None:
        self.inner, self.fault = CausalAutoencoder(SMALL), fault

    def encode(self, video: Tensor) -> Any:
        if self.fault == "not causal":
            video = video - video.mean(2, keepdim=True)
        if self.fault == "batch":
            video = video - video.mean(0, keepdim=True)
        return self.inner.encode(video)

    def decode(self, z: Tensor) -> Tensor:
        video = self.inner.decode(z)
        if self.fault == "wide":
            return video.double()
        if self.fault == "decoding":
            return video - video.mean(0, keepdim=True)
        return video[:, :, :-1] if self.fault == "frames" else video

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        grid = self.inner.latent_grid(frames, height, width)
        return Grid(grid.t + 1, grid.h, grid.w) if self.fault == "grid" else grid


def test_our_autoencoder_passes() -> None:
    check_autoencoder(CausalAutoencoder(SMALL), 1)
    check_autoencoder(Wrapped("none"), 1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not causal", "the first latent frame"),
        ("batch", "the first sample alone"),
        ("frames", "came back as"),
        ("wide", "'decoded videos': torch.float64"),
        ("decoding", "the first sample decoded alone"),
        ("grid", "latent_grid says"),
    ],
)
def test_bad_autoencoders_are_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_autoencoder(Wrapped(fault), 1)


def test_text_encoders() -> None:
    prompts = ["a seven", "left"]
    encoder = WordEncoder(WordEncoderConfig(words=("a", "left", "seven"), dim=8))
    check_text_encoder(encoder, prompts)

    def padded(given: Sequence[str]) -> TextTokens:
        tokens, lengths = encoder(given)
        return TextTokens(torch.cat([tokens, tokens[:1]]), lengths)

    def mixing(given: Sequence[str]) -> TextTokens:
        tokens, lengths = encoder(given)
        return TextTokens(tokens - tokens.mean(0), lengths)

    with pytest.raises(AssertionError, match="lengths sum to 4, but there are 5 tokens"):
        check_text_encoder(padded, prompts)
    with pytest.raises(AssertionError, match="'a seven' alone differs"):
        check_text_encoder(mixing, prompts)
    with pytest.raises(AssertionError, match="3 prompts gave 1 lengths"):
        check_text_encoder(lambda given: TextTokens(torch.zeros(4, 8), (4,)), prompts)
