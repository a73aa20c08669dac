"""DiT's checkpoints as the paper's authors publish them, such as ``DiT-XL-2-256x256.pt``, both ways.

What differs from ours beyond names: the patch embedding is a convolution, queries, keys and values are one matrix, and
the fixed positions of the trained grid are a table. A table of any square grid is read, and compared with the
sinusoids; that of 32 by 32 latent cells is written, their class's default. A file has no config: the shapes say all but
the number of heads, which every published width has its own of.

Source: https://github.com/facebookresearch/DiT, ``models.py``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, fused, renamed
from tubelet.hub.pixart import embed_keys, project_keys, square_patch
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.dit import DiT, DiTConfig
from tubelet.positions import sincos_2d

__all__ = [
    "DIT_ORIGINAL",
    "dit_config_from_original",
    "dit_config_to_original",
    "dit_original_config",
    "dit_original_keys",
    "fixed_table",
    "modulated_block_keys",
    "published_heads",
    "sizes_of",
    "square_table",
]

_DEFAULTS: dict[str, Any] = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
}
_OURS: dict[str, Any] = {
    "frequencies": 256,
    "freq_shift": 0,
    "eps": 1e-6,
    "mlp_eps": 1e-6,
    "position_axes": 2,
    "base_grid": None,
    "time_scale": 1000.0,
    "time_shift": -1.0,
}
"""What has one value in their class."""


def published_heads(width: int, known: Mapping[int, int], config: Mapping[str, Any]) -> int:
    """How many heads a model of that width has, by its config or else by the published models.

    Raises:
        ValueError: neither says.

    Example:
        >>> published_heads(1152, {1152: 16}, {})
        16
    """
    if "num_heads" in config:
        return int(config["num_heads"])
    if width not in known:
        raise ValueError(f"no shape tells the number of heads, and none of the published widths {[*known]} is {width}")
    return known[width]


def dit_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone. For a width that no published model has, ``num_heads``.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`dit_config_from_original` reads.

    Raises:
        ValueError: tensors that every DiT has are missing, or nothing says how many heads there are.

    Example:
        >>> dit_original_config({}, {"x_embedder.weight": (1152, 16)})
        Traceback (most recent call last):
        ValueError: the tensors are not DiT's: there is no x_embedder.proj.weight of rank 4
    """
    file = FileShapes("DiT", shapes)
    sizes = sizes_of(file, config)
    return {**sizes, "num_classes": file.of("y_embedder.embedding_table.weight")[0] - 1, **config}


