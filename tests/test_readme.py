"""The README's Python runs as it stands, from its first block to its last."""

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    videos = names["videos"]
    assert isinstance(videos, list)
    assert [tuple(video.shape) for video in videos] == [(1, 13, 32, 32), (1, 9, 32, 24), (1, 1, 24, 24)]
    assert all(torch.isfinite(video).all() and video.max() > 0.5 for video in videos)
