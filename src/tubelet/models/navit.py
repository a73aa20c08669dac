"""NaViT, the vision transformer of Dehghani et al. (2023, arXiv:2307.06304), for images and videos of every size.

The recipe (section 2.1): whole images at their own aspect ratio, cut into patches and packed on one token axis;
attention inside each image alone; factorised positions, a vector per column plus one per row (and one per frame of a
video), looked up at absolute or at fractional coordinates; norms of queries and keys, and no biases, as in ViT-22B
(arXiv:2302.05442); and masked attention pooling, which makes each image one vector. Tokens may be dropped, each image
at its own rate (:func:`tubelet.packing.drop_tokens`).

Attention over a whole pack of k images of n tokens, masked afterwards, costs ``n(k - 1) / (6·d + n)`` of the layer more
than attention inside each image. Here each image is a segment, and packing costs nothing.

Shapes: ``*lead`` tokens, ``s`` samples (in a layout with a capacity, its padded number of them), ``p = pt·ph·pw·c``
numbers a patch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, Joint
from tubelet.attention.projections import xavier_
from tubelet.blocks import Branch, TransformerBlock
from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_no_text,
    check_patch,
    check_tokens,
    on,
    reset_children,
)
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.patchify import Patchify, central_frame_, linear_weight_to_conv3d
from tubelet.pooling import AttentionPool
from tubelet.positions import LearnedPositions, Stretched
from tubelet.protocols import Pattern

__all__ = ["NaViT", "NaViTConfig", "navit_b", "navit_from_image_", "navit_l", "navit_s"]

_QK_NORMS: Final[dict[str, Callable[..., nn.Module]]] = {"rms": RMSNorm, "layer": LayerNorm}


@dataclass(frozen=True, kw_only=True)
class NaViTConfig:
    """Sizes of a :class:`NaViT`.

    ``grid`` is the largest ``(t, h, w)`` of tokens with a position of its own; one frame makes a model of images, with
    no positions in time. ``positions`` are ``"absolute"``, the index of frame, row and column, or ``"fractional"``,
    their share of the sample's own sides, read between the entries of the same tables. ``patch`` is ``(t, h, w)`` in
    pixels; ``classes`` None gives features instead of logits. ``bias`` gives every projection and norm a bias,
    ``qk_norm`` is the norm of queries and keys, ``patch_norms`` norms patches before and behind their embedding (Dual
    PatchNorm, arXiv:2302.01327), ``pool_mlp`` puts an MLP behind the pooling (arXiv:2106.04560).

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> NaViTConfig(dim=32, depth=2, heads=2, mlp_dim=64, grid=(1, 8, 8), patch=(1, 4, 4)).patch_dim
        48
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    grid: tuple[int, int, int] = (1, 64, 64)
    channels: int = 3
    patch: tuple[int, int, int] = (1, 16, 16)
    classes: int | None = None
    positions: Literal["absolute", "fractional"] = "absolute"
    qk_norm: Literal["rms", "layer"] = "rms"
    act: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    bias: bool = False
    patch_norms: bool = False
    pool_mlp: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "mlp_dim", "channels", "classes"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if min(self.grid) < 1:
            raise ValueError(f"grid must be three positive sides (t, h, w), got {self.grid}")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.channels


def navit_s() -> NaViTConfig:
    """NaViT-S/16, of the width of ViT-S: 24 million parameters.

    Example:
        >>> navit_s().heads
        6
    """
    return NaViTConfig(dim=384, depth=12, heads=6, mlp_dim=1536)


def navit_b() -> NaViTConfig:
    """NaViT-B/16, of the width of ViT-B: 93 million parameters.

    Example:
        >>> navit_b().dim
        768
    """
    return NaViTConfig(dim=768, depth=12, heads=12, mlp_dim=3072)


def navit_l() -> NaViTConfig:
    """NaViT-L/16, of the width of ViT-L: 315 million parameters.

    Example:
        >>> navit_l().depth
        24
    """
    return NaViTConfig(dim=1024, depth=24, heads=16, mlp_dim=4096)


