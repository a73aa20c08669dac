"""``tubelet cache-latents``: the latents of a folder of clips, encoded once and kept in shards."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tubelet.cli.arguments import count, dtype, existing, folder, number, rate, sides

__all__ = ["add", "run"]

_KEPT = ("frames", "size", "fps", "gray", "windows", "seed")

_EXAMPLE = """example:
  tubelet cache-latents --clips videos/ --captions captions.jsonl --vae wan-vae --frames 17 --size 256,256 --out latents

What was encoded when the command was stopped or killed is kept: the same command goes on with it."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "cache-latents",
        help="encode a folder of clips once, to safetensors shards with an index",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=existing, required=True, metavar="DIR", help="folder of videos and images")
    parser.add_argument("--captions", type=existing, metavar="FILE", help="JSON lines: file and caption; default none")
    parser.add_argument("--vae", required=True, metavar="DIR", help="a saved autoencoder: a folder or owner/name")
    parser.add_argument("--frames", type=count, default=17, help="of a clip; default 17")
    parser.add_argument("--size", type=sides, metavar="H,W", help="of a clip; default each file's own")
    parser.add_argument("--fps", type=rate, help="frames a second; default each file's own")
    parser.add_argument("--gray", action="store_true", help="one channel instead of three")
    parser.add_argument("--windows", type=count, default=1, help="different windows of each file; default 1")
    parser.add_argument("--seed", type=number, default=0, help="of the windows; default 0")
    parser.add_argument("--dtype", type=dtype, help="of what is kept; default that of the autoencoder")
    parser.add_argument("--shard", type=count, default=256, metavar="CLIPS", help="clips in a file; default 256")
    parser.add_argument("--out", type=folder, default=Path("latents"), metavar="DIR", help="default latents")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Encode what is not there yet, and say what there is.

    Raises:
        ValueError: nothing usable in ``--clips``, bad captions, sizes that the autoencoder does not divide, or an
            ``--out`` of other clips or another autoencoder.
        OSError: no autoencoder, or a full disk.

    Example:
        >>> callable(run)
        True
    """
    from tubelet import hub
    from tubelet.data import ClipFolder, cache_latents
    from tubelet.training import Progress

    if not arguments.clips.is_dir():
        raise ValueError(f"--clips must be a folder, got the file {arguments.clips}")
    vae: Any = hub.load(arguments.vae).eval()
    clips = ClipFolder(
        arguments.clips,
        arguments.captions,
        frames=arguments.frames,
        size=arguments.size,
        fps=arguments.fps,
        gray=arguments.gray,
        seed=arguments.seed,
        windows=arguments.windows,
        uncaptioned="empty",
    )
    with ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(total, title="clips", stream=sys.stderr)))
            bars[0].update(done, {})

        cached = cache_latents(
            vae,
            clips,
            arguments.out,
            shard=arguments.shard,
            dtype=arguments.dtype,
            notes={name: getattr(arguments, name) for name in _KEPT} | {"sources": clips.sources()},
            on_clip=show if sys.stderr.isatty() else None,
        )
    files = list(arguments.out.glob("*.safetensors"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{arguments.out}: {len(cached)} clips in {len(files)} file{'s' * (len(files) > 1)}, {megabytes:,.1f} MB")
    for name in ("mean", "std"):
        values = getattr(cached.statistics, name).tolist()
        print(f"{name} of each channel: {' '.join(f'{value:.4f}' for value in values)}")
