"""The plugs: what each stage of the library asks of its neighbours, as typed protocols and the small values they pass.

Nothing inherits from these classes. A third party's block plugs in when it has the methods with these shapes;
``tubelet.testing`` checks that it behaves. Shape legend: ``*lead`` is ``n`` (packed) or ``b n`` (batched) tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelet.layout import Grid, LayoutIndex, Rows, TokenInfo, TokenLayout

__all__ = [
    "Answer",
    "AttentionRequest",
    "Autoencoder",
    "Backend",
    "Bias",
    "Block",
    "Denoiser",
    "ModulationSource",
    "Patchifier",
    "Path",
    "Pattern",
    "Positions",
    "SamplerStep",
    "Solver",
    "TextEncoder",
    "TextTokens",
]


@runtime_checkable
class Pattern(Protocol):
    """Which keys a query attends, as one predicate; the sample and padding rules are the contract's, not the pattern's.

    Example:
        >>> class SameFrame:
        ...     def attends(self, q, k, head):
        ...         return q.coords[..., 0] == k.coords[..., 0]
        >>> isinstance(SameFrame(), Pattern)
        True
    """

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True where ``q`` attends ``k``; all fields and ``head`` broadcast against each other."""
        ...


@runtime_checkable
class Bias(Protocol):
    """What is added to the scores, as a function of what a query and a key are (``RelativeBias``, say).

    Example:
        >>> class Nearer:
        ...     def between(self, q, k, head):
        ...         return -(q.coords - k.coords).abs().sum(-1).float()
        ...
        ...     def check(self, heads, sides):
        ...         pass
        >>> isinstance(Nearer(), Bias)
        True
    """

    def between(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The number for each pair; all fields and ``head`` broadcast against each other."""
        ...

    def check(self, heads: int, sides: tuple[int, int, int]) -> None:
        """Raise ValueError where the bias is not defined for so many heads, or over boxes with sides up to ``sides``.

        The tokens of a pair lie in such a box: a grid, or a window of it where the pattern has windows.
        """
        ...


@dataclass(frozen=True)
class AttentionRequest:
    """One typed question to the backends: everything but the numbers in q, k and v.

    ``index`` and ``kv_index`` are None for attention of whole rows; ``shape`` is q's, ``kv_shape`` k's, ``v_dim`` the
    width of v (None: that of k). ``grad`` says that gradients may be asked for.

    Example:
        >>> from tubelet.attention import Joint
        >>> AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 1, 4), torch.float32, "cpu", 0.5, None).groups
        2
    """

    pattern: Pattern
    index: LayoutIndex | None
    kv_index: LayoutIndex | None
    shape: tuple[int, ...]
    kv_shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    scale: float
    bias: Float[Tensor, "..."] | Bias | None
    grad: bool = False
    v_dim: int | None = None

    @property
    def groups(self) -> int:
        """Query heads per key head (grouped-query attention)."""
        return self.shape[-2] // self.kv_shape[-2]

    @property
    def ragged(self) -> bool:
        """True where segments are shorter than the axis: packed samples or padding."""
        index, keys = self.index, self.kv_index
        return (index is not None and not index.dense) or (keys is not None and not keys.dense)


@dataclass(frozen=True)
class Answer:
    """Whether a backend serves a request exactly; where not, ``reason`` says why and what would help.

    Example:
        >>> bool(Answer("needs CUDA")), bool(Answer())
        (False, True)
    """

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


@runtime_checkable
class Backend(Protocol):
    """An implementation of attention that says what it can do and does exactly that.

    Example:
        >>> from tubelet.attention import backends
        >>> isinstance(backends()["reference"], Backend)
        True
    """

    name: str

    def supports(self, request: AttentionRequest) -> Answer:
        """Can this request be served exactly?"""
        ...

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        ...


@runtime_checkable
class Patchifier(Protocol):
    """Video to embedded patches in raster order.

    Example:
        >>> from tubelet import Patchify
        >>> isinstance(Patchify((1, 2, 2), channels=4, dim=8), Patchifier)
        True
    """

    patch: tuple[int, int, int]

    def __call__(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n d"]:
        """Fold and embed."""
        ...


@runtime_checkable
class Positions(Protocol):
    """Coordinates to what is added to tokens.

    Example:
        >>> from tubelet.positions import SinCos3d
        >>> isinstance(SinCos3d(32), Positions)
        True
    """

    def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Position vectors for integer ``(t, h, w)`` coordinates."""
        ...


