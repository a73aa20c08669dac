"""Self-attention inside each frame, as an autoencoder has it at its coarsest scale (LDM, arXiv:2112.10752)."""

from typing import TYPE_CHECKING

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FrameAttention"]


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
        y: Tensor = self.attention(rearrange(self.norm(x), "b c t h w -> (b t) (h w) c"))
        return rearrange(y, "(b t) (h w) c -> b c t h w", b=b, h=h)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
