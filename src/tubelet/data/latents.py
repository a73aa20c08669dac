"""Latents of a folder of clips, encoded once: safetensors shards and an index, made so that it can stop at any moment.

A shard holds so many clips in their order, appears under its name when it is complete, and is never written again; so a
run that was killed goes on behind the last shard, and the folder is in the end what an unbroken run would have made.
Each shard carries its clips' captions, places and statistics itself; the index, written last, is made of them.

``latents-00000.safetensors`` has the latents ``(z, t, h, w)`` of clip i under the name ``str(i)``.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from tubelet.data.clips import Clip
from tubelet.files import parsing, replacing
from tubelet.protocols import Autoencoder
from tubelet.vae.statistics import ChannelStatistics

__all__ = ["CachedLatents", "LatentClip", "cache_latents"]

_INDEX, _PLAN = "index.json", "plan.json"


class LatentClip(NamedTuple):
    """One clip of :class:`CachedLatents`: as :class:`tubelet.data.Clip`, with latents instead of a video.

    Example:
        >>> LatentClip(torch.zeros(16, 3, 4, 4), "a seven", "sevens/a.mp4", 0.0).latents.shape
        torch.Size([16, 3, 4, 4])
    """

    latents: Float[Tensor, "z t h w"]
    caption: str
    file: str
    start: float


def cache_latents(
    vae: Autoencoder,
    clips: Sequence[Clip] | Dataset[Clip],
    folder: str | os.PathLike[str],
    *,
    shard: int = 256,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
    on_clip: Callable[[int, int], None] | None = None,
) -> "CachedLatents":
    """Encode clips and keep the modes of their posteriors; what is there already is not encoded again.

    Args:
        vae: the autoencoder; a hash of its weights is noted, so that another does not go on in the folder.
        clips: with a length, such as :class:`tubelet.data.ClipFolder`; clip i has to be the same in each run.
        folder: made if need be.
        shard: clips in a file.
        dtype: of what is kept; None for that of the latents. Statistics are of the latents before.
        notes: JSON values that have to be the same in a run that goes on, such as how the clips are cut and of what
            (:meth:`tubelet.data.ClipFolder.sources`).
        on_clip: called with the number of clips done and that of all, after each.

    Raises:
        ValueError: no clips, a shard that is not positive, or a folder with shards that another run made; of a list in
            ``notes`` the first entry that differs is named.

    Example:
        >>> import tempfile
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> clips = [Clip(torch.zeros(1, 5, 16, 16), "nothing", "a.mp4", 0.0)] * 3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached = cache_latents(CausalAutoencoder(digits()).eval(), clips, folder, shard=2)
        ...     len(cached), cached[2].latents.shape, cached.statistics.count
        (3, torch.Size([16, 2, 2, 2]), 24)
    """
    folder, total = Path(folder), len(clips)  # type: ignore[arg-type]
    if total < 1 or shard < 1:
        raise ValueError(f"clips and shard must be at least 1, got {total} clips and shard {shard}")
    kept = {"clips": total, "shard": shard, "dtype": str(dtype).removeprefix("torch.")}
    _agree(folder, {"vae": _fingerprint(vae)} | kept | json.loads(json.dumps(dict(notes or {}))))
    for start in range(0, total, shard):
        path = folder / f"latents-{start // shard:05d}.safetensors"
        stop = min(start + shard, total)
        if not path.exists():
            _write(path, vae, clips, range(start, stop), dtype, on_clip, total)
        elif on_clip is not None:
            on_clip(stop, total)
    shards = [_metadata(path) for path in sorted(folder.glob("latents-*.safetensors"))]
    statistics = [_statistics(each["statistics"]) for each in shards]
    index = {
        "clips": [clip for each in shards for clip in each["clips"]],
        "statistics": _plain(sum(statistics[1:], statistics[0])),
    }
    with _placing(folder / _INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1))
    return CachedLatents(folder)


class CachedLatents(Dataset[LatentClip]):
    """The clips of a folder that `cache_latents` made; each is read when it is asked for.

    Args:
        folder: with an index and shards.

    Attributes:
        statistics: of each channel of all latents, for :meth:`tubelet.vae.CausalAutoencoder.set_latent_stats`.

    Raises:
        ValueError: no index, since caching was not finished, or a damaged one.

    Example:
        >>> CachedLatents("nowhere")
        Traceback (most recent call last):
        ...
        ValueError: nowhere has no index.json: caching was not begun there, or is not finished
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / _INDEX
        if not path.is_file():
            raise ValueError(f"{folder} has no {_INDEX}: caching was not begun there, or is not finished")
        with parsing(path):
            index = json.loads(path.read_text())
            self._clips: list[dict[str, Any]] = index["clips"]
            self.statistics = _statistics(index["statistics"])

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> LatentClip:
        from safetensors import safe_open

        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a folder of {len(self)} clips")
        index %= len(self)
        clip = self._clips[index]
        path = self.folder / clip["shard"]
        with parsing(path), safe_open(path, "pt") as file:
            latents = file.get_tensor(str(index))
        return LatentClip(latents, clip["caption"], clip["file"], clip["start"])

    def shape(self, index: int) -> tuple[int, ...]:
        """Channels, latent frames, rows and columns of a clip, without reading it.

        Example:
            >>> callable(CachedLatents.shape)
            True
        """
        return tuple(self._clips[index]["shape"])


