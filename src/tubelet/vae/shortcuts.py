"""Changes of scale without weights, beside a learned one: means of channels on the way down, copies on the way up.

DC-AE's residual autoencoding (arXiv:2410.10733, section 3.2): space and time move into channels, whose neighbours are
averaged to the width that is wanted, and back. As everywhere here, the first frame of a video stands alone.
Activations are ``(b, c, t, h, w)``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from einops import reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.causal import State, zeros
from tubelet.vae.formats import rearranged

__all__ = ["Depatch", "MeanShortcut", "Patch", "RepeatShortcut"]


class MeanShortcut(nn.Module):
    """``temporal × spatial × spatial`` positions of all channels, averaged to ``out_channels``.

    ``before`` fills the group of the first frame, with :func:`tubelet.vae.zeros` or :func:`tubelet.vae.copies`.

    Raises:
        ValueError: channels that do not divide.

    Example:
        >>> MeanShortcut(4, 8, temporal=2, spatial=2)(torch.zeros(1, 4, 5, 4, 4))[0].shape
        torch.Size([1, 8, 3, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal: int,
        spatial: int,
        *,
        before: Callable[[Tensor, int], Tensor] = zeros,
    ) -> None:
        super().__init__()
        if (found := in_channels * temporal * spatial**2) % out_channels:
            raise ValueError(f"out_channels {out_channels} must divide the {found} numbers of a group of in_channels")
        self.channels, self.temporal, self.spatial, self.before = out_channels, temporal, spatial, before

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """The next frames; there is nothing to carry on."""
        if state is None:
            x = torch.cat([self.before(x[:, :, :1], self.temporal - 1), x], 2)
        sides = {"pt": self.temporal, "ph": self.spatial, "pw": self.spatial}
        grouped = rearranged(x, "b c (t pt) (h ph) (w pw) -> b (c pt ph pw) t h w", **sides)
        return reduce(grouped, "b (d group) t h w -> b d t h w", "mean", d=self.channels), ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...


class RepeatShortcut(nn.Module):
    """Each channel copied to ``temporal × spatial × spatial`` positions of ``out_channels``.

    The first frame of a video gives one frame, the last of its copies.

    Raises:
        ValueError: channels that do not divide.

    Example:
        >>> RepeatShortcut(8, 4, temporal=2, spatial=2)(torch.zeros(1, 8, 3, 2, 2))[0].shape
        torch.Size([1, 4, 5, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: int, spatial: int) -> None:
        super().__init__()
        if (wanted := out_channels * temporal * spatial**2) % in_channels:
            raise ValueError(f"in_channels {in_channels} must divide the {wanted} numbers of a group of out_channels")
        self.copies, self.temporal, self.spatial = wanted // in_channels, temporal, spatial

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """The next frames; there is nothing to carry on."""
        sides = {"pt": self.temporal, "ph": self.spatial, "pw": self.spatial}
        copied = repeat(x, "b c t h w -> b (c n) t h w", n=self.copies)
        y = rearranged(copied, "b (d pt ph pw) t h w -> b d (t pt) (h ph) (w pw)", **sides)
        return y[:, :, self.temporal - 1 :] if state is None else y, ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...


class Patch(nn.Module):
    """Squares of pixels to channels, in the order ``c pw ph`` of Wan 2.2.

    Example:
        >>> Patch(2)(torch.zeros(1, 3, 1, 4, 6)).shape
        torch.Size([1, 12, 1, 2, 3])
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """``side²`` times the channels."""
        return rearranged(x, "b c t (h ph) (w pw) -> b (c pw ph) t h w", ph=self.side, pw=self.side)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Depatch(nn.Module):
    """Channels to squares of pixels, the inverse of `Patch`.

    Example:
        >>> x = torch.randn(1, 3, 1, 4, 6)
        >>> torch.equal(Depatch(2)(Patch(2)(x)), x)
        True
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b c t h2 w2"]:
        """A ``side²``-th of the channels."""
        return rearranged(x, "b (c pw ph) t h w -> b c t (h ph) (w pw)", ph=self.side, pw=self.side)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