def sizes_of(file: FileShapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """What DiT's and Latte's classes are told in the same words, from the shapes of a file.

    Example:
        >>> sizes_of(FileShapes("DiT", {"x_embedder.proj.weight": (48, 4, 2, 2), "pos_embed": (1, 9, 48)}), {})
        Traceback (most recent call last):
        ValueError: no shape tells the number of heads, and none of the published widths [384, 768, 1024, 1152] is 48
    """
    dim, channels, side, _ = file.of("x_embedder.proj.weight", 4)
    return {
        "input_size": math.isqrt(file.of("pos_embed", 3)[1]) * side,
        "patch_size": side,
        "in_channels": channels,
        "hidden_size": dim,
        "depth": file.count("blocks"),
        "num_heads": published_heads(dim, {384: 6, 768: 12, 1024: 16, 1152: 16}, config),
        "mlp_ratio": file.of("blocks.0.mlp.fc1.weight")[0] / dim,
        "learn_sigma": file.of("final_layer.linear.weight")[0] > side * side * channels,
    }


def dit_config_from_original(config: Mapping[str, Any]) -> DiTConfig:
    """Our config from theirs; keys that are missing have their class's defaults, those of DiT-XL/2.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`DiT`.

    Example:
        >>> from tubelet.models import dit_xl
        >>> dit_config_from_original({"input_size": 64}) == dit_xl()
        True
    """
    c = checked_config(config, _DEFAULTS, {}, "DiT")
    if not c["class_dropout_prob"] > 0:
        raise ValueError(f"class_dropout_prob={c['class_dropout_prob']}, but DiT has a null class")
    return DiTConfig(
        dim=c["hidden_size"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_dim=int(c["hidden_size"] * c["mlp_ratio"]),
        latent_channels=c["in_channels"],
        variance_channels=c["in_channels"] if c["learn_sigma"] else 0,
        classes=c["num_classes"],
        patch=(1, c["patch_size"], c["patch_size"]),
        **_OURS,
    )


def dit_config_to_original(config: DiTConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a value that their class does not have.

    Example:
        >>> from tubelet.models import dit_xl
        >>> dit_config_to_original(dit_xl())["num_heads"]
        16
    """
    check_own(config, _OURS, "their DiT")
    if config.variance_channels not in (0, config.latent_channels):
        found = f"variance_channels={config.variance_channels}"
        raise ValueError(f"{found}, but their DiT has none or latent_channels={config.latent_channels}")
    return {
        "input_size": _DEFAULTS["input_size"],
        "patch_size": square_patch(config.patch),
        "in_channels": config.latent_channels,
        "hidden_size": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_dim / config.dim,
        "class_dropout_prob": _DEFAULTS["class_dropout_prob"],
        "num_classes": config.classes,
        "learn_sigma": config.variance_channels > 0,
    }


def dit_original_keys(config: DiTConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Raises:
        ValueError: patches of several frames, not square, or that do not divide 32 cells; while reading, a table of
            other positions.

    Example:
        >>> from tubelet.models import DiT, DiTConfig
        >>> model = DiT(DiTConfig(dim=16, depth=1, heads=2, mlp_dim=32))
        >>> file = dit_original_keys(model.config).to_theirs(model.state_dict())
        >>> file["pos_embed"].shape, file["blocks.0.attn.qkv.weight"].shape
        (torch.Size([1, 256, 16]), torch.Size([48, 16]))
        >>> _ = model.load_state_dict(dit_original_keys(model.config).to_ours(file))
    """
    side = square_patch(config.patch)
    return KeyMap(
        (
            *embed_keys("x_embedder.proj", side),
            square_table("pos_embed", config.dim, _DEFAULTS["input_size"], side),
            *renamed("time.up", "t_embedder.mlp.0"),
            *renamed("time.down", "t_embedder.mlp.2"),
            *renamed("label.table", "y_embedder.embedding_table", ["weight"]),
            *modulated_block_keys("blocks.*", "blocks.*"),
            *renamed("final_norm.modulation.proj", "final_layer.adaLN_modulation.1"),
            *project_keys("final_layer.linear", side, [config.latent_channels, config.variance_channels]),
        )
    )


def modulated_block_keys(ours: str, theirs: str) -> Sequence[Entry]:
    """One block of DiT's: attention and MLP under one modulation.

    Example:
        >>> modulated_block_keys("blocks.*", "blocks.*")[2].theirs
        ('blocks.*.attn.qkv.weight',)
    """
    attention, mlp = f"{ours}.branches.0.inner", f"{ours}.branches.1.inner"
    return (
        *renamed(f"{ours}.modulation.proj", f"{theirs}.adaLN_modulation.1"),
        *fused([f"{attention}.{name}_proj" for name in "qkv"], f"{theirs}.attn.qkv"),
        *renamed(f"{attention}.out_proj", f"{theirs}.attn.proj"),
        *renamed(f"{mlp}.up", f"{theirs}.mlp.fc1"),
        *renamed(f"{mlp}.down", f"{theirs}.mlp.fc2"),
    )


def square_table(theirs: str, dim: int, size: int, patch: int) -> Entry:
    """The sinusoids of a square grid: of any side when read, of ``size`` cells in patches when written.

    Raises:
        ValueError: ``patch`` does not divide ``size``; while reading, as :func:`fixed_table`.

    Example:
        >>> square_table("pos_embed", 8, 32, 2).to_theirs()[0].shape
        torch.Size([1, 256, 8])
    """
    if size % patch:
        raise ValueError(f"patches of {patch} cells do not divide the {size} cells that {theirs} is written for")

    def table(places: int) -> Tensor:
        return sincos_2d(torch.cartesian_prod(*[torch.arange(math.isqrt(places))] * 2), dim)

    return fixed_table(theirs, table, (size // patch) ** 2)


def fixed_table(theirs: str, table: Callable[[int], Tensor], places: int) -> Entry:
    """A table that follows from its length alone: written for that many places, compared when it is read.

    Args:
        theirs: its name.
        table: what a number of places has, ``(n, d)``; fewer rows where there is no table of that length.
        places: how many are written.

    Raises:
        ValueError: while reading, a table of another shape or of other numbers.

    Example:
        >>> fixed_table("places", lambda n: torch.arange(n)[:, None], 2).to_theirs()[0].tolist()
        [[[0], [1]]]
    """

    def to_ours(found: Tensor) -> list[Tensor]:
        expected = table(found.shape[1])[None] if found.ndim == 3 else found.new_zeros(0)
        if found.shape != expected.shape:
            raise ValueError(
                f"{theirs} has shape {tuple(found.shape)}, but there are sinusoids {tuple(expected.shape)}"
            )
        close = 1e-6 if found.dtype in (torch.float32, torch.float64) else 1e-2
        if not found.is_meta and not torch.allclose(found.float().cpu(), expected, atol=close):
            raise ValueError(f"{theirs} holds other numbers than the sinusoids of {found.shape[1]} places")
        return []

    return Entry((), (theirs,), to_ours, lambda: [table(places)[None]])


DIT_ORIGINAL = Family(
    DiT,
    "DiT",
    dit_original_keys,
    dit_config_from_original,
    dit_config_to_original,
    form="original",
    complete=dit_original_config,
)
"""The adapter between :class:`tubelet.models.DiT` and its authors' class. Example: ``DIT_ORIGINAL.keys(config)``."""
