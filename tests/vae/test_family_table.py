"""The docs' table of what streams, begins and tiles, measured again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_vaes
import torch
from parity import error
from torch import Tensor

from tubelet.vae import decode_stream, decode_tiled, encode_stream

PAGE = Path(__file__).parents[2] / "docs" / "autoencoder.md"
HEAD = "| Measured | Encoded group by group |"
EXACT = 1e-13


def stated() -> dict[str, list[str]]:
    """The rows of the table by class."""
    lines = PAGE.read_text().split(HEAD)[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ways(vae: Any) -> list[Callable[[], float]]:
    """The error of each way against the whole, in the order of the table's columns."""
    factors, config = vae.config.factors, vae.config
    first, more, side = factors.first, factors.temporal, factors.spatial
    x = drawn(1, config.in_channels, first + 4 * more, 3 * side, 2 * side)
    z, tall = drawn(1, config.latent_channels, 9, 4, 3), drawn(1, config.latent_channels, 3, 24, 4)

    def encoded() -> float:
        parts = encode_stream(vae, x.split([first] + [more] * 4, 2))
        return error(torch.cat([part.mode() for part in parts], 2), vae.encode(x).mode())

    def begun() -> float:
        head = vae.decode(z[:, :, :5])
        return error(head, vae.decode(z)[:, :, : head.shape[2]])

    return [
        encoded,
        lambda: error(torch.cat([*decode_stream(vae, z.split(1, 2))], 2), vae.decode(z)),
        begun,
        lambda: error(decode_tiled(vae, tall, (None, 6, None)), vae.decode(tall)),
        lambda: error(decode_tiled(vae, tall, (1, None, None)), vae.decode(tall)),
        lambda: error(decode_tiled(vae, tall, (None, 8, None), overlap=2), vae.decode(tall)),
    ]


def test_the_table_has_every_family() -> None:
    assert sorted(stated()) == sorted(small_vaes.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", small_vaes.NAMES)
def test_the_table_is_what_comes_out(name: str) -> None:
    vae, row = small_vaes.small(name), stated()[name]
    with torch.no_grad():
        for way, says in zip(ways(vae), row, strict=True):
            if says == "refused":
                with pytest.raises(ValueError, match="sees later frames|cannot be divided exactly"):
                    way()
            elif says == "exact":
                assert way() <= EXACT
            else:
                assert way() == pytest.approx(float(says), rel=0.15)


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("name", small_vaes.NAMES)
def test_every_family_inside_of_function_transforms(name: str, layout: torch.memory_format) -> None:
    vae = small_vaes.small(name).requires_grad_(False)
    z = torch.randn(2, vae.config.latent_channels, 2, 3, 2, dtype=torch.float64).to(memory_format=layout)
    for call, x in ((lambda z: vae.decode(z[None])[0], z), (lambda x: vae.encode(x[None]).mode()[0], vae.decode(z))):
        torch.testing.assert_close(torch.vmap(call)(x), torch.stack([call(each) for each in x]))
        moved = torch.func.jvp(call, (x[0],), (x[1],))[1]
        step = 1e-6 * x[1]
        torch.testing.assert_close(moved, (call(x[0] + step) - call(x[0] - step)) / 2e-6, rtol=1e-4, atol=1e-4)
