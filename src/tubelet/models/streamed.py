"""A frame-causal :class:`VideoDiT` on the next frames of a video, with the keys and values of earlier ones in a cache.

The caches of all layers go in and come out (:class:`tubelet.attention.FrameCache`); the model keeps nothing. Clean
earlier frames are cached once, so that a chunk costs what a chunk costs (CausVid, arXiv:2412.07772).

Shapes: ``n`` tokens of the chunk, whole frames, ``p`` numbers a patch, ``m`` text tokens.
"""

import math
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, FrameCache, FrameCausal
from tubelet.diffusion import replaced
from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
from tubelet.models.video_dit import VideoDiT
from tubelet.positions import Rotary

__all__ = ["StreamedVideoDiT"]

Caches = tuple[FrameCache, ...]


class StreamedVideoDiT:
    """The denoiser of the next frames of one video, as :func:`tubelet.diffusion.tasks.causal_rollout` takes it.

    Tokens at noise level 0 count as known in the model's mask. The model knows the end of the video by its positions,
    so the whole grid is fixed beforehand.

    Args:
        model: all of its self-attention is :class:`~tubelet.attention.FrameCausal`.
        grid: the token grid of the whole video.
        text: the encoded prompt.

    Raises:
        ValueError: a layer attends later frames; at the call, other than whole frames, or more than are left.

    Example:
        >>> import torch
        >>> from tubelet.diffusion import Process, noise_like
        >>> from tubelet.diffusion.tasks import causal_rollout
        >>> from tubelet.models import VideoDiTConfig
        >>> model = VideoDiT(VideoDiTConfig(latent_channels=4, dim=64, depth=2, heads=4, text_dim=8))
        >>> for layer in (m for m in model.modules() if isinstance(m, Attention)):
        ...     layer.pattern = FrameCausal(window=2)
        >>> grid, process = Grid(6, 2, 2), Process()
        >>> denoiser = StreamedVideoDiT(model, grid, torch.zeros(3, 8))
        >>> chunks = noise_like(TokenLayout.packed([grid]), 4, seeds=[0]).split(8)
        >>> with torch.no_grad():
        ...     made = causal_rollout(denoiser, chunks, process.times(2), process=process, cache=denoiser.start())
        ...     [(x.shape, caches[0].seen) for x, caches in made]
        [(torch.Size([8, 4]), 2), (torch.Size([8, 4]), 4), (torch.Size([8, 4]), 6)]
    """

    def __init__(self, model: VideoDiT, grid: Grid, text: Float[Tensor, "m e"]) -> None:
        self.model, self.grid, self.text = model, grid, text
        self.layers = {name: each for name, each in model.named_modules() if isinstance(each, Attention)}
        for name, layer in self.layers.items():
            if not isinstance(layer.pattern, FrameCausal):
                raise ValueError(f"every layer must be FrameCausal, but {name} attends by {layer.pattern}")
        self.text_layout = TokenLayout.packed([None], [text.shape[0]]).on(text.device)

    def start(self) -> Caches:
        """The caches before the first frame."""
        patterns = (layer.pattern for layer in self.layers.values())
        return tuple(FrameCache(pattern) for pattern in patterns if isinstance(pattern, FrameCausal))

    def __call__(self, x: Float[Tensor, "n p"], t: Rows, cache: Caches) -> tuple[Float[Tensor, "n p"], Caches]:
        """The prediction on the next frames, and the caches after them."""
        tokens = self.grid.h * self.grid.w
        layout = self._next(x, cache[0].seen, tokens)
        layers = {
            name: _Cached(layer, before, tokens)
            for (name, layer), before in zip(self.layers.items(), cache, strict=True)
        }
        cells = math.prod(self.model.config.patch)
        known = (t.expand() == 0).to(x.dtype).expand(x.shape[0])[:, None].expand(-1, cells)
        out: Tensor = replaced(self.model, layers)(x, t, self.text, layout, self.text_layout, known)
        return out, tuple(layer.after for layer in layers.values())

    def _next(self, x: Tensor, seen: int, tokens: int) -> LayoutIndex:
        """The layout of the frames after those seen, at their places in the whole grid."""
        frames = x.shape[0] // tokens
        if x.shape[0] % tokens or not 1 <= frames <= self.grid.t - seen:
            raise ValueError(f"x has {x.shape[0]} tokens, but {self.grid} has {self.grid.t - seen} frames left")
        index = TokenLayout.packed([Grid(frames, self.grid.h, self.grid.w)]).on(x.device)
        shift, more = (index.coords.new_tensor([number, 0, 0]) for number in (seen, self.grid.t - frames))
        return replace(index, coords=index.coords + shift, extent=index.extent + more)


class _Cached(nn.Module):
    """An attention layer on the next frames; ``after`` is its cache once it has run."""

    after: FrameCache

    def __init__(self, attention: Attention, before: FrameCache, tokens: int) -> None:
        super().__init__()
        self.attention, self.after, self.tokens = attention, before, tokens

    def forward(
        self, x: Float[Tensor, "n d"], layout: LayoutIndex | None = None, rope: Rotary | None = None
    ) -> Float[Tensor, "n d"]:
        out, self.after = self.attention.stream(x, self.after, self.tokens, rope)
        return out
