"""``tubelet sample``: a video of a prompt, from the checkpoint that ships or one of your own."""

import argparse
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.cli.arguments import count, existing, number, positive, rate, video_file, video_size
from tubelet.cli.tasks import add_task, check_no_task, do_task, sampled

__all__ = ["SOLVERS", "add", "run"]

SOLVERS = (
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "ddim",
    "2s",
    "2m",
    "3m",
    "unipc",
    "deis",
    "ddpm",
    "ancestral",
    "2m-sde",
)
"""The names of :data:`tubelet.diffusion.SOLVERS`. Example: ``SOLVERS[0]``."""

_EXAMPLE = """example:
  tubelet sample "a seven drifting left" --size 9,24,32 --out seven.gif
  tubelet sample "a seven drifting left" --size 13,32,32 --image first.png
  tubelet sample "a seven" --size 13,32,32 --task loop --out loop.gif
  tubelet sample "a two drifting up" --size 13,32,32 --task edit --source "a nine drifting up" --guidance 4"""


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
    parser.add_argument(
        "--size",
        type=video_size,
        default=(9, 32, 32),
        metavar="T,H,W",
        help="frames (1 + 4k), height and width (multiples of 8); default 9,32,32",
    )
    parser.add_argument("--model", type=existing, metavar="FILE", help="a checkpoint of tubelet demo or tubelet train")
    parser.add_argument(
        "--image",
        type=existing,
        metavar="FILE",
        help="the first frame: image to video; scaled and cut to the size (the shipped model writes white on black)",
    )
    parser.add_argument(
        "--out",
        type=video_file,
        default=Path("sample.mp4"),
        metavar="FILE",
        help="mp4, gif, webp or png; default sample.mp4",
    )
    parser.add_argument("--seed", type=number, default=0, help="default 0")
    parser.add_argument("--steps", type=count, default=25, help="of the sampler; default 25")
    parser.add_argument("--solver", choices=SOLVERS, default="euler", metavar="NAME", help=f"{', '.join(SOLVERS)}")
    parser.add_argument("--guidance", type=positive, default=2.0, help="how much the prompt counts; default 2")
    parser.add_argument("--fps", type=rate, default=8.0, help="frames a second of the file; default 8")
    parser.add_argument("--scale", type=count, default=6, help="pixels of the file per pixel of the video; default 6")
    add_task(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the file.

    Raises:
        ValueError: an unknown word, a size the model does not divide, an unreadable image, or one for a single frame.

    Example:
        >>> callable(run)
        True
    """
    from tubelet.data import write_video
    from tubelet.demo.shipped import load_model
    from tubelet.text import WordEncoder

    t, h, w = arguments.size
    if arguments.image is not None and t == 1:
        raise ValueError(f"--image is the first frame, which leaves nothing to make in --size 1,{h},{w}: ask for more")
    model = load_model(arguments.model)
    assert isinstance(model.text, WordEncoder)
    words, gray = model.text.config.words, model.vae.config.in_channels == 1
    prompt = _worded(arguments.prompt, words)
    with torch.autocast("cpu", torch.bfloat16):
        if arguments.task is None:
            video = _of_prompt(arguments, model, prompt, gray)
        else:
            read = partial(_read, size=(h, w), gray=gray)
            video = do_task(arguments, model, prompt, lambda text: _worded(text, words), read)
    write_video(arguments.out, video.float(), arguments.fps, scale=arguments.scale)
    frames, task = "1 frame" if t == 1 else f"{t} frames", f", task {arguments.task}" if arguments.task else ""
    print(f"{arguments.out}: {arguments.prompt!r}, {frames} of {h}x{w}, seed {arguments.seed}{task}")


def _of_prompt(arguments: argparse.Namespace, model: Any, prompt: str, gray: bool) -> Float[Tensor, "c t h w"]:
    """Text to video, or image to video where there is an image."""
    from tubelet.pipeline import generate

    check_no_task(arguments)
    prefix = None if arguments.image is None else _first_frame(arguments.image, arguments.size[1:], gray=gray)
    (video,) = generate(
        model,
        [prompt],
        [arguments.size],
        [arguments.seed],
        prefixes=[prefix],
        **sampled(arguments),
    )
    return video


def _worded(prompt: str, words: Collection[str]) -> str:
    """The prompt as the model's captions would have it: one that only ever read "a" takes "an" for it."""
    from tubelet.demo.digits import as_captioned

    return as_captioned(prompt) if "a" in words and "an" not in words else prompt


def _first_frame(path: Path, size: tuple[int, int], gray: bool) -> Float[Tensor, "c 1 h w"]:
    """The image at the video's size."""
    return _read(path, size, gray, frames=1)


def _read(path: Path, size: tuple[int, int], gray: bool, frames: int | None = None) -> Float[Tensor, "c t h w"]:
    """The frames of a file at the video's size, and a line that says what was done to them."""
    from tubelet.data import read_video

    picture = read_video(path, frames=1)
    height, width = picture.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    kept = min(height, round(size[0] / scale)), min(width, round(size[1] / scale))
    done = []
    if kept != (height, width):
        done.append(f"cut to the middle {kept[0]}x{kept[1]} of {height}x{width}")
    if kept != size:
        done.append(f"scaled to {size[0]}x{size[1]}")
    if gray and bool((picture - picture.mean(0)).abs().max() > 0.05):
        done.append("turned grey")
    if done:
        print(f"{path}: {', '.join(done)}")
    return read_video(path, frames=frames, size=size, gray=gray)
