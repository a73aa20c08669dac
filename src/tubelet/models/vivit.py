"""ViViT, the video classifiers of Arnab et al. (2021, arXiv:2103.15691), over packed videos of any sizes.

Videos become tubelets, patches with a depth in time, to which a transformer like that of an image model (ViT,
arXiv:2010.11929) gives one vector for each sample. Its four models (section 3.3) differ in how space and time meet:

- ``"joint"`` (1): all tokens attend to each other;
- ``"factorised_encoder"`` (2): a transformer on each frame of tubelets alone, then a small one on the frames' vectors;
- ``"factorised_self_attention"`` (3): each block attends over space, then over time;
- ``"factorised_dot_product"`` (4): half of the heads attend over space, half over time;
- ``"average"``: the baseline of table 1, which averages the frames' vectors of model 2.

Models 1 and 2 read their vector from a class token, the others are the mean of all tokens. An image model is a
``"joint"`` one of a single frame; :func:`vivit_from_image_` starts any of the five from its weights (section 3.4).

Shapes: ``*lead`` tokens, ``s`` samples, ``p = pt·ph·pw·c`` numbers a tubelet.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_no_text,
    check_patch,
    check_tokens,
    check_whole,
    on,
    reset_children,
)
from tubelet.models.space_time import SpaceTime, space_time
from tubelet.models.vit_block import vit_block
from tubelet.models.vivit_encoders import (
    AsTheyAre,
    ClassTokenEncoder,
    FrameEncoder,
    MeanEncoder,
    Trunk,
    ViViTEncoding,
)
from tubelet.norms import LayerNorm
from tubelet.patchify import Patchify, central_frame_, linear_weight_to_conv3d
from tubelet.positions import LearnedGridPositions

__all__ = [
    "ViViT",
    "ViViTConfig",
    "ViViTVariant",
    "vivit_b",
    "vivit_from_image_",
    "vivit_h",
    "vivit_l",
]

ViViTVariant = Literal[SpaceTime, "average"]
"""A model of the paper, by its name. Example: ``"factorised_encoder"``."""

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class ViViTConfig:
    """Sizes of a :class:`ViViT`.

    ``grid`` is the largest ``(t, h, w)`` of tokens, for which there are positions; ``patch`` the sides ``(t, h, w)`` of
    a tubelet in frames and pixels; ``temporal_depth`` counts the blocks over time of the factorised encoder;
    ``classes`` is None for an encoder without a head; ``gelu`` is the approximation of the activation.

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> ViViTConfig(dim=32, depth=2, heads=2, mlp_dim=64, grid=(2, 4, 4)).patch_dim
        1536
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    grid: tuple[int, int, int]
    variant: ViViTVariant = "joint"
    temporal_depth: int = 4
    classes: int | None = 400
    latent_channels: int = 3
    patch: tuple[int, int, int] = (2, 16, 16)
    qkv_bias: bool = True
    gelu: Literal["none", "tanh"] = "tanh"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "mlp_dim", "temporal_depth", "classes", "latent_channels"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if min(self.grid) < 1:
            raise ValueError(f"grid must be three positive sides (t, h, w), got {self.grid}")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.variant == "factorised_dot_product" and self.heads % 2:
            raise ValueError(f"heads={self.heads} do not make two halves for variant={self.variant!r}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one tubelet, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels


def vivit_b(
    variant: ViViTVariant = "joint", patch: int = 16, frames: int = 2, classes: int | None = 400
) -> ViViTConfig:
    """ViViT-B on 32 frames of 224×224: 87 to 117 million parameters; B/16x2 has tubelets of 16×16 pixels in 2 frames.

    Raises:
        ValueError: ``patch`` does not divide 224 pixels, or ``frames`` 32 frames.

    Example:
        >>> vivit_b().grid
        (16, 14, 14)
    """
    return _of(variant, patch, frames, classes, dim=768, depth=12, heads=12, mlp_dim=3072)


def vivit_l(
    variant: ViViTVariant = "joint", patch: int = 16, frames: int = 2, classes: int | None = 400
) -> ViViTConfig:
    """ViViT-L on 32 frames of 224×224; L/16x2 is the paper's model of Kinetics.

    Raises:
        ValueError: as :func:`vivit_b`.

    Example:
        >>> vivit_l("factorised_encoder").temporal_depth
        4
    """
    return _of(variant, patch, frames, classes, dim=1024, depth=24, heads=16, mlp_dim=4096)


def vivit_h(
    variant: ViViTVariant = "joint", patch: int = 14, frames: int = 2, classes: int | None = 400
) -> ViViTConfig:
    """ViViT-H on 32 frames of 224×224; H/14x2 is the paper's largest.

    Raises:
        ValueError: as :func:`vivit_b`.

    Example:
        >>> vivit_h().grid
        (16, 16, 16)
    """
    return _of(variant, patch, frames, classes, dim=1280, depth=32, heads=16, mlp_dim=5120)


def _of(variant: ViViTVariant, patch: int, frames: int, classes: int | None, **sizes: Any) -> ViViTConfig:
    for name, side, whole in (("patch", patch, 224), ("frames", frames, 32)):
        if side < 1 or whole % side:
            raise ValueError(f"{name}={side} does not divide the {whole} {'frames' if name == 'frames' else 'pixels'}")
    grid = 32 // frames, 224 // patch, 224 // patch
    return ViViTConfig(**sizes, grid=grid, patch=(frames, patch, patch), variant=variant, classes=classes)


class ViViT(nn.Module):
    """Tubelets of videos to the logits of each video; also its parts, a tokeniser and an encoder.

    ``model.embed`` is the tokeniser, a :class:`tubelet.Patchify` that takes videos too; ``model.encode`` gives tokens.

    Args:
        config: its sizes.

    Example:
        >>> from tubelet.patchify import fold_packed
        >>> sizes = dict(dim=32, depth=2, heads=2, mlp_dim=64, grid=(4, 4, 4), patch=(2, 8, 8), classes=10)
        >>> model = ViViT(ViViTConfig(**sizes, variant="factorised_encoder"))
        >>> tubelets, grids = fold_packed([torch.randn(3, 8, 32, 32), torch.randn(3, 2, 16, 24)], (2, 8, 8))
        >>> layout = TokenLayout.packed(grids)
        >>> model(tubelets, layout).shape, model.encode(tubelets, layout).tokens.shape
        (torch.Size([2, 10]), torch.Size([70, 32]))
    """

    def __init__(
        self,
        config: ViViTConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = Patchify(config.patch, config.latent_channels, config.dim, **make)
        self.encoder = _encoder(config, **make)
        self.head = nn.Identity() if config.classes is None else nn.Linear(config.dim, config.classes, **make)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    @torch.no_grad()
    def _reset_own(self) -> None:
        """A head of zeros, and attention over time that adds nothing yet where it has weights of its own (model 3)."""
        opening: list[Any] = [self.head]
        if self.config.variant == "factorised_self_attention":
            encoder: Any = self.encoder
            opening += [block.branches[1].inner.out_proj for block in encoder.trunk.blocks]
        for parameter in (p for linear in opening for p in linear.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "*lead p"], layout: Layout) -> Float[Tensor, "s classes"]:
        """The logits of each sample, its vector where the config has no classes. Padding may hold anything.

        Args:
            x: tubelets, as :func:`tubelet.fold` and :func:`tubelet.fold_packed` make them of videos.
            layout: where the samples of ``x`` lie.

        Returns:
            ``(s, classes)``; in a layout with a capacity there are rows behind those of its samples.

        Raises:
            ValueError: ``x`` and the layout disagree or ``x`` is a video, a grid is larger than the positions, or the
                layout has text or dropped tokens.
        """
        logits: Tensor = self.head(self.encode(x, layout).pooled)
        return logits

    def encode(self, x: Float[Tensor, "*lead p"], layout: Layout) -> ViViTEncoding:
        """The vector of each sample, and all tokens behind the last norm; of model 2 those know their own frame only.

        Raises:
            ValueError: as :meth:`forward`.
        """
        index = on(layout, x)
        _check_folded(x, self.config)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_no_text("layout", index)
        check_whole("layout", index)
        check_dtypes(self.embed.proj, x=x)
        encoded: ViViTEncoding = self.encoder(self.embed.proj(index.zero_padding(x)), index)
        return encoded

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead p"], layout: Layout) -> Float[Tensor, "s classes"]: ...


def vivit_from_image_(
    model: ViViT,
    image: ViViT,
    embed: Callable[[Patchify, Tensor, Tensor | None], None] = central_frame_,
) -> None:
    """Start a video model from an image model: its tubelets, positions and transformer over space (section 3.4).

    Positions are those of the image model in every frame. A class token comes along where both have one; what is over
    time alone and the head stay as they are. On a video that stands still every tubelet is embedded as the patch of the
    image is, and the vector of ``"average"`` is the image model's; those of the other variants are not.

    Args:
        model: changed in place.
        image: of single frames (``grid`` and ``patch`` of one), ``"joint"``, such as the adapter of image transformers
            in :mod:`tubelet.hub` gives; :func:`dataclasses.replace` makes the config of a video model from its own.
        embed: how an embedding of images becomes one of tubelets, :func:`tubelet.patchify.central_frame_` or
            :func:`tubelet.patchify.inflate_`.

    Raises:
        ValueError: ``image`` is no image model, or the two differ in what they share; nothing is changed then.

    Example:
        >>> sizes = dict(dim=16, depth=1, heads=2, mlp_dim=32, classes=None)
        >>> image = ViViT(ViViTConfig(**sizes, grid=(1, 2, 2), patch=(1, 8, 8)))
        >>> model = ViViT(ViViTConfig(**sizes, grid=(3, 2, 2), patch=(2, 8, 8), variant="factorised_encoder"))
        >>> vivit_from_image_(model, image)
        >>> torch.equal(model.encoder.spatial.token, image.encoder.token)
        True
    """
    _check_image(model.config, image.config)
    ours: Any = getattr(model.encoder, "spatial", model.encoder)
    theirs: Any = image.encoder
    weight = linear_weight_to_conv3d(image.embed.proj.weight, image.config.patch)[:, :, 0]
    embed(model.embed, weight, image.embed.proj.bias)
    with torch.no_grad():
        ours.trunk.positions.table.copy_(theirs.trunk.positions.table)
        if isinstance(ours, ClassTokenEncoder):
            ours.token.copy_(theirs.token)
            ours.position.copy_(theirs.position)
    ours.trunk.norm.load_state_dict(theirs.trunk.norm.state_dict())
    for block, other in zip(ours.trunk.blocks, theirs.trunk.blocks, strict=True):
        for place in (0, -1):  # over space, and the MLP
            block.branches[place].load_state_dict(other.branches[place].state_dict())


def _check_folded(x: Any, config: ViViTConfig) -> None:
    """Refuse a video in the place of its tubelets."""
    if isinstance(x, Tensor) and x.dim() in (4, 5) and x.shape[-1] != config.patch_dim:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, that of videos; the model takes tubelets {config.patch_dim} wide: "
            f"fold(x, {config.patch}), or fold_packed of videos of several sizes"
        )


