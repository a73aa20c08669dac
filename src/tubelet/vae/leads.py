"""The frames that stand before a video where time goes by groups: the first frame fills the first group alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.causal import State, copies

__all__ = ["Lead"]


class Lead(nn.Module):
    """Frames put before the first of a video, so that groups of ``frames + 1`` begin with it; later frames pass.

    Args:
        frames: how many.
        before: makes them of the first frame and their number: :func:`tubelet.vae.copies` or :func:`tubelet.vae.zeros`.

    `tubelet.vae.SkipFrames` is the inverse.

    Example:
        >>> lead, x = Lead(3), torch.zeros(1, 2, 5, 4, 4)
        >>> lead(x)[0].shape[2], lead(x, ())[0].shape[2]
        (8, 5)
    """

    def __init__(self, frames: int, before: Callable[[Tensor, int], Tensor] = copies) -> None:
        super().__init__()
        self.frames, self.before = frames, before

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], State]:
        """The next frames; there is nothing to carry on."""
        if state is None and self.frames:
            x = torch.cat([self.before(x[:, :, :1], self.frames), x], 2)
        return x, ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...
