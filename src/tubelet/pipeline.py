"""Text to video in a latent space: autoencoder, text encoder and denoiser, trained and sampled on packed batches.

Nothing here is a new idea: latent diffusion (Rombach et al., 2021, arXiv:2112.10752) on the packed sequences of NaViT
(arXiv:2307.06304), with rectified-flow training (arXiv:2209.03003, arXiv:2403.03206), known frames held at noise level
0 (diffusion forcing, arXiv:2407.01392) and classifier-free guidance (arXiv:2207.12598). One batch may mix images and
clips of any sizes; each sample's noise depends on its own seed only, so that a batch equals its samples one by one.

Shapes: videos ``(c, T, H, W)`` in [-1, 1], latents ``(z, t, h, w)`` of unit variance, patches ``(n, p)``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tubelet.diffusion import (
    Known,
    Process,
    Repainted,
    Seeded,
    cfg,
    euler_step,
    fold_known,
    noise_like,
    noise_stream,
    projected,
    sample,
)
from tubelet.diffusion.samplers.loop import one_step
from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
from tubelet.models import VideoDiT
from tubelet.patchify import fold_packed, unfold_packed
from tubelet.protocols import Denoiser, SamplerStep, Solver, TextEncoder
from tubelet.text import WordEncoder
from tubelet.vae import CausalAutoencoder

__all__ = [
    "Guidance",
    "LatentBatch",
    "TextToVideo",
    "bind",
    "decode_latents",
    "denoising_loss",
    "encode_videos",
    "generate",
    "packed_loss",
    "prefix_mask",
    "sample_latents",
    "state_like",
]

Guidance = float | Callable[[Denoiser, Denoiser], Denoiser]
"""The scale of classifier-free guidance, where 1 means none, or a function from the denoiser of the prompts and that of
empty ones to a denoiser. Example: ``lambda c, u: rescale(cfg(c, u, 4.0), c, 0.7)``."""


class TextToVideo(nn.Module):
    """The three models of a text-to-video system, under one name for state dicts and averages.

    Any text encoder serves, in any dtype and on any device. One that is no module, as
    :class:`tubelet.text.TransformersEncoder` is none, is neither trained nor saved with the others.

    Example:
        >>> from tubelet.models import VideoDiTConfig
        >>> from tubelet.text import WordEncoderConfig
        >>> from tubelet.vae import digits
        >>> dit = VideoDiTConfig(latent_channels=16, dim=64, depth=1, heads=4, text_dim=8)
        >>> text = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> model = TextToVideo(CausalAutoencoder(digits()), text, VideoDiT(dit))
        >>> [v.shape for v in generate(model, ["a seven", "a"], [(1, 16, 16), (5, 16, 24)], seeds=[0, 1], steps=2)]
        [torch.Size([1, 1, 16, 16]), torch.Size([1, 5, 16, 24])]
    """

    def __init__(self, vae: CausalAutoencoder, text: TextEncoder, denoiser: VideoDiT) -> None:
        super().__init__()
        self.vae, self.text, self.denoiser = vae, text, denoiser

    def parts(self) -> dict[str, nn.Module]:
        """The modules by name, as :func:`tubelet.hub.save_bundle` takes them."""
        return dict(self.named_children())

    @classmethod
    def of(cls, parts: Mapping[str, nn.Module]) -> "TextToVideo":
        """The inverse of :meth:`parts`, for a :class:`tubelet.text.WordEncoder`.

        Raises:
            ValueError: a part is missing or of another class.
        """
        vae, text, denoiser = (parts.get(name) for name in ("vae", "text", "denoiser"))
        if not (
            isinstance(vae, CausalAutoencoder) and isinstance(text, WordEncoder) and isinstance(denoiser, VideoDiT)
        ):
            found = {name: type(part).__name__ for name, part in parts.items()}
            raise ValueError(f"parts must be a CausalAutoencoder, a WordEncoder and a VideoDiT, got {found}")
        return cls(vae, text, denoiser)


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """Packed latents with their prompts: patches ``(n, p)``, where they lie, and one prompt a sample.

    Example:
        >>> batch = LatentBatch.of([torch.zeros(16, 1, 2, 2), torch.zeros(16, 2, 2, 3)], ["a", "b"], (1, 1, 1))
        >>> batch.patches.shape, batch.layout.lengths
        (torch.Size([16, 16]), (4, 12))
    """

    patches: Float[Tensor, "n p"]
    layout: TokenLayout
    prompts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        latents: Sequence[Float[Tensor, "z _ _ _"]],
        prompts: Sequence[str],
        patch: tuple[int, int, int],
    ) -> "LatentBatch":
        """Pack latents of any sizes; equal lengths are put side by side, so that their attention is batched.

        Raises:
            ValueError: there are not as many prompts as latents, or one text instead of a list.
        """
        _check_texts(prompts)
        if len(latents) != len(prompts):
            raise ValueError(f"latents has {len(latents)} samples, but prompts has {len(prompts)}")
        order = sorted(
            range(len(latents)),
            key=lambda i: (latents[i].shape[1:].numel(), len(prompts[i].split())),
        )
        patches, grids = fold_packed([latents[i] for i in order], patch)
        return cls(patches, TokenLayout.packed(grids), tuple(prompts[i] for i in order))


@torch.no_grad()
def encode_videos(vae: CausalAutoencoder, videos: Sequence[Float[Tensor, "c _ _ _"]]) -> list[Float[Tensor, "z _ _ _"]]:
    """Unit-variance latents (the posterior's mode) of videos of any sizes; equal sizes are encoded together.

    They are made on the autoencoder's device in its dtype, and returned there in the videos' dtype.

    Raises:
        ValueError: a video that the autoencoder's factors do not divide.

    Example:
        >>> from tubelet.vae import digits
        >>> vae = CausalAutoencoder(digits())
        >>> [z.shape for z in encode_videos(vae, [torch.zeros(1, 5, 16, 16), torch.zeros(1, 1, 24, 16)])]
        [torch.Size([16, 2, 2, 2]), torch.Size([16, 1, 3, 2])]
    """

    def encode(batch: Tensor) -> Tensor:
        return vae.scale(vae.encode(batch.to(vae.latent_std)).mode()).to(batch.dtype)

    return _by_shape(videos, encode)


@torch.no_grad()
def decode_latents(
    vae: CausalAutoencoder, latents: Sequence[Float[Tensor, "z _ _ _"]]
) -> list[Float[Tensor, "c _ _ _"]]:
    """Videos of unit-variance latents of any sizes, clamped to [-1, 1].

    They are made on the autoencoder's device in its dtype, and returned there in the latents' dtype.

    Example:
        >>> from tubelet.vae import digits
        >>> [v.shape for v in decode_latents(CausalAutoencoder(digits()), [torch.zeros(16, 2, 2, 2)])]
        [torch.Size([1, 5, 16, 16])]
    """

    def decode(batch: Tensor) -> Tensor:
        return vae.decode(vae.unscale(batch.to(vae.latent_std))).clamp(-1, 1).to(batch.dtype)

    return _by_shape(latents, decode)


def _by_shape(items: Sequence[Tensor], fn: Callable[[Tensor], Tensor], most: int = 64) -> list[Tensor]:
    """Apply a batched function to items grouped by shape, at most ``most`` at a time; results in the given order."""
    groups: dict[torch.Size, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.shape, []).append(i)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            results.update(zip(chosen, fn(torch.stack([items[i] for i in chosen])), strict=True))
    return [results[i] for i in range(len(items))]


def prefix_mask(layout: LayoutIndex, frames: Sequence[int]) -> Bool[Tensor, " f"]:
    """True for the first ``frames[i]`` frames of sample i: one flag for each (sample, frame) row of the layout.

    Example:
        >>> layout = TokenLayout.packed([Grid(3, 1, 1), Grid(2, 1, 1)]).on("cpu")
        >>> prefix_mask(layout, [1, 0]).tolist()
        [True, False, False, False, False]
    """
    owner = layout.frame_sample[: layout.frames]
    counts = owner.new_zeros(layout.samples).index_add(0, owner, torch.ones_like(owner))
    place = torch.arange(layout.frames, device=owner.device) - (counts.cumsum(0) - counts)[owner]
    return place < torch.tensor(frames, device=owner.device)[owner]


def denoising_loss(
    model: TextToVideo,
    batch: LatentBatch,
    process: Process,
    generator: torch.Generator,
    *,
    drop_text: float = 0.1,
    known_frames: float = 0.25,
) -> Float[Tensor, ""]:
    """The training loss of one packed batch: the process's loss over the unknown tokens.

    All is drawn where the generator is, in at least float32, and moved to the patches.

    Each sample draws one noise level; with probability ``known_frames`` a random number of its first frames (never all)
    is given: clean, at level 0, marked in the mask and left out of the loss. With probability ``drop_text`` its prompt
    is the empty one.

    Example:
        >>> from tubelet.models import VideoDiTConfig
        >>> from tubelet.text import WordEncoderConfig
        >>> from tubelet.vae import digits
        >>> dit = VideoDiTConfig(latent_channels=16, dim=64, depth=1, heads=4, text_dim=8)
        >>> text = WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8))
        >>> model = TextToVideo(CausalAutoencoder(digits()), text, VideoDiT(dit))
        >>> batch = LatentBatch.of([torch.zeros(16, 2, 8, 8)], ["a seven"], (1, 1, 1))
        >>> denoising_loss(model, batch, Process(), torch.Generator().manual_seed(0)).round(decimals=1)
        tensor(1., grad_fn=<RoundBackward1>)
    """
    layout = batch.layout.on(batch.patches.device)
    levels = _draw_levels(process, layout, batch.patches, generator)
    flags = prefix_mask(layout, _draw_known(batch.layout, known_frames, generator))
    known = Known(layout.rows(flags, "frame"), batch.patches)
    noise = _draw_noise(batch.patches, generator)
    dropped = torch.rand(layout.samples, generator=generator, device=generator.device) < drop_text
    prompts = ["" if drop else prompt for drop, prompt in zip(dropped.tolist(), batch.prompts, strict=True)]

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        return _predict(model, x, t, prompts, layout, known.tokens)

    return _loss(denoiser, batch.patches, noise, levels, layout, process, known, process.loss)


def bind(model: nn.Module, layout: TokenLayout | LayoutIndex, **inputs: Any) -> Denoiser:
    """Any of our models with all that it is given besides state and noise levels, as samplers and losses call it.

    The state is handed on in the dtype of the model's first parameter, and the prediction comes back in the state's.
    Everything else is handed on as it is, but for layouts, which become indices on the model's device once.

    Args:
        model: called as ``model(x=x, t=t, layout=layout, **inputs)``.
        layout: where the samples of the state lie.
        **inputs: by the names of the model's ``forward``: ``text``, ``text_layout``, ``pooled``, ``labels`` and others,
            in the dtype of the model.

    Example:
        >>> from tubelet.models import DiT, DiTConfig
        >>> model = DiT(DiTConfig(dim=32, depth=1, heads=2, mlp_dim=64, variance_channels=0))
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(1, 2, 6)])
        >>> noise = noise_like(layout, channels=model.config.patch_dim, seeds=[0, 1])
        >>> denoiser = bind(model, layout, labels=torch.tensor([7, 9]))
        >>> sample(denoiser, noise, Process().times(2), process=Process()).shape
        torch.Size([28, 16])
    """
    parameter = next(model.parameters(), torch.empty(0))
    given = {
        name: value.on(parameter.device) if isinstance(value, TokenLayout) else value
        for name, value in {"layout": layout, **inputs}.items()
    }

    def denoiser(x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead p"]:
        prediction: Tensor = model(x=x.to(parameter.dtype), t=t, **given)
        return prediction.to(x.dtype)

    return denoiser


def packed_loss(
    denoiser: Denoiser,
    x0: Float[Tensor, "*lead c"],
    layout: TokenLayout | LayoutIndex,
    process: Process,
    generator: torch.Generator,
    *,
    known: Known | None = None,
    loss: Callable[..., Float[Tensor, ""]] | None = None,
) -> Float[Tensor, ""]:
    """The training loss of one batch of any sizes, of any denoiser: a noise level a sample, noise, and their loss.

    Both are drawn where the generator is, in at least float32, and moved to ``x0``. Padding and known tokens do not
    count; known tokens are clean (or at their own level), whatever level their sample has.

    Args:
        denoiser: the model with its conditions, such as :func:`bind` makes it.
        x0: clean patches.
        layout: where their samples lie.
        process: path, prediction, density of the levels and weight.
        generator: of levels and noise.
        known: what is given of the batch, its mask made by ``layout.rows`` or :func:`tubelet.diffusion.fold_known`.
        loss: called as ``loss(prediction, x0, noise, t, mask=mask)``; by default ``process.loss``. For a model that
            learns its variance it is ``functools.partial(hybrid_loss, process, steps=1000)``.

    Raises:
        ValueError: ``x0`` and layout disagree, or rows of ``known.mask`` do not say whose they are.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> wan = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8))
        >>> layout, prompts = TokenLayout.packed([Grid(2, 2, 2), Grid(1, 1, 3)]), TokenLayout.packed([None] * 2, [3, 1])
        >>> denoiser = bind(wan, layout, text=torch.randn(4, 8), text_layout=prompts)
        >>> packed_loss(denoiser, torch.randn(11, 64), layout, Process(), torch.Generator().manual_seed(0)).shape
        torch.Size([])
    """
    index = layout.on(x0.device) if isinstance(layout, TokenLayout) else layout
    if tuple(x0.shape[:-1]) != index.shape:
        raise ValueError(f"x0 has tokens {tuple(x0.shape[:-1])}, but layout has {index.shape}")
    levels, noise = _draw_levels(process, index, x0, generator), _draw_noise(x0, generator)
    return _loss(denoiser, x0, noise, levels, index, process, known, process.loss if loss is None else loss)


def _draw_levels(process: Process, layout: LayoutIndex, x0: Tensor, generator: torch.Generator) -> Float[Tensor, " s"]:
    wide = torch.promote_types(x0.dtype, torch.float32)
    return process.draw_times((layout.samples,), generator=generator, device=x0.device, dtype=wide)


def _draw_noise(x0: Float[Tensor, "*s"], generator: torch.Generator) -> Float[Tensor, "*s"]:
    noise = torch.randn(x0.shape, generator=generator, device=generator.device)
    return noise.to(x0.device, torch.promote_types(x0.dtype, torch.float32))


def _loss(
    denoiser: Denoiser,
    x0: Float[Tensor, "*lead c"],
    noise: Float[Tensor, "*lead c"],
    levels: Float[Tensor, " s"],
    layout: LayoutIndex,
    process: Process,
    known: Known | None,
    loss: Callable[..., Float[Tensor, ""]],
) -> Float[Tensor, ""]:
    """The loss at one level a sample, over what is real and not known."""
    t, mask = layout.rows(levels, "sample"), layout.valid
    if known is not None:
        if known.mask.owner is None:
            raise ValueError(f"known.mask has {len(known.mask.values)} rows without an owner: make it by layout.rows")
        owner = known.mask.owner.clamp(0, len(levels) - 1)
        t, mask = known.levels(levels[owner]), mask & ~known.tokens
        x0 = known.apply(x0)
    clean = layout.zero_padding(x0)
    return loss(denoiser(process.noise(clean, noise, t), t), clean, noise, t, mask=mask)


def _draw_known(layout: TokenLayout, share: float, generator: torch.Generator) -> list[int]:
    """How many first frames of each sample are given: 0, or for a share of the samples 1 to t - 1."""
    chosen = torch.rand(len(layout.grids), generator=generator, device=generator.device) < share
    place = torch.rand(len(layout.grids), generator=generator, device=generator.device)
    frames = [0 if grid is None else grid.t for grid in layout.grids]
    return [
        min(1 + int(u * (t - 1)), t - 1) if yes else 0
        for yes, u, t in zip(chosen.tolist(), place.tolist(), frames, strict=True)
    ]


def _predict(
    model: TextToVideo,
    x: Float[Tensor, "n p"],
    t: Rows,
    prompts: Sequence[str],
    layout: LayoutIndex,
    given: Bool[Tensor, " n"],
) -> Float[Tensor, "n p"]:
    """The denoiser's prediction, computed in its own dtype, in the dtype of ``x``."""
    text = model.text(prompts)
    text_layout = text.layout.on(x.device)
    own = model.denoiser.embed.weight.dtype
    cells = given[:, None].to(own).expand(-1, math.prod(model.denoiser.config.patch))
    return model.denoiser(x.to(own), t, text.tokens.to(x.device, own), layout, text_layout, cells).to(x.dtype)