class NaViT(nn.Module):
    """Patches of packed images and videos to one vector, or the logits of one class, for each.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published model has ``Joint()``.

    Example:
        >>> from tubelet.patchify import fold_packed
        >>> model = NaViT(NaViTConfig(dim=32, depth=2, heads=2, mlp_dim=64, patch=(1, 4, 4), classes=10))
        >>> images = [torch.randn(3, 1, 16, 24), torch.randn(3, 1, 32, 8)]
        >>> patches, grids = fold_packed(images, model.config.patch)
        >>> model(patches, TokenLayout.packed(grids)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        config: NaViTConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, (t, h, w), biased = config.dim, config.grid, make | {"bias": config.bias}
        self.embed = _embedding(config, **make)
        self.places = _as_they_are if config.positions == "absolute" else Stretched((float(h), float(w)), time=float(t))
        self.positions = LearnedPositions((None if t == 1 else t, h, w), dim, **make)
        self.blocks = nn.ModuleList(_block(config, pattern, **make) for _ in range(config.depth))
        self.final_norm = LayerNorm(dim, config.eps, **biased)
        self.pool = AttentionPool(dim, config.heads, qk_norm=_qk_norm(config), **biased)
        self.pool_mlp = _mlp(config, **make) if config.pool_mlp else nn.Identity()
        self.pool_norm = LayerNorm(dim, config.eps, **biased)
        self.head = nn.Identity() if config.classes is None else nn.Linear(dim, config.classes, **biased)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier-uniform embedding, logits that start at zero; the children have initialised themselves."""
        xavier_(*(each for each in self.embed.modules() if isinstance(each, nn.Linear)))
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "*lead p"], layout: TokenLayout | LayoutIndex) -> Float[Tensor, "s d"]:
        """One vector a sample. Padding may hold anything.

        Args:
            x: patches, as :func:`tubelet.patchify.fold_packed` makes them.
            layout: where the samples of ``x`` lie; tokens may have been dropped.

        Returns:
            ``(s, classes)``, or ``(s, dim)`` where the config has none; rows of no sample and of samples without tokens
            are 0.

        Raises:
            ValueError: shapes and layout disagree, samples have text, or absolute positions are asked for beyond the
                config's ``grid``.
        """
        index = on(layout, x)
        pooled = self.pool_mlp(self.pool(self.tokens(x, index), index)[:, 0])
        out: Tensor = self.head(self.pool_norm(pooled))
        return torch.where((index.seqlens > 0)[:, None], out, 0)

    def tokens(self, x: Float[Tensor, "*lead p"], layout: TokenLayout | LayoutIndex) -> Float[Tensor, "*lead d"]:
        """The encoded tokens before they are pooled, for dense tasks and as the context of other models.

        Raises:
            ValueError: as the call.

        Example:
            >>> from tubelet import Grid
            >>> model = NaViT(NaViTConfig(dim=32, depth=1, heads=2, mlp_dim=64, grid=(1, 8, 8), patch=(1, 4, 4)))
            >>> model.tokens(torch.randn(2, 6, 48), TokenLayout.dense(2, Grid(1, 2, 3))).shape
            torch.Size([2, 6, 32])
        """
        index = on(layout, x)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_no_text("layout", index)
        check_dtypes(self.embed, x=x)
        h: Tensor = self.embed(index.zero_padding(x))
        h = h + self.positions(self.places(index.coords, index.extent))
        for block in self.blocks:
            h = block(h, None, {"layout": index})
        out: Tensor = self.final_norm(h)
        return out

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead p"], layout: TokenLayout | LayoutIndex) -> Float[Tensor, "s d"]: ...