def _write(
    path: Path,
    vae: Autoencoder,
    clips: Any,
    numbers: range,
    dtype: torch.dtype | None,
    on_clip: Callable[[int, int], None] | None,
    total: int,
) -> None:
    """One shard, with its part of the index as metadata."""
    from safetensors.torch import save_file

    weight = next(iter(vae.parameters())) if isinstance(vae, nn.Module) else torch.empty(0)
    tensors, entries, statistics = {}, [], None
    for number in numbers:
        clip = clips[number]
        with torch.no_grad():
            latents = vae.encode(clip.video[None].to(weight.device, weight.dtype)).mode()
        seen = ChannelStatistics.of(latents)
        statistics = seen if statistics is None else statistics + seen
        tensors[str(number)] = latents[0].to("cpu", latents.dtype if dtype is None else dtype).contiguous()
        place = {"shard": path.name, "shape": list(latents.shape[1:])}
        entries.append({"file": clip.file, "start": clip.start, "caption": clip.caption} | place)
        if on_clip is not None:
            on_clip(number + 1, total)
    assert statistics is not None
    index = {"clips": entries, "statistics": _plain(statistics)}
    with _placing(path) as temporary:
        save_file(tensors, temporary, {"index": json.dumps(index)})  # several values would come in any order


@contextmanager
def _placing(path: Path) -> Iterator[Path]:
    """As :func:`tubelet.files.replacing`; what a run that was killed has left goes."""
    for left in path.parent.glob(f".tmp-*-{path.name}"):
        left.unlink()
    with replacing(path) as temporary:
        yield temporary


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with parsing(path), safe_open(path, "pt") as file:
        index: dict[str, Any] = json.loads(file.metadata()["index"])
    return index


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Note what a folder is made of, or see that the shards in it were made of the same."""
    path = folder / _PLAN
    if path.exists() and any(folder.glob("latents-*.safetensors")):
        with parsing(path):
            found = json.loads(path.read_text())
            differing = {name: (found.get(name), value) for name, value in plan.items() if found.get(name) != value}
        if differing:
            raise ValueError(
                f"{folder} was made with other "
                + ", ".join(f"{name} ({_difference(*values)})" for name, values in differing.items())
            )
        return
    with _placing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=1))


def _difference(theirs: Any, ours: Any) -> str:
    """Two unequal values; of two lists the first entries that differ."""
    if isinstance(theirs, list) and isinstance(ours, list):
        theirs, ours = next(pair for pair in zip_longest(theirs, ours) if pair[0] != pair[1])
    elif isinstance(ours, list):
        ours = "a list"
    return f"{theirs}, not {ours}"


def _fingerprint(vae: Any) -> str:
    """A hash of an autoencoder's class, config and weights."""
    digest = hashlib.sha256(f"{type(vae).__qualname__} {getattr(vae, 'config', None)!r}".encode())
    for name, tensor in sorted(vae.state_dict().items() if isinstance(vae, nn.Module) else []):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(statistics: ChannelStatistics) -> dict[str, Any]:
    return {
        "count": statistics.count,
        "mean": statistics.mean.tolist(),
        "squares": statistics.squares.tolist(),
        "std": statistics.std.tolist(),
    }


def _statistics(plain: dict[str, Any]) -> ChannelStatistics:
    mean, squares = (torch.tensor(plain[name], dtype=torch.float64) for name in ("mean", "squares"))
    return ChannelStatistics(plain["count"], mean, squares)