@torch.no_grad()
def generate(
    model: TextToVideo,
    prompts: Sequence[str],
    sizes: Sequence[tuple[int, int, int]],
    seeds: Sequence[int],
    *,
    process: Process | None = None,
    prefixes: Sequence[Float[Tensor, "c _ _ _"] | None] | None = None,
    steps: int = 25,
    step: SamplerStep | Solver | Seeded = euler_step,
    guidance: Guidance = 2.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Float[Tensor, "c _ _ _"]]:
    """Sample videos of any sizes in one packed batch. :func:`tubelet.completion.complete` knows more than prefixes.

    It runs on the denoiser's device, and its state has the denoiser's dtype or float32 if that is wider; noise is drawn
    on the CPU. Videos come back on that device, in the state's dtype or their prefix's.

    Args:
        model: the trained models.
        prompts: one text a video; "" is unconditional.
        sizes: frames, height and width of each, in pixels.
        seeds: one a video: a video depends on its own prompt, size, seed and prefix only.
        process: what the denoiser was trained with; None means rectified flow.
        prefixes: the first ``1 + temporal·k`` frames of each video, or None: image to video, extension. They come back
            bit for bit, and their latents stay exact throughout.
        steps: how many steps.
        step: how one is made: a one-step method, a solver, or one that draws (:class:`tubelet.diffusion.Seeded`).
        guidance: scale of classifier-free guidance, 1 for none; or a function of two denoisers (:data:`Guidance`).
        callback: called after each step with its number and the packed state.

    Raises:
        ValueError: one text instead of a list, lists of different lengths, sizes that the autoencoder does not divide,
            a prefix of another size, or a ``guidance`` that is not finite.

    Example:
        See :class:`TextToVideo`.

        >>> callable(generate)
        True
    """
    _check_texts(prompts)
    prefixes = [None] * len(prompts) if prefixes is None else list(prefixes)
    _check_lengths(prompts=prompts, sizes=sizes, seeds=seeds, prefixes=prefixes)
    patch = model.denoiser.config.patch
    grids = [model.vae.latent_grid(*size) for size in sizes]
    clean = [_clean(model.vae, *each, state_like(model)) for each in zip(grids, sizes, prefixes, strict=True)]
    if odd := [frames for _, frames in clean if frames % patch[0]]:
        raise ValueError(f"a prefix of {odd[0]} latent frames is not a multiple of the patch's {patch[0]} frames")
    made = sample_latents(
        model,
        prompts,
        [_first_known(latent, frames) for latent, frames in clean],
        seeds,
        process=process,
        steps=steps,
        step=step,
        guidance=guidance,
        callback=callback,
    )
    return list(map(_paste, decode_latents(model.vae, made), prefixes))


