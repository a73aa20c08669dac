"""Checks of what stands at the borders: patchifiers, autoencoders and text encoders.

Shapes: videos ``(b, c, t, h, w)``.
"""

import math
from collections.abc import Sequence

import torch

from tubelet.protocols import Autoencoder, Patchifier, TextEncoder
from tubelet.testing.mixtures import check_module, same

__all__ = ["check_autoencoder", "check_patchifier", "check_text_encoder"]


def check_patchifier(patchifier: Patchifier, channels: int, dim: int) -> None:
    """Check a patchifier: one token per patch, in raster order, each from its own patch alone; the dtype is kept.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet import Patchify
        >>> check_patchifier(Patchify((1, 2, 2), channels=3, dim=8), channels=3, dim=8)
    """
    sides = (2, 3, 2)
    video = torch.randn(2, channels, *(n * p for n, p in zip(sides, patchifier.patch, strict=True)))
    tokens = patchifier(video)
    expected = (2, math.prod(sides), dim)
    assert tokens.shape == expected, f"a video {tuple(video.shape)} gave tokens {tuple(tokens.shape)}, not {expected}"
    assert tokens.dtype == video.dtype, f"a video in {video.dtype} gave tokens in {tokens.dtype}"
    same("the first video alone", patchifier(video[:1]), tokens[:1], 1e-5)
    for place in range(math.prod(sides)):
        t, y, x = place // 6, place // 2 % 3, place % 2
        corner = [slice(i * p, (i + 1) * p) for i, p in zip((t, y, x), patchifier.patch, strict=True)]
        changed = video.clone()
        changed[0, :, corner[0], corner[1], corner[2]] += 1
        moved = (patchifier(changed) != tokens).any(-1).nonzero().tolist()
        assert moved == [[0, place]], f"patch {(t, y, x)} is token {place} in raster order, but moved tokens {moved}"
    check_module("the patchifier", patchifier, tokens.square().sum())


def check_autoencoder(autoencoder: Autoencoder, channels: int, *, size: tuple[int, int, int] = (5, 16, 16)) -> None:
    """Check a video autoencoder.

    Latents have the sides of ``latent_grid`` and decode to the video's shape; the first frame stands alone (an image is
    a video of one frame); samples of a batch do not meet; ``sample`` follows its generator, or is always the mode, as
    of codes; the dtype is kept; gradients are finite.

    Args:
        autoencoder: yours, as float32 module.
        channels: of its videos.
        size: frames, height and width that it divides.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> config = CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1))
        >>> check_autoencoder(CausalAutoencoder(config), channels=1)
    """
    video = torch.rand(2, channels, *size) * 2 - 1
    posterior = autoencoder.encode(video)
    z, grid = posterior.mode(), autoencoder.latent_grid(*size)
    assert z.shape[2:] == (grid.t, grid.h, grid.w), f"latents have sides {tuple(z.shape[2:])}, latent_grid says {grid}"
    decoded = autoencoder.decode(z)
    assert decoded.shape == video.shape, f"a video {tuple(video.shape)} came back as {tuple(decoded.shape)}"
    found = {"latents": z.dtype, "decoded videos": decoded.dtype}
    assert set(found.values()) == {video.dtype}, f"a video in {video.dtype} gave {found}"
    image = autoencoder.encode(video[:, :, :1]).mode()
    same("the first latent frame and the latent of the first frame", z[:, :, :1], image, 1e-5)
    same("the first sample alone", autoencoder.encode(video[:1]).mode(), z[:1], 1e-5)
    same("the first sample decoded alone", autoencoder.decode(z[:1]), decoded[:1], 1e-5)
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    same("a second draw with one seed", draws[1], draws[0], 0.0)
    certain = torch.equal(draws[0], z)
    assert torch.equal(draws[2], z) if certain else not torch.equal(draws[0], draws[2]), "draws ignore their generator"
    check_module("the autoencoder", autoencoder, (decoded - video).square().mean())


def check_text_encoder(encoder: TextEncoder, prompts: Sequence[str]) -> None:
    """Check a text encoder: compacted tokens with their lengths, each prompt as alone, and a null for the empty one.

    Args:
        encoder: yours.
        prompts: at least two that it can encode, of different lengths where possible.

    Raises:
        AssertionError: what differs.

    Example:
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "left", "seven"), dim=8))
        >>> check_text_encoder(encoder, ["a seven", "left"])
    """
    tokens, lengths = encoder([*prompts, ""])
    assert len(lengths) == len(prompts) + 1, f"{len(prompts) + 1} prompts gave {len(lengths)} lengths"
    assert tokens.shape[0] == sum(lengths), f"lengths sum to {sum(lengths)}, but there are {tokens.shape[0]} tokens"
    assert tokens.ndim == 2 and tokens.is_floating_point(), f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}"
    for prompt, part in zip([*prompts, ""], torch.split(tokens, list(lengths)), strict=True):
        same(f"{prompt!r} alone", encoder([prompt]).tokens, part, 1e-5)
    assert tokens.isfinite().all(), "tokens are not finite"
    check_module("the text encoder", encoder, tokens.square().sum() if tokens.requires_grad else None)
