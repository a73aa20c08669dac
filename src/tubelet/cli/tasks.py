"""``tubelet sample --task``: what a task takes from a video file, or from a video that the model makes first."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from tubelet.cli.arguments import count, existing, share

if TYPE_CHECKING:
    from tubelet.diffusion import Known

__all__ = ["NAMES", "add_task", "check_no_task", "do_task", "sampled"]

NAMES = (
    "text",
    "image",
    "extend",
    "prepend",
    "connect",
    "loop",
    "inpaint",
    "outpaint",
    "spacetime",
    "interpolate",
    "upsample",
    "edit",
    "invert",
    "long",
)
"""Every task; those before the last three are :data:`tubelet.completion.TASKS`. Example: ``NAMES[0]``."""

_GIVEN, _EVERY, _WINDOW = 5, 4, 13
_USES = {
    "given": ("extend", "prepend", "connect", "loop", "long"),
    "every": ("interpolate", "upsample"),
    "strength": ("edit", "invert"),
    "window": ("long",),
    "source": NAMES[1:],
    "video": NAMES[1:],
}

Video = Float[Tensor, "c _ _ _"]


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the options of tasks to ``tubelet sample``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_task(parser)
        >>> parser.parse_args(["--task", "loop"]).task
        'loop'
    """
    group = parser.add_argument_group("tasks", "what is known of the video; the rest is made")
    group.add_argument("--task", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    group.add_argument(
        "--video",
        type=existing,
        action="append",
        metavar="FILE",
        help="the source; twice for connect; without it the model makes one of --source",
    )
    group.add_argument("--source", metavar="PROMPT", help="what the source shows; default the prompt")
    group.add_argument(
        "--given",
        type=count,
        help=f"frames kept at an end of the source; default {_GIVEN}, of a loop that the model makes 1",
    )
    group.add_argument(
        "--every", type=count, help=f"interpolate, upsample: of how many frames one is known; default {_EVERY}"
    )
    group.add_argument("--strength", type=share, help="edit, invert: 0 keeps the source; default 0.75, 1")
    group.add_argument("--window", type=count, help=f"long: frames made at once; default {_WINDOW}")


def check_no_task(arguments: argparse.Namespace) -> None:
    """That no option of a task is dropped where there is none.

    Raises:
        ValueError: an option of tasks without ``--task``.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_task(parser)
        >>> check_no_task(parser.parse_args(["--every", "2"]))
        Traceback (most recent call last):
        ...
        ValueError: --every is of a task: interpolate, upsample; say which with --task
    """
    for option, tasks in _USES.items():
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is of a task: {', '.join(tasks)}; say which with --task")


def do_task(
    arguments: argparse.Namespace,
    model: Any,
    prompt: str,
    worded: Callable[[str], str],
    read: Callable[[Path], Video],
) -> Video:
    """The video of a task.

    Args:
        arguments: of ``tubelet sample``.
        model: the trained models.
        prompt: as the model's captions have it.
        worded: puts another prompt so.
        read: a video file at the size that is asked for.

    Raises:
        ValueError: an option that the task does not use, a source that is too short, a file too many, or nothing to
            make.

    Example:
        >>> callable(do_task)
        True
    """
    from tubelet.completion import complete, edit, edit_inverted, lengthen

    _check(arguments)
    name, frames, seed = arguments.task, arguments.size[0], arguments.seed
    given, window = _given(arguments), min(arguments.window or _WINDOW, frames)
    made = sampled(arguments)
    length = {"long": window, "loop": given if given == 1 else frames}.get(name, frames)
    source = _source(arguments, model, worded, read, length)
    strength = {} if arguments.strength is None else {"strength": arguments.strength}
    if name in ("edit", "invert"):
        source = _whole(source, arguments.size)
    if name == "edit":
        return edit(model, [prompt], [source], [seed], **strength, **made)[0]
    if name == "invert":
        shown = worded(arguments.prompt if arguments.source is None else arguments.source)
        return edit_inverted(model, [prompt], [source], [shown], **strength, **made)[0]
    known = _known(arguments, source)
    if name == "long":
        start, overlap = source[:, :given], min(given, window - 1)
        return lengthen(model, [prompt], [start], frames, [seed], window=window, overlap=overlap, **made)[0]
    return complete(model, [prompt], [known], [seed], **made)[0]


def _source(
    arguments: argparse.Namespace,
    model: Any,
    worded: Callable[[str], str],
    read: Callable[[Path], Video],
    frames: int,
) -> Video:
    """The files, of which connect wants the end of the first and the start of the second; else a sample.

    A sample that no task would accept, or that says nothing, is not made.
    """
    import torch

    from tubelet.pipeline import generate

    given = _given(arguments)
    if arguments.video is not None:
        videos = [read(path) for path in arguments.video]
        for path, video in zip(arguments.video, videos, strict=True):
            _check_given(arguments, str(path), video)
        return videos[0] if len(videos) == 1 else torch.cat([videos[0][:, -given:], videos[1][:, :given]], dim=1)
    size = (frames, *arguments.size[1:])
    blank = torch.zeros(model.vae.config.in_channels, *size)
    _check_given(arguments, "the source", blank)
    if arguments.task not in ("edit", "invert"):
        _known(arguments, blank)
    if arguments.task == "text":
        return blank
    shown = worded(arguments.prompt if arguments.source is None else arguments.source)
    return generate(model, [shown], [size], [arguments.seed], **sampled(arguments))[0]


def sampled(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the sampler is run, as :func:`tubelet.pipeline.generate` has it.

    Example:
        >>> sampled(argparse.Namespace(steps=4, solver="heun", guidance=2.0))["steps"]
        4
    """
    from tubelet.diffusion import SOLVERS

    return {"steps": arguments.steps, "step": SOLVERS[arguments.solver], "guidance": arguments.guidance}


def _known(arguments: argparse.Namespace, source: Video) -> "Known":
    """What the task keeps of its source."""
    from tubelet.completion import task

    (frames, height, width), given = arguments.size, _given(arguments)
    name = "extend" if arguments.task == "long" else arguments.task
    known = task(name, source, frames, given, arguments.every or _EVERY)
    if bool(known.tokens.all()):
        raise ValueError(f"--task {arguments.task} leaves nothing to make in --size {frames},{height},{width}")
    return known


def _given(arguments: argparse.Namespace) -> int:
    """How many frames are kept; of a loop's own source one, a still: what its prompt names does not move on."""
    if arguments.given is not None:
        return int(arguments.given)
    return 1 if arguments.task == "loop" and arguments.video is None else _GIVEN


def _whole(source: Video, size: tuple[int, int, int]) -> Video:
    """The frames of a source that is kept as long as it is asked for."""
    if source.shape[1] < size[0]:
        raise ValueError(f"the source has {source.shape[1]} frames, --size {size[0]},{size[1]},{size[2]}")
    return source[:, : size[0]]


def _check_given(arguments: argparse.Namespace, name: str, video: Video) -> None:
    """That a source has the frames that are kept of it."""
    given = _given(arguments)
    if arguments.task in _USES["given"] and video.shape[1] < given:
        raise ValueError(f"{name} has {video.shape[1]} frames, --given {given}")


def _check(arguments: argparse.Namespace) -> None:
    """That no option is dropped."""
    from tubelet.diffusion import Seeded

    name, files = arguments.task, arguments.video or ()
    for option, tasks in _USES.items():
        if getattr(arguments, option) is not None and name not in tasks:
            raise ValueError(f"--{option} is not of --task {name}, but of {', '.join(tasks)}")
    if arguments.image is not None:
        raise ValueError(f"--image is --task image by itself: give --task {name} a --video instead")
    if len(files) > (2 if name == "connect" else 1):
        raise ValueError(f"--task {name} has one source{' or two' * (name == 'connect')}, got {len(files)} files")
    if files and arguments.source is not None and name != "invert":
        raise ValueError(f"--source is what the model makes without a --video, got both for --task {name}")
    if name == "invert" and isinstance(sampled(arguments)["step"], Seeded):
        raise ValueError(f"--task invert needs a --solver that draws nothing, got {arguments.solver}")
    if name == "invert" and files and arguments.source is None:
        raise ValueError("--task invert needs a --source that says what the --video shows")
