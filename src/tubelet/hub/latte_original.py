"""Checkpoints of Latte with classes or without condition as its authors publish them, such as ``ffs.pt``, both ways.

Beyond DiT's (:mod:`tubelet.hub.dit_original`), whose blocks they have over space and over time in turn, they hold a
table for the places in time, too. A table of any length is read, that of 16 frames is written, their class's default.
Only the first of the paper's variants was published. Of files that hold a training state, too, hand on ``"ema"``.

Source: https://github.com/Vchitect/Latte, ``models/latte.py``.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tubelet.hub.dit_original import fixed_table, modulated_block_keys, sizes_of, square_table
from tubelet.hub.keys import Family, KeyMap, renamed
from tubelet.hub.pixart import embed_keys, project_keys, square_patch
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.latte_class import LatteClassConfig, LatteClassTransformer
from tubelet.positions import sincos_1d

__all__ = [
    "LATTE_CLASS_ORIGINAL",
    "latte_class_config_from_original",
    "latte_class_config_to_original",
    "latte_class_original_config",
    "latte_class_original_keys",
]

_PLAIN, _CLASSES = 1, 2
"""What ``extras`` says: no condition, classes."""

_DEFAULTS: dict[str, Any] = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "num_frames": 16,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
    "extras": _PLAIN,
    "attention_mode": "math",
}
_OURS: dict[str, Any] = {
    "variant": "interleaved",
    "temporal_from": 2,
    "frequencies": 256,
    "time_scale": 1000.0,
    "time_shift": -1.0,
}
"""What has one value in their class."""


def latte_class_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known; empty for a file alone. For a width that no published model has, ``num_heads``.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`latte_class_config_from_original` reads.

    Raises:
        ValueError: tensors that every Latte has are missing, or nothing says how many heads there are.

    Example:
        >>> latte_class_original_config({}, {"x_embedder.weight": (1152, 16)})
        Traceback (most recent call last):
        ValueError: the tensors are not Latte's: there is no temp_embed of rank 3
    """
    file, table = FileShapes("Latte", shapes), "y_embedder.embedding_table.weight"
    told = {"num_frames": file.of("temp_embed", 3)[1], "extras": _PLAIN}
    if file.has(table):
        told |= {"extras": _CLASSES, "num_classes": file.of(table)[0] - 1}
    return {**sizes_of(file, config), **told, **config}


def latte_class_config_from_original(config: Mapping[str, Any]) -> LatteClassConfig:
    """Our config from theirs; keys that are missing have their class's defaults, those of Latte-XL/2.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`LatteClassTransformer`.

    Example:
        >>> latte_class_config_from_original({"extras": 2, "num_classes": 101}).classes
        101
    """
    c = checked_config(config, _DEFAULTS, {"mlp_ratio": 4.0}, "Latte")
    if c["extras"] not in (_PLAIN, _CLASSES):
        raise ValueError(f"extras={c['extras']}, but this model has none ({_PLAIN}) or classes ({_CLASSES})")
    if not c["class_dropout_prob"] > 0:
        raise ValueError(f"class_dropout_prob={c['class_dropout_prob']}, but this model has a null class")
    return LatteClassConfig(
        dim=c["hidden_size"],
        depth=c["depth"],
        heads=c["num_heads"],
        classes=c["num_classes"] if c["extras"] == _CLASSES else None,
        latent_channels=c["in_channels"],
        variance_channels=c["in_channels"] if c["learn_sigma"] else 0,
        patch=(1, c["patch_size"], c["patch_size"]),
        sample_size=c["input_size"],
        **_OURS,
    )


def latte_class_config_to_original(config: LatteClassConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a value that their class does not have.

    Example:
        >>> from tubelet.models import latte_xl
        >>> latte_class_config_to_original(latte_xl(classes=101))["extras"]
        2
    """
    check_own(config, _OURS, "their Latte")
    if config.variance_channels not in (0, config.latent_channels):
        found = f"variance_channels={config.variance_channels}"
        raise ValueError(f"{found}, but their Latte has none or latent_channels={config.latent_channels}")
    classes = {} if config.classes is None else {"extras": _CLASSES, "num_classes": config.classes}
    return {
        **_DEFAULTS,
        "input_size": config.sample_size,
        "patch_size": square_patch(config.patch),
        "in_channels": config.latent_channels,
        "hidden_size": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "learn_sigma": config.variance_channels > 0,
        **classes,
    }


def latte_class_original_keys(config: LatteClassConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Raises:
        ValueError: patches of several frames, not square, or that do not divide ``sample_size``; while reading, tables
            of other positions.

    Example:
        >>> from tubelet.models import latte_s
        >>> groups, unknown = latte_class_original_keys(latte_s()).groups(["blocks.3.mlp.fc1.bias"], "theirs")
        >>> groups[0].ours, unknown
        (('blocks.3.inner.branches.1.inner.up.bias',), [])
    """
    side = square_patch(config.patch)
    return KeyMap(
        (
            *embed_keys("x_embedder.proj", side),
            square_table("pos_embed", config.dim, config.sample_size, side),
            fixed_table("temp_embed", lambda n: sincos_1d(torch.arange(n), config.dim), _DEFAULTS["num_frames"]),
            *renamed("time.up", "t_embedder.mlp.0"),
            *renamed("time.down", "t_embedder.mlp.2"),
            *renamed("label.table", "y_embedder.embedding_table", ["weight"]),
            *(
                entry
                for i in range(config.depth)
                for entry in modulated_block_keys(f"blocks.{i}{'.inner' if i % 2 else ''}", f"blocks.{i}")
            ),
            *renamed("final_modulation.proj", "final_layer.adaLN_modulation.1"),
            *project_keys("final_layer.linear", side, [config.latent_channels, config.variance_channels]),
        )
    )


LATTE_CLASS_ORIGINAL = Family(
    LatteClassTransformer,
    "Latte",
    latte_class_original_keys,
    latte_class_config_from_original,
    latte_class_config_to_original,
    form="original",
    complete=latte_class_original_config,
)
"""The adapter between :class:`tubelet.models.LatteClassTransformer` and its authors' class.

Example: ``LATTE_CLASS_ORIGINAL.peer``.
"""
