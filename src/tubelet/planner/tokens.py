"""How many tokens a video is, from pixels by way of latents; and how many of them each token attends."""

from tubelet.bench.pairs import count_pairs
from tubelet.layout import Grid, TokenLayout
from tubelet.planner.amounts import check_amounts
from tubelet.protocols import Pattern

__all__ = ["keys_per_token", "token_grid"]


def token_grid(
    frames: int,
    height: int,
    width: int,
    *,
    temporal: int = 4,
    spatial: int = 8,
    patch: tuple[int, int, int] = (1, 2, 2),
    causal: bool = True,
    chunk: int | None = None,
) -> Grid:
    """The token grid of a video of ``frames`` of ``height`` by ``width`` pixels.

    Args:
        temporal, spatial: frames and pixels to one latent cell.
        patch: latent cells ``(t, h, w)`` to one token.
        causal: the first frame stands alone, so that ``1 + temporal·k`` frames are ``1 + k`` latent ones.
        chunk: frames that are coded by themselves, one chunk after another; None for the whole video.

    Raises:
        ValueError: a number is not positive or does not divide, or ``patch`` has not three sides.

    Example:
        >>> token_grid(129, 720, 1280)
        Grid(t=33, h=45, w=80)
        >>> token_grid(204, 256, 256, temporal=8, spatial=8, chunk=17)
        Grid(t=36, h=16, w=16)
    """
    if len(patch) != 3:
        raise ValueError(f"patch must have three sides (t, h, w), got {patch}")
    check_amounts(1, frames=frames, height=height, width=width, temporal=temporal, spatial=spatial, patch=min(patch))
    check_amounts(1, chunk=1 if chunk is None else chunk)
    whole, rest = divmod(frames, chunk or frames)
    latent = whole * _latent(min(frames, chunk or frames), temporal, causal)
    latent += _latent(rest, temporal, causal) if rest else 0
    return Grid(
        _divided("latent frames", latent, patch[0]),
        _divided("height", height, spatial * patch[1]),
        _divided("width", width, spatial * patch[2]),
    )


def keys_per_token(pattern: Pattern, grid: Grid, text: int = 0, heads: int = 1) -> float:
    """How many keys a token attends on average: what one layer's attention costs.

    Args:
        pattern: any; pairs are counted exactly.
        grid: the tokens of one sample.
        text: tokens of text before them on the same axis.
        heads: of which patterns by heads speak; their mean is given.

    Raises:
        ValueError: ``text`` is negative, or there is no head.

    Example:
        >>> from tubelet.attention import Joint, Spatial, Temporal
        >>> [keys_per_token(pattern, Grid(16, 14, 14)) for pattern in (Joint(), Spatial(), Temporal())]
        [3136.0, 196.0, 16.0]
    """
    check_amounts(0, text=text)
    check_amounts(1, heads=heads)
    return count_pairs(pattern, TokenLayout.dense(1, grid, text), heads) / (heads * (grid.tokens + text))


def _latent(frames: int, temporal: int, causal: bool) -> int:
    return (
        1 + _divided("frames after the first", frames - 1, temporal) if causal else _divided("frames", frames, temporal)
    )


def _divided(name: str, number: int, by: int) -> int:
    if number % by:
        raise ValueError(f"{name} must be a multiple of {by}, got {number}")
    return number // by