@torch.no_grad()
def sample_latents(
    model: TextToVideo,
    prompts: Sequence[str],
    knowns: Sequence[Known],
    seeds: Sequence[int],
    *,
    process: Process | None = None,
    steps: int = 25,
    times: Float[Tensor, " s"] | None = None,
    step: SamplerStep | Solver | Seeded = euler_step,
    starts: Sequence[Float[Tensor, "z _ _ _"]] | None = None,
    project: Callable[[list[Tensor]], list[Tensor]] | None = None,
    repaint: int | None = None,
    guidance: Guidance = 2.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Float[Tensor, "z _ _ _"]]:
    """Sample unit-variance latents of any sizes in one packed batch, around what is known of them.

    Args:
        model: the trained models; its autoencoder is not asked.
        prompts: one text a video; "" is unconditional.
        knowns: what is known of each video's latents, from ``Known.of_video(latents, mask)``; nothing where all of the
            mask is False. Known patches come back bit for bit.
        seeds: one a video.
        process: what the denoiser was trained with; None means rectified flow.
        steps: how many steps from noise to data, where no ``times`` are given.
        times: noise levels in order.
        step: how one is made: a one-step method, a solver, or one that draws (:class:`tubelet.diffusion.Seeded`).
        starts: the states at ``times[0]``; None is noise.
        project: what the predicted latents are replaced by at every step (:func:`tubelet.diffusion.projected`).
        repaint: how often each step is made, for a model that is told nothing of what is known
            (:class:`tubelet.diffusion.Repainted`); None where it knows masks and levels of tokens.
        guidance: scale of classifier-free guidance, 1 for none; or a function of two denoisers (:data:`Guidance`).
        callback: called after each step with its number and the packed state, whose samples are ordered by size.

    Raises:
        ValueError: one text instead of a list, lists of different lengths, a ``guidance`` that is not finite, or a
            ``step`` that is none, or to be repainted and no one-step method.

    Example:
        >>> callable(sample_latents)
        True
    """
    check_asked(
        prompts, guidance, prompts=prompts, knowns=knowns, seeds=seeds, starts=knowns if starts is None else starts
    )
    if not prompts:
        return []
    process, patch = Process() if process is None else process, model.denoiser.config.patch
    order = sorted(range(len(prompts)), key=lambda i: (knowns[i].tokens.numel(), len(prompts[i].split())))
    prompts, seeds = [prompts[i] for i in order], [seeds[i] for i in order]
    known, layout = fold_known([knowns[i] for i in order], patch)
    patches = known.values.to(state_like(model))
    known = replace(known, values=patches)
    told = known if repaint is None else replace(known, mask=known.mask.map(torch.zeros_like))
    index = layout.on(patches.device)
    grids = [grid for grid in layout.grids if grid is not None]

    def back(x: Tensor) -> list[Tensor]:
        made = dict(zip(order, unfold_packed(x, grids, patch), strict=True))
        return [made[i] for i in range(len(order))]

    def packed(latents: Sequence[Tensor]) -> Tensor:
        return fold_packed([latents[i] for i in order], patch)[0].to(patches)

    def denoiser(texts: Sequence[str]) -> Denoiser:
        return lambda x, t: _predict(model, x, t, texts, index, told.tokens)

    guided = _guided(guidance, denoiser(prompts), denoiser([""] * len(prompts)))
    if project is not None:
        guided = projected(guided, lambda x0: packed(project(back(x0))), process)
    like: dict[str, Any] = {"device": patches.device, "dtype": patches.dtype}
    noise = noise_like(layout, patches.shape[-1], seeds, **like)
    fresh = noise_stream(layout, patches.shape[-1], seeds, **like)
    made = step.make(fresh) if isinstance(step, Seeded) else step
    times = process.times(steps, **like) if times is None else times.to(patches)
    blank = process.noise(torch.zeros_like(noise), noise, Rows(times[:1]))
    done = sample(
        guided,
        known.noised(process, noise).apply(blank if starts is None else packed(starts)),
        times,
        process=process,
        step=made if repaint is None else Repainted(known, fresh, one_step("step", made), repaint),
        rows=told.levels,
        callback=callback,
    )
    return back(known.apply(done))