@runtime_checkable
class ModulationSource(Protocol):
    """Conditioning rows to modulation rows (shift, scale, gate end to end on the last axis).

    Example:
        >>> from tubelet.conditioning import AdaLNZero
        >>> isinstance(AdaLNZero(8, 16), ModulationSource)
        True
    """

    def __call__(self, cond: Rows) -> Rows:
        """Rows of ``(r, k·d)`` from rows of ``(r, cond)``."""
        ...


@runtime_checkable
class Block(Protocol):
    """A transformer block: tokens to tokens, given conditioning rows and a context of named values.

    Example:
        >>> from tubelet.blocks import TransformerBlock
        >>> isinstance(TransformerBlock([]), Block)
        True
    """

    def __call__(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None, context: Mapping[str, Any]
    ) -> Float[Tensor, "*lead d"]:
        """Apply every branch in turn."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """Anything that predicts from a noisy input and its noise levels.

    Example:
        >>> isinstance(lambda x, t: x, Denoiser)
        True
    """

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead c"]:
        """The prediction (eps, x0, v or velocity) on patches."""
        ...


@runtime_checkable
class Path(Protocol):
    """How data becomes noise: ``x_t = alpha(t)·x0 + sigma(t)·noise`` for t in [0, 1], 0 = data, 1 = noise.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> isinstance(RectifiedFlow(), Path)
        True
    """

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The factor of the data."""
        ...

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The factor of the noise."""
        ...

    def alpha_dot(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The derivative of alpha in t."""
        ...

    def sigma_dot(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The derivative of sigma in t."""
        ...


@runtime_checkable
class SamplerStep(Protocol):
    """One pure step of a sampler from noise level ``t`` to ``s``.

    Example:
        >>> from tubelet.diffusion import euler_step
        >>> isinstance(euler_step, SamplerStep)
        True
    """

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Any
    ) -> Float[Tensor, "*lead c"]:
        """The next state."""
        ...


@runtime_checkable
class Solver(Protocol):
    """A sampler that remembers: a pure step whose memory is an explicit, picklable value.

    Example:
        >>> from tubelet.diffusion import UniPC
        >>> isinstance(UniPC(), Solver)
        True
    """

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Any, history: Any = None
    ) -> tuple[Float[Tensor, "*lead c"], Any]:
        """The state at ``s`` and the history for the next step; at the start of a run the history is None."""
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """Video to latents and back; times and sizes shrink by fixed factors, and the first frame stands alone.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> isinstance(CausalAutoencoder(digits()), Autoencoder)
        True
    """

    def encode(self, video: Float[Tensor, "b c t h w"]) -> Any:
        """The posterior over latents; it has ``mode()`` and ``sample(generator)``."""
        ...

    def decode(self, z: Float[Tensor, "b z tz hz wz"]) -> Float[Tensor, "b c t h w"]:
        """Latents to video."""
        ...

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        """The latent sides of a video's sides."""
        ...


class TextTokens(NamedTuple):
    """Encoded prompts end to end, without padding: ``tokens (n, d)`` and how many belong to each prompt.

    Example:
        >>> text = TextTokens(torch.zeros(5, 8), (2, 3))
        >>> text.lengths, text.layout.shape
        ((2, 3), (5,))
    """

    tokens: Float[Tensor, "n d"]
    lengths: tuple[int, ...]

    @property
    def layout(self) -> TokenLayout:
        """Where the prompts lie: packed samples of text alone."""
        return TokenLayout.packed([None] * len(self.lengths), self.lengths)


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to compacted tokens.

    Example:
        >>> from tubelet.text import WordEncoder, WordEncoderConfig
        >>> isinstance(WordEncoder(WordEncoderConfig(words=("a", "seven"), dim=8)), TextEncoder)
        True
    """

    def __call__(self, prompts: Sequence[str]) -> TextTokens:
        """Encode; an empty prompt is the null condition."""
        ...
