"""``tubelet train``: the demo's recipe on your own captioned videos."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.cli.arguments import count, existing, folder, number, positive, rate, sides
from tubelet.cli.cpu import flushed_denormals
from tubelet.cli.kept import check_kept
from tubelet.files import replacing

__all__ = ["add", "run"]

_KEPT = ("frames", "size", "fps", "gray", "windows", "seed")

_UNCAPTIONED = (
    "uncaptioned='empty' gives them empty ones",
    'give each a line in the file of --captions, with the caption "" if need be, or take it out of --clips',
)  # the library's advice, and the command's

_EXAMPLE = """example:
  tubelet train --clips videos/ --captions captions.jsonl --frames 9 --size 32,48 --minutes 30

captions.jsonl has one line a file, such as {"file": "a.mp4", "caption": "a bike on a road"}; files without captions are
an error. Ctrl-C leaves a checkpoint: --resume goes on with it. Then:
  tubelet sample "a bike on a road" --model runs/train/model.safetensors --size 9,32,48"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands.

    Example:
        >>> add(argparse.ArgumentParser().add_subparsers())
    """
    parser = commands.add_parser(
        "train",
        help="train text to video on a folder of captioned clips",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=existing, required=True, metavar="DIR", help="folder of videos and images")
    parser.add_argument("--captions", type=existing, required=True, metavar="FILE", help="JSON lines: file and caption")
    parser.add_argument("--frames", type=count, default=9, help="1 + 4k; shorter files give shorter clips; default 9")
    parser.add_argument("--size", type=sides, default=(32, 32), metavar="H,W", help="multiples of 8; default 32,32")
    parser.add_argument("--fps", type=rate, help="frames a second; default each file's own")
    parser.add_argument("--gray", action="store_true", help="train on grey video")
    parser.add_argument("--windows", type=count, default=64, help="different windows of each file; default 64")
    parser.add_argument("--minutes", type=positive, default=30.0, help="of training; default 30")
    parser.add_argument("--seed", type=number, default=0, help="default 0")
    parser.add_argument("--out", type=folder, default=Path("runs/train"), metavar="DIR", help="default runs/train")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.set_defaults(run=run)


@flushed_denormals()
def run(arguments: argparse.Namespace) -> None:
    """Train and write ``model.safetensors``, ``loss.png``, ``samples.png`` and ``reconstructions.png``.

    Raises:
        ValueError: nothing usable in ``--clips``, bad captions, sizes that do not divide, nothing to resume, or a run
            that was begun with other options.

    Example:
        >>> callable(run)
        True
    """
    from tubelet import hub
    from tubelet.data import write_contact_sheet
    from tubelet.demo.build import Plan, check_folder, prepare, resumable
    from tubelet.demo.pictures import loss_curves
    from tubelet.pipeline import TextToVideo, decode_latents, generate
    from tubelet.recipe import Recipe, calibrated, encode_clips, train_autoencoder, train_denoiser, with_latent_stats
    from tubelet.training import Progress

    _check_sides(arguments.frames, arguments.size)
    if not arguments.clips.is_dir():
        raise ValueError(f"--clips must be a folder, got the file {arguments.clips}")
    out: Path = arguments.out
    check_folder(out, arguments.resume, done="model.safetensors")
    videos, captions = _load(arguments)
    model = _build(captions, videos[0].shape[0], arguments.seed)
    batch = _batches(videos, arguments.seed)

    def plan() -> Plan:
        longest = model.vae.latent_grid(arguments.frames, *arguments.size).tokens
        recipe = Recipe(seed=arguments.seed, vae_steps=1, steps=1, ema=0.99, budget=max(2048, longest))
        trial = encode_clips(model.vae, videos[:64], captions[:64])
        measured = calibrated(recipe, arguments.minutes, model, batch, trial)
        return Plan(recipe=measured, clips=len(videos))

    recipe = prepare(out, arguments.resume, plan, done="model.safetensors").recipe
    _keep_options(out / "options.json", arguments)

    def show(title: str) -> Callable[[int, int], Progress]:
        return lambda steps, start: Progress(steps, start=start, title=title)

    with resumable():
        histories = {
            "autoencoder": train_autoencoder(
                model.vae,
                batch,
                recipe,
                checkpoint=out / "autoencoder.run.safetensors",
                on_progress=show("autoencoder"),
            )
        }
        with_latent_stats(model.vae, videos[:512])
        data = encode_clips(model.vae, videos, captions)
        histories["denoiser"] = train_denoiser(
            model, data, recipe, checkpoint=out / "denoiser.run.safetensors", on_progress=show("denoiser")
        )
        trained = TextToVideo.of(model.parts()).eval()
        hub.save_bundle(out / "model.safetensors", trained.parts())
        loss_curves(out / "loss.png", histories)
        shown = sorted(set(captions))[:6]
        sizes = [(arguments.frames, *arguments.size)] * len(shown)
        write_contact_sheet(
            out / "samples.png", generate(trained, shown, sizes, list(range(len(shown)))), labels=shown, scale=3
        )
        again = decode_latents(trained.vae, list(data.latents[:6]))
        pairs = [video for pair in zip(videos[:6], again, strict=False) for video in pair]
        write_contact_sheet(out / "reconstructions.png", pairs, columns=2, scale=3)
        print(f"{out}: model.safetensors, loss.png, samples.png, reconstructions.png")


def _check_sides(frames: int, size: tuple[int, int]) -> None:
    if frames % 4 != 1:
        raise ValueError(f"--frames must be 1 + 4k, got {frames}")
    if size[0] % 8 or size[1] % 8:
        raise ValueError(f"--size must be multiples of 8, got {size[0]},{size[1]}")


def _keep_options(path: Path, arguments: argparse.Namespace) -> None:
    """Store what a new run was asked for; a resumed one must ask for the same."""
    asked = json.loads(json.dumps({name: getattr(arguments, name) for name in _KEPT}))
    if arguments.resume and path.exists():
        check_kept(json.loads(path.read_text()), asked, _KEPT)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asked))


def _load(arguments: argparse.Namespace) -> tuple[list[Float[Tensor, "c _ _ _"]], list[str]]:
    """Every window of every file, decoded once."""
    from tubelet.data import ClipFolder
    from tubelet.training import Progress

    choices = tuple(range(1, arguments.frames + 1, 4))
    try:
        clips = ClipFolder(
            arguments.clips,
            arguments.captions,
            frames=choices,
            size=arguments.size,
            fps=arguments.fps,
            gray=arguments.gray,
            seed=arguments.seed,
            windows=arguments.windows,
        )
    except ValueError as error:
        raise ValueError(str(error).replace(*_UNCAPTIONED)) from error
    videos: list[Tensor] = []
    captions: list[str] = []
    with Progress(len(clips), title="decode") as progress:
        for i in range(len(clips)):
            clip = clips[i]
            videos.append(clip.video)
            captions.append(clip.caption)
            progress.update(i + 1, {})
    if clips.skipped:
        print(f"{len(clips.skipped)} of the files or segments were skipped")
    return videos, captions


def _build(captions: Sequence[str], channels: int, seed: int) -> Any:
    from tubelet.models import VideoDiT, video_dit_digits
    from tubelet.pipeline import TextToVideo
    from tubelet.text import WordEncoder, WordEncoderConfig, WordTokenizer
    from tubelet.vae import CausalAutoencoder, digits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = WordTokenizer.fit(captions)
        longest = max(len(tokenizer.encode(caption)) for caption in captions)
        text = WordEncoder(WordEncoderConfig(words=tokenizer.words, dim=64, max_length=max(8, 2 * longest)))
        return TextToVideo(
            CausalAutoencoder(replace(digits(), in_channels=channels)), text, VideoDiT(video_dit_digits())
        )


def _batches(videos: Sequence[Tensor], seed: int) -> Callable[[int], Float[Tensor, "b c T H W"]]:
    """The autoencoder's batches: clips of one shape, shapes as often as they occur, a pure function of the step."""
    from tubelet.training import step_generator

    groups: dict[torch.Size, list[int]] = {}
    for i, video in enumerate(videos):
        groups.setdefault(video.shape, []).append(i)
    members = list(groups.values())
    shares = torch.tensor([float(len(group)) for group in members])

    def batch(step: int) -> Float[Tensor, "b c T H W"]:
        generator = step_generator(seed, step, stream=5)
        group = members[int(torch.multinomial(shares, 1, generator=generator))]
        most = max(2, min(32, 110_000 // videos[group[0]].numel()))
        chosen = torch.randint(len(group), (most,), generator=generator).tolist()
        return torch.stack([videos[group[i]] for i in chosen])

    return batch