def _guided(guidance: Guidance, conditional: Denoiser, unconditional: Denoiser) -> Denoiser:
    if callable(guidance):
        return guidance(conditional, unconditional)
    return conditional if guidance == 1 else cfg(conditional, unconditional, guidance)


def state_like(model: TextToVideo) -> Float[Tensor, ""]:
    """A zero on the device and in the dtype of a sampler's state: the denoiser's, or float32 if that is wider.

    Example:
        >>> callable(state_like)
        True
    """
    own = model.denoiser.embed.weight
    return torch.zeros((), device=own.device, dtype=torch.promote_types(own.dtype, torch.float32))


def _first_known(latent: Float[Tensor, "z t h w"], frames: int) -> Known:
    """Latents of which the first frames are known."""
    mask = torch.arange(latent.shape[1], device="cpu") < frames
    return Known.of_video(latent, mask[:, None, None].expand(latent.shape[1:]))


def check_asked(texts: Sequence[str], guidance: Guidance, **lists: Sequence[object]) -> None:
    """Refuse one text for a list of texts, a scale that is not finite, and lists that are not equally long."""
    _check_texts(texts)
    if not callable(guidance) and not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite, got {guidance}")
    _check_lengths(**lists)


def _check_texts(prompts: Sequence[str]) -> None:
    """A text is a sequence of texts to Python, but hardly ever to who wrote it."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got one text: {prompts!r}")


def _check_lengths(**lists: Sequence[object]) -> None:
    counts = {name: len(values) for name, values in lists.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"{', '.join(counts)} must be equally many, got {counts}")


def _clean(
    vae: CausalAutoencoder,
    grid: Grid,
    size: tuple[int, int, int],
    prefix: Tensor | None,
    blank: Tensor,
) -> tuple[Float[Tensor, "z _ _ _"], int]:
    """The known latents of a video, zeros as ``blank`` elsewhere, and how many of its latent frames are known."""
    latent = blank.new_zeros(vae.config.latent_channels, grid.t, grid.h, grid.w)
    if prefix is None:
        return latent, 0
    if tuple(prefix.shape[2:]) != tuple(size[1:]) or prefix.shape[1] > size[0]:
        raise ValueError(f"a prefix of shape {tuple(prefix.shape)} does not begin a video of size {tuple(size)}")
    if not bool(torch.isfinite(prefix).all()) or float(prefix.abs().max()) > 1 + 1e-3:
        raise ValueError(f"a prefix must lie in [-1, 1], got {float(prefix.min())} to {float(prefix.max())}")
    known = encode_videos(vae, [prefix])[0]
    latent[:, : known.shape[1]] = known
    return latent, known.shape[1]


def _paste(video: Tensor, prefix: Tensor | None) -> Tensor:
    """The video with its given frames to the bit."""
    if prefix is None:
        return video
    return torch.cat([prefix.to(video.device), video.to(prefix.dtype)[:, prefix.shape[1] :]], dim=1)