def _check_image(config: ViViTConfig, image: ViViTConfig) -> None:
    if image.grid[0] != 1 or image.patch[0] != 1 or image.variant != "joint":
        raise ValueError(
            f"image must be a joint model of single frames, got variant={image.variant!r}, grid={image.grid}, "
            f"patch={image.patch}"
        )
    of_time = {name: getattr(config, name) for name in ("variant", "temporal_depth", "classes")}
    grid, patch = (1, *config.grid[1:]), (1, *config.patch[1:])
    theirs, ours = (asdict(each) for each in (replace(image, **of_time), replace(config, grid=grid, patch=patch)))
    if differing := [name for name in ours if ours[name] != theirs[name]]:
        found = ", ".join(f"{name}={ours[name]} and {theirs[name]}" for name in differing)
        raise ValueError(f"model and image must have the same sizes but for time, got {found}")


def _encoder(config: ViViTConfig, **make: Any) -> nn.Module:
    """What makes vectors of tokens, by the variant."""
    dim, heads = config.dim, config.heads
    block = partial(
        vit_block, dim, heads, config.mlp_dim, qkv_bias=config.qkv_bias, gelu=config.gelu, eps=config.eps, **make
    )

    def trunk(extent: tuple[int, int, int], depth: int, how: SpaceTime = "joint") -> Trunk:
        blocks = [block(patterns=patterns) for patterns in space_time(how, depth, heads)]
        return Trunk(LearnedGridPositions(extent, dim, **make), blocks, LayerNorm(dim, config.eps, **make))

    (t, h, w), how = config.grid, config.variant
    if how == "joint":
        return ClassTokenEncoder(dim, trunk((t, h, w), config.depth), **make)
    if how == "factorised_self_attention" or how == "factorised_dot_product":
        return MeanEncoder(trunk((t, h, w), config.depth, how))
    spatial = ClassTokenEncoder(dim, trunk((1, h, w), config.depth), **make)
    if how == "average":
        return FrameEncoder(spatial, MeanEncoder(AsTheyAre()))
    return FrameEncoder(spatial, ClassTokenEncoder(dim, trunk((t, 1, 1), config.temporal_depth), **make))