@torch.no_grad()
def navit_from_image_(
    model: NaViT,
    image: NaViT,
    embed: Callable[[Patchify, Tensor, Tensor | None], None] = central_frame_,
) -> None:
    """Start a model of videos from one of images: at first it sees the central frame of each patch, and no time.

    Everything but the head comes along, the head where both have the same classes.

    Args:
        model: changed in place; :func:`dataclasses.replace` makes its config from the image model's, with another
            ``grid[0]`` and ``patch[0]``.
        image: of single frames.
        embed: how an embedding of images becomes one of tubelets, :func:`tubelet.patchify.central_frame_` or
            :func:`tubelet.patchify.inflate_` (ViViT, arXiv:2103.15691, section 3.4).

    Raises:
        ValueError: ``image`` is no image model, or the two differ in what they share; nothing is changed then.

    Example:
        >>> from dataclasses import replace
        >>> from tubelet.patchify import fold_packed
        >>> sizes = NaViTConfig(dim=32, depth=1, heads=2, mlp_dim=64, patch=(1, 4, 4))
        >>> image, model = NaViT(sizes), NaViT(replace(sizes, grid=(8, 64, 64), patch=(2, 4, 4)))
        >>> navit_from_image_(model, image)
        >>> clip = torch.randn(3, 2, 8, 8)
        >>> (tubelets, grids), (patches, _) = fold_packed([clip], (2, 4, 4)), fold_packed([clip[:, 1:]], (1, 4, 4))
        >>> layout = TokenLayout.packed(grids)
        >>> torch.allclose(model(tubelets, layout), image(patches, layout), atol=1e-5)
        True
    """
    _check_image(model.config, image.config)
    same_head = model.config.classes == image.config.classes
    state = image.state_dict()
    own = {"embed.weight", "positions.time"} | (set() if same_head else {"head.weight", "head.bias"})
    model.load_state_dict(
        {name: state.get(name, x) if name not in own else x for name, x in model.state_dict().items()}
    )
    shell = Patchify(model.config.patch, model.config.channels, model.config.dim, device="meta")
    shell.proj = cast(nn.Linear, model.embed)
    embed(shell, linear_weight_to_conv3d(state["embed.weight"], image.config.patch)[:, :, 0], state.get("embed.bias"))
    if isinstance(model.positions.time, nn.Parameter):
        nn.init.zeros_(model.positions.time)


def _check_image(config: NaViTConfig, image: NaViTConfig) -> None:
    if image.grid[0] != 1 or image.patch[0] != 1 or image.patch_norms:
        raise ValueError(
            f"image must be a model of single frames without norms around its embedding, got grid={image.grid}, "
            f"patch={image.patch}, patch_norms={image.patch_norms}"
        )
    ours = replace(config, grid=(1, *config.grid[1:]), patch=(1, *config.patch[1:]), classes=image.classes)
    if differing := [name for name, value in vars(image).items() if getattr(ours, name) != value]:
        found = ", ".join(f"{name}={getattr(ours, name)} and {getattr(image, name)}" for name in differing)
        raise ValueError(f"model and image must have the same sizes but for time, got {found}")


def _as_they_are(coords: Tensor, _extent: Tensor) -> Tensor:
    """Absolute positions, whatever the sides."""
    return coords


def _embedding(config: NaViTConfig, **make: Any) -> nn.Module:
    """Patches to tokens, between norms where the config has them."""
    linear = nn.Linear(config.patch_dim, config.dim, config.bias, **make)
    if not config.patch_norms:
        return linear
    before, behind = (
        LayerNorm(width, config.eps, bias=config.bias, **make) for width in (config.patch_dim, config.dim)
    )
    return nn.Sequential(before, linear, behind)


def _qk_norm(config: NaViTConfig) -> Callable[..., nn.Module]:
    """Makes the norm of queries and keys; neither kind has a bias."""
    options: dict[str, Any] = {"bias": False} if config.qk_norm == "layer" else {}
    return lambda width, **make: _QK_NORMS[config.qk_norm](width, config.eps, **options, **make)


def _block(config: NaViTConfig, pattern: Pattern, **make: Any) -> TransformerBlock:
    """Self-attention inside each sample, then the MLP."""
    attention = Attention(config.dim, config.heads, bias=config.bias, qk_norm=_qk_norm(config), pattern=pattern, **make)
    norm = LayerNorm(config.dim, config.eps, bias=config.bias, **make)
    return TransformerBlock([Branch(attention, norm, takes=["layout"]), _mlp(config, **make)])


def _mlp(config: NaViTConfig, **make: Any) -> Branch:
    """The branch of an MLP, of a block or behind the pooling."""
    act = nn.GELU(approximate="tanh" if config.act == "gelu_tanh" else "none")
    mlp = MLP(config.dim, config.mlp_dim, act=act, bias=config.bias, **make)
    return Branch(mlp, LayerNorm(config.dim, config.eps, bias=config.bias, **make))
