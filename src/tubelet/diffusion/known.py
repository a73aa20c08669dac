"""Known tokens: what is given of a video, stays at its noise level and is returned bit for bit.

The noise level is per row, as in diffusion forcing (Chen et al., 2024, arXiv:2407.01392): that of the known tokens, 0
by default, and the sampling time for the rest. A token is a patch, a latent cell or a pixel: shapes are ``(*lead, c)``,
where one video by itself has ``lead = (t, h, w)``, and masks are ``Rows`` of booleans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tubelet.diffusion.predictions import level
from tubelet.diffusion.process import Process
from tubelet.layout import Rows, TokenLayout
from tubelet.patchify import fold_packed

__all__ = ["Known", "fold_known"]


@dataclass(frozen=True, eq=False)
class Known:
    """Which tokens are given, their values, and the noise level at which the denoiser meets them.

    Args:
        mask: booleans per sample, frame or token, from ``layout.rows(flags, level)``; True is known.
        values: tokens ``(*lead, c)``; read only where the mask is True.
        noise_level: of the known tokens, in [0, 1]. Above 0 the denoiser trusts them less, which steadies long
            rollouts (arXiv:2407.01392, section 3.3); start from :meth:`noised` and end with :meth:`apply`.

    Raises:
        ValueError: ``mask`` does not hold booleans, or ``noise_level`` is outside [0, 1].

    Example:
        >>> from tubelet.diffusion import Process, sample
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(2, 1, 1)])
        >>> known = Known(layout.rows(torch.tensor([True, False]), "frame"), torch.full((2, 3), 7.0))
        >>> known.levels(torch.tensor(0.5)).expand()
        tensor([0.0000, 0.5000])
        >>> process, start = Process(), known.apply(torch.zeros(2, 3))
        >>> sample(lambda x, t: x + 1, start, process.times(1), process=process, rows=known.levels).tolist()
        [[7.0, 7.0, 7.0], [-1.0, -1.0, -1.0]]
    """

    mask: Rows
    values: Float[Tensor, "*lead c"]
    noise_level: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Rows):
            raise ValueError(f"mask must be Rows, layout.rows(flags, level), got {type(self.mask).__name__}")
        if self.mask.values.dtype != torch.bool:
            raise ValueError(f"mask must hold torch.bool, got {self.mask.values.dtype}")
        if not 0 <= self.noise_level <= 1:
            raise ValueError(f"noise_level must lie in [0, 1], got {self.noise_level}")

    @classmethod
    def of_video(
        cls, video: Float[Tensor, "c t h w"], mask: Bool[Tensor, "t h w"], noise_level: float = 0.0
    ) -> "Known":
        """What is known of one video, or of its latents: each cell is a token, so ``lead`` is ``(t, h, w)``.

        Raises:
            ValueError: the mask holds no booleans, or has other sides than the video.

        Example:
            >>> known = Known.of_video(torch.ones(3, 2, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool))
            >>> known.values.shape, known.video.shape, bool(known.tokens.all())
            (torch.Size([2, 4, 5, 3]), torch.Size([3, 2, 4, 5]), True)
        """
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must hold torch.bool, got {mask.dtype}")
        if mask.shape != video.shape[1:]:
            raise ValueError(f"mask has sides {tuple(mask.shape)}, but the video has {tuple(video.shape[1:])}")
        flags = torch.tensor([False, True], device=mask.device)
        return cls(Rows(flags, mask.long()), rearrange(video, "c t h w -> t h w c"), noise_level)

    @property
    def video(self) -> Float[Tensor, "c t h w"]:
        """The values of one video, channels first; the inverse of :meth:`of_video`."""
        return rearrange(self.values, "t h w c -> c t h w")

    @property
    def tokens(self) -> Bool[Tensor, "*lead"]:
        """True at each known token."""
        like = self.values[..., 0]
        return level(self.mask, like).expand(like.shape)

    @property
    def channels(self) -> Float[Tensor, "*lead k"]:
        """The known values, 0 elsewhere, and the mask: ``c + 1`` channels, for a denoiser that takes them as input.

        This is W.A.L.T's condition of frame prediction, ``[m·z, m]`` (arXiv:2312.06662).

        Example:
            >>> Known(Rows(torch.tensor([True, False])), torch.full((2, 1, 1), 7.0)).channels.tolist()
            [[[7.0, 1.0]], [[0.0, 0.0]]]
        """
        known = self.tokens[..., None]
        return torch.cat([torch.where(known, self.values, 0), known.to(self.values.dtype)], dim=-1)

    def apply(self, x: Shaped[Tensor, "*lead c"]) -> Shaped[Tensor, "*lead c"]:
        """``x`` with the known values in place.

        Raises:
            ValueError: ``x`` has another shape than the values.
        """
        if x.shape != self.values.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, but the known values have {tuple(self.values.shape)}")
        return torch.where(level(self.mask, x), self.values.to(x.dtype), x)

    def noised(self, process: Process, noise: Float[Tensor, "*lead c"]) -> "Known":
        """The same tokens with their values at their noise level: at 0 the very same.

        Example:
            >>> from tubelet.diffusion import Process
            >>> known = Known(Rows(torch.tensor([True])), torch.full((1, 1, 1), 8.0), noise_level=0.25)
            >>> known.noised(Process(), torch.zeros(1, 1, 1)).values
            tensor([[[6.]]])
        """
        at = Rows(torch.full((1,), self.noise_level, device=noise.device, dtype=noise.dtype))
        return replace(self, values=process.noise(self.values, noise, at))

    def levels(self, t: Float[Tensor, "*r"]) -> Rows:
        """Noise levels: the known tokens' own, ``t`` (one scalar, or one value per row) elsewhere.

        Raises:
            ValueError: ``t`` holds integers, or has more values than one, but not one per row of the mask.
        """
        if not t.is_floating_point():
            raise ValueError(f"t must be floating-point, got {t.dtype}")
        rows = self.mask.values.shape
        if t.numel() != 1 and t.shape != rows:
            raise ValueError(f"t has shape {tuple(t.shape)}, but the mask has rows of shape {tuple(rows)}")
        return self.mask.map(lambda known: torch.where(known, torch.full_like(t, self.noise_level), t))


def fold_known(knowns: Sequence[Known], patch: tuple[int, int, int]) -> tuple[Known, TokenLayout]:
    """What is known of several videos of any sizes, as packed patches; a patch is known where all its cells are.

    Its mask has two rows a sample, what is unknown and what is known, so that models modulate few rows.

    Args:
        knowns: one a video, from :meth:`Known.of_video`, all at one noise level.
        patch: ``(pt, ph, pw)`` in cells.

    Returns:
        The known patches ``(n, pt·ph·pw·c)``, and where each video lies among them.

    Raises:
        ValueError: no videos, a side that is not a multiple of the patch's, or different noise levels.

    Example:
        >>> mask = torch.tensor([[[True, True, True, False]]])
        >>> known, layout = fold_known([Known.of_video(torch.zeros(3, 1, 1, 4), mask)], (1, 1, 2))
        >>> known.tokens.tolist(), known.values.shape, layout.grids
        ([True, False], torch.Size([2, 6]), (Grid(t=1, h=1, w=2),))
    """
    if len(levels := sorted({known.noise_level for known in knowns})) > 1:
        raise ValueError(f"knowns must share a noise level, got {levels[0]} and {levels[-1]}")
    values, grids = fold_packed([known.video for known in knowns], patch)
    layout = TokenLayout.packed(grids)
    masks = [known.mask.expand().expand(known.values.shape[:-1]).to(values.device) for known in knowns]
    known = fold_packed([mask[None] for mask in masks], patch)[0].all(-1)
    flags = torch.tensor([False, True], device=values.device).repeat(len(knowns))
    owner = torch.arange(len(knowns), device=values.device).repeat_interleave(2)
    return Known(Rows(flags, 2 * layout.on(values.device).sample + known, owner), values, levels[0]), layout
