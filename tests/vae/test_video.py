"""The autoencoder of any encoder and decoder: chunks that are part of the answer, statistics, and other posteriors."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from tubelet.vae import AutoencoderSizes, Chunks, Factors, State, VideoAutoencoder


@dataclass(frozen=True)
class Sizes:
    in_channels: int = 2
    latent_channels: int = 2
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    factors: Factors = field(default_factory=lambda: Factors(1, 1))


class Centred(nn.Module):
    """Takes the mean of a chunk from it and counts the chunks; it has a parameter to be drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 5.0))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        count = 0 if state is None else state[0]
        return self.weight * (x - x.mean()) + count, (count + 1,)


def made(**chunks: int) -> VideoAutoencoder:
    vae = VideoAutoencoder(
        Sizes(), Centred(), Centred(), posterior=lambda moments: ("latents", moments), chunks=Chunks(**chunks)
    )
    vae.reset_parameters()
    return vae


@pytest.mark.parametrize(
    ("frames", "chunk", "lengths"),
    [(1, 2, [1]), (2, 2, [2]), (5, 2, [3, 2]), (6, 2, [2, 2, 2]), (17, 8, [9, 8]), (7, None, [7]), (21, 8, [13, 8])],
)
def test_the_first_chunk_takes_what_is_left_over(frames: int, chunk: int | None, lengths: list[int]) -> None:
    assert Chunks.lengths(frames, chunk) == lengths
    assert sum(lengths) == frames


def test_a_whole_is_its_chunks_end_to_end() -> None:
    vae, x = made(encode=4, decode=2), torch.randn(1, 2, 5, 3, 3)
    assert isinstance(vae.config, AutoencoderSizes)
    name, moments = vae.encode(x)
    assert name == "latents"
    assert torch.equal(moments, x - x.mean())
    head, state = vae.decode_chunk(x[:, :, :3])
    tail, state = vae.decode_chunk(x[:, :, 3:], state)
    assert state == (2,)
    assert torch.equal(vae.decode(x), torch.cat([head, tail], 2))
    assert torch.equal(tail, x[:, :, 3:] - x[:, :, 3:].mean() + 1)
    assert torch.equal(made().decode(x), x - x.mean())


def test_statistics_are_the_configs() -> None:
    vae = VideoAutoencoder(Sizes(latent_mean=(1.0, 2.0), latent_std=(2.0, 4.0)), Centred(), Centred())
    z = torch.tensor([3.0, 6.0]).reshape(1, 2, 1, 1, 1)
    assert vae.scale(z).unique().tolist() == [1.0]
    assert torch.equal(vae.unscale(vae.scale(z)), z)
    assert set(vae.state_dict()) == {"encoder.weight", "decoder.weight"}
