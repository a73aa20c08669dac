"""``tubelet sample``: a video of a prompt, from the checkpoint that ships or one of your own."""

import argparse
from pathlib import Path
from typing import Any

import torch

from tubelet.cli.arguments import count, number, positive, video_size

__all__ = ["add", "run"]

_EXAMPLE = """example:
  tubelet sample "a seven drifting left" --size 9,24,32 --out seven.gif
  tubelet sample "a seven drifting left" --size 13,32,32 --image first.png"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "sample",
        help="make a video of a prompt",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help='what to show; "" for anything')
    parser.add_argument("--size", type=video_size, default=(9, 32, 32), metavar="T,H,W", help="default 9,32,32")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a checkpoint of tubelet demo or tubelet train")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the first frame: image to video")
    parser.add_argument(
        "--out", type=Path, default=Path("sample.mp4"), help="mp4, gif, webp or png; default sample.mp4"
    )
    parser.add_argument("--seed", type=number, default=0)
    parser.add_argument("--steps", type=count, default=25)
    parser.add_argument("--guidance", type=positive, default=2.0)
    parser.add_argument("--fps", type=positive, default=8.0)
    parser.add_argument("--scale", type=count, default=6, help="pixels of the file per pixel of the video")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the file.

    Raises:
        ValueError: an unknown word, a size the model does not divide, an unreadable image or an unknown suffix.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.data import read_video, write_video
    from tubelet.demo.shipped import load_model
    from tubelet.pipeline import generate

    model = load_model(arguments.model)
    prefix = None
    if arguments.image is not None:
        gray = model.vae.config.in_channels == 1
        prefix = read_video(arguments.image, frames=1, size=arguments.size[1:], gray=gray)
    with torch.autocast("cpu", torch.bfloat16):
        (video,) = generate(
            model,
            [arguments.prompt],
            [arguments.size],
            [arguments.seed],
            prefixes=[prefix],
            steps=arguments.steps,
            guidance=arguments.guidance,
        )
    write_video(arguments.out, video.float(), arguments.fps, scale=arguments.scale)
    t, h, w = arguments.size
    print(f"{arguments.out}: {arguments.prompt!r}, {t} frames of {h}x{w}, seed {arguments.seed}")
