"""Self-attention in an autoencoder: inside each frame (LDM, arXiv:2112.10752), or of frames to those before them.

Who attends to frames before it needs their keys and values: the state is a cache of them, which grows with the video
unless the attention's pattern has a window.
"""

from typing import TYPE_CHECKING, Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, FrameCache

__all__ = ["CausalFrameAttention", "FrameAttention", "TimeAttention"]


class FrameAttention(nn.Module):
    """``attention(norm(x))`` with the positions of one frame as tokens; no frame sees another, so there is no state.

    Args:
        norm: of the channels of each position, such as `tubelet.vae.ChannelNorm`.
        attention: from tokens ``(n, h·w, c)`` to tokens, such as :class:`tubelet.attention.Attention`.

    Example:
        >>> import torch
        >>> from tubelet.attention import Attention
        >>> from tubelet.vae import ChannelNorm
        >>> FrameAttention(ChannelNorm(8), Attention(8, heads=1))(torch.zeros(2, 8, 3, 4, 4)).shape
        torch.Size([2, 8, 3, 4, 4])
    """

    def __init__(self, norm: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = norm, attention

    def reset_parameters(self) -> None:
        """Draw both anew."""
        self.norm.reset_parameters()  # type: ignore[operator]
        self.attention.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Attend inside each frame."""
        b, _, _, h, _ = x.shape
        y: Tensor = self.attention(_tokens(self.norm(x), "b c t h w -> (b t) (h w) c"))
        return rearrange(y, "(b t) (h w) c -> b c t h w", b=b, h=h)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class CausalFrameAttention(nn.Module):
    """``attention(norm(x))`` with the positions of all frames as tokens, each attending its own and earlier frames.

    Args:
        norm: of the channels, such as ``nn.GroupNorm``.
        attention: whose pattern is :class:`tubelet.attention.patterns.FrameCausal`.

    Example:
        >>> import torch
        >>> from tubelet.attention.patterns import FrameCausal
        >>> layer = CausalFrameAttention(nn.Identity(), Attention(8, heads=1, pattern=FrameCausal()))
        >>> y, cache = layer(torch.zeros(2, 8, 3, 4, 4))
        >>> y.shape, cache.seen
        (torch.Size([2, 8, 3, 4, 4]), 3)
    """

    def __init__(self, norm: nn.Module, attention: Attention) -> None:
        super().__init__()
        self.norm, self.attention = norm, attention

    def reset_parameters(self) -> None:
        """Draw both anew."""
        self.norm.reset_parameters()  # type: ignore[operator]
        self.attention.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: FrameCache | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t h w"], FrameCache]:
        """The next frames, and the keys and values of all frames so far."""
        h, w = x.shape[3:]
        y, state = _next(self.attention, _tokens(self.norm(x), "b c t h w -> b (t h w) c"), state, h * w)
        return rearrange(y, "b (t h w) c -> b c t h w", h=h, w=w), state

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: FrameCache | None = None, *_: Any) -> tuple[Tensor, FrameCache]: ...


class TimeAttention(nn.Module):
    """``attention(norm(x))`` of each position over its own past: the frames are the tokens.

    Args:
        norm: of the channels, such as `tubelet.vae.FrameGroupNorm`.
        attention: whose pattern is :class:`tubelet.attention.patterns.FrameCausal`.

    Example:
        >>> import torch
        >>> from tubelet.attention.patterns import FrameCausal
        >>> layer = TimeAttention(nn.Identity(), Attention(8, heads=2, pattern=FrameCausal()))
        >>> layer(torch.zeros(2, 8, 3, 4, 4))[0].shape
        torch.Size([2, 8, 3, 4, 4])
    """

    def __init__(self, norm: nn.Module, attention: Attention) -> None:
        super().__init__()
        self.norm, self.attention = norm, attention

    def reset_parameters(self) -> None:
        """Draw both anew."""
        self.norm.reset_parameters()  # type: ignore[operator]
        self.attention.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: FrameCache | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t h w"], FrameCache]:
        """The next frames, and the keys and values of all frames so far."""
        b, _channels, _frames, h, w = x.shape
        y, state = _next(self.attention, _tokens(self.norm(x), "b c t h w -> (b h w) t c"), state, 1)
        return rearrange(y, "(b h w) t c -> b c t h w", b=b, h=h, w=w), state

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: FrameCache | None = None, *_: Any) -> tuple[Tensor, FrameCache]: ...


def _tokens(x: Tensor, form: str) -> Tensor:
    """Tokens one after the other in memory: products of strided ones would copy them, and the weights, each time."""
    return rearrange(x, form).contiguous()


def _next(attention: Attention, x: Tensor, cache: FrameCache | None, tokens: int) -> tuple[Tensor, FrameCache]:
    """The next frames, of ``tokens`` tokens each, through an attention."""
    if cache is None:
        cache = FrameCache(attention.pattern, attention.backend)  # type: ignore[arg-type]
    return attention.stream(x, cache, tokens)
