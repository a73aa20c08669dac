"""Image transformers (ViT) in the form of transformers, as the image models that video models start from.

Each becomes a :class:`tubelet.models.ViViT` of single frames, which :func:`tubelet.models.vivit_from_image_` takes.
What differs beyond names: the embedding is a convolution, and the class token's place stands in one table with the
patches'. A file of ``ViTModel`` has no classifier, but a pooler that nothing here reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.models.vivit import ViViT, ViViTConfig
from tubelet.patchify import conv3d_weight_to_linear, linear_weight_to_conv3d

__all__ = ["VIT", "VIT_MODEL", "vit_config_from_transformers", "vit_config_to_transformers", "vit_keys"]

_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
_GELU: dict[str, Literal["none", "tanh"]] = {
    "gelu": "none", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh",
}  # fmt: skip


def vit_config_from_transformers(config: Mapping[str, Any]) -> ViViTConfig:
    """Our config from transformers'; keys that are missing have its defaults, others of theirs change no number.

    Raises:
        ValueError: sides that are no positive whole numbers, or no whole number of patches, or an activation that
            :class:`ViViT` does not have.

    Example:
        >>> vit_config_from_transformers({"num_labels": 1000}).grid
        (1, 14, 14)
    """
    c = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    return ViViTConfig(
        dim=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        grid=image_grid(sides_of("image_size", c["image_size"]), sides_of("patch_size", c["patch_size"])),
        classes=classes_of(config),
        latent_channels=c["num_channels"],
        patch=(1, *sides_of("patch_size", c["patch_size"])),
        qkv_bias=c["qkv_bias"],
        gelu=gelu_of(c["hidden_act"]),
        eps=c["layer_norm_eps"],
    )


def vit_config_to_transformers(config: ViViTConfig) -> dict[str, Any]:
    """Transformers' config from ours, as JSON values.

    Raises:
        ValueError: a config that is not of an image model.

    Example:
        >>> vit_config_to_transformers(vit_config_from_transformers({}))["patch_size"]
        16
    """
    (height, width), (h, w) = image_sides(config)
    return {
        "architectures": ["ViTModel" if config.classes is None else "ViTForImageClassification"],
        "model_type": "vit",
        "image_size": height if height == width else [height, width],
        "patch_size": h if h == w else [h, w],
        "num_channels": config.latent_channels,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu_fast" if config.gelu == "tanh" else "gelu",
        "layer_norm_eps": config.eps,
        "qkv_bias": config.qkv_bias,
        **({} if config.classes is None else label_names(config.classes)),
    }


def vit_keys(config: ViViTConfig) -> KeyMap:
    """Which of our tensors are which of transformers', in the names of its files.

    Example:
        >>> keys = vit_keys(vit_config_from_transformers({}))
        >>> keys.groups(["encoder.token"], "ours")[0][0].theirs
        ('vit.embeddings.cls_token',)
    """
    prefix = "" if config.classes is None else "vit."
    kernel = image_kernel(config, f"{prefix}embeddings.patch_embeddings.projection")
    return transformers_vit_keys(config, prefix, kernel)


def transformers_vit_keys(config: ViViTConfig, prefix: str, kernel: Entry) -> KeyMap:
    """The names that transformers gives the tensors of its ViT and its ViViT.

    Args:
        config: ours.
        prefix: what stands before the names of the trunk.
        kernel: the entry of their embedding's kernel.

    Example:
        >>> config = vit_config_from_transformers({})
        >>> transformers_vit_keys(config, "", image_kernel(config, "embed")).ignores("pooler.dense.bias")
        True
    """
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.*"
    block = "encoder.trunk.blocks.*.branches"
    projections = zip("qkv", ("query", "key", "value"), strict=True)
    return KeyMap(
        (
            kernel,
            *ends_keys(
                config,
                token=f"{embeddings}.cls_token",
                places=f"{embeddings}.position_embeddings",
                embed=f"{embeddings}.patch_embeddings.projection",
                norm=f"{prefix}layernorm",
                head="classifier",
            ),
            *renamed(f"{block}.0.norm", f"{layer}.layernorm_before"),
            *(
                entry
                for ours, theirs in projections
                for entry in renamed(f"{block}.0.inner.{ours}_proj", f"{layer}.attention.attention.{theirs}")
            ),
            *renamed(f"{block}.0.inner.out_proj", f"{layer}.attention.output.dense"),
            *renamed(f"{block}.1.norm", f"{layer}.layernorm_after"),
            *renamed(f"{block}.1.inner.up", f"{layer}.intermediate.dense"),
            *renamed(f"{block}.1.inner.down", f"{layer}.output.dense"),
        ),
        ignored=("pooler.dense.weight", "pooler.dense.bias"),
    )


def ends_keys(config: ViViTConfig, *, token: str, places: str, embed: str, norm: str, head: str) -> Sequence[Entry]:
    """What stands before and behind the blocks, but for the kernel of the embedding.

    Args:
        config: ours.
        token, places: their tensors of the class token and of all places.
        embed, norm, head: their modules.

    Example:
        >>> config = vit_config_from_transformers({})
        >>> ends_keys(config, token="cls", places="pos", embed="embed", norm="norm", head="head")[2].theirs
        ('pos',)
    """

    def places_to_ours(table: Tensor) -> list[Tensor]:
        return [table[0, 0], table[0, 1:].reshape(*config.grid, config.dim)]

    def places_to_theirs(first: Tensor, table: Tensor) -> list[Tensor]:
        return [torch.cat([first[None], table.flatten(0, 2)])[None]]

    return (
        *renamed("embed.proj", embed, ["bias"]),
        Entry(("encoder.token",), (token,), lambda each: [each[0, 0]], lambda each: [each[None, None]]),
        Entry(("encoder.position", "encoder.trunk.positions.table"), (places,), places_to_ours, places_to_theirs),
        *renamed("encoder.trunk.norm", norm),
        *renamed("head", head),
    )


def image_kernel(config: ViViTConfig, theirs: str) -> Entry:
    """Their convolution over images, of stride its own size, is our linear layer on patches.

    Example:
        >>> image_kernel(vit_config_from_transformers({}), "proj").theirs
        ('proj.weight',)
    """

    def to_ours(kernel: Tensor) -> list[Tensor]:
        return [conv3d_weight_to_linear(kernel[:, :, None])]

    def to_theirs(weight: Tensor) -> list[Tensor]:
        return [linear_weight_to_conv3d(weight, config.patch)[:, :, 0]]

    return Entry(("embed.proj.weight",), (f"{theirs}.weight",), to_ours, to_theirs)


def with_labels(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A config of transformers' with the number of labels that the tensors have; None without a classifier.

    Example:
        >>> with_labels({}, {"classifier.weight": (400, 768)})
        {'num_labels': 400}
    """
    return {**config, "num_labels": shapes.get("classifier.weight", (None,))[0]}


def label_names(classes: int) -> dict[str, Any]:
    """Names of labels, as transformers counts them. Example: ``label_names(2)["id2label"]["1"]``."""
    names = {str(i): f"LABEL_{i}" for i in range(classes)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


def gelu_of(name: Any) -> Literal["none", "tanh"]:
    """How the activation of that name approximates GELU.

    Raises:
        ValueError: it is another activation.

    Example:
        >>> gelu_of("gelu_fast")
        'tanh'
    """
    if not isinstance(name, str) or name not in _GELU:
        raise ValueError(f"hidden_act={name!r}, but this model has one of {sorted(_GELU)}")
    return _GELU[name]


def classes_of(config: Mapping[str, Any]) -> int | None:
    """How many labels transformers gives the classifier of a config; None where the class of the config has none.

    Raises:
        ValueError: the names of labels are no mapping.

    Example:
        >>> classes_of({"id2label": {"0": "still", "1": "up", "2": "down"}}), classes_of({})
        (3, 2)
    """
    if "num_labels" in config:
        classes: int | None = config["num_labels"]
        return classes
    names = config.get("id2label")
    if names is None:
        return None if config.get("architectures") == ["ViTModel"] else 2
    if not isinstance(names, Mapping):
        raise ValueError(f"id2label must be a mapping of numbers to names, got {names!r}")
    return len(names)


def sides_of(name: str, size: Any) -> tuple[int, int]:
    """Height and width of what may be one number.

    Raises:
        ValueError: it is neither one positive whole number nor two.

    Example:
        >>> sides_of("image_size", 224)
        (224, 224)
    """
    height, width = whole_sides(name, [size, size] if type(size) is int else size, 2)
    return height, width


def whole_sides(name: str, sizes: Any, count: int) -> tuple[int, ...]:
    """So many positive whole numbers as a tuple.

    Raises:
        ValueError: ``sizes`` is something else.

    Example:
        >>> whole_sides("tubelet_size", [2, 16, 16], 3)
        (2, 16, 16)
    """
    fits = isinstance(sizes, list | tuple) and len(sizes) == count
    if not fits or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{name} must be {count} positive whole number{'s' * (count > 1)}, got {sizes!r}")
    return tuple(sizes)


def image_grid(sides: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int, int]:
    """The grid of an image's patches.

    Raises:
        ValueError: they are not whole.

    Example:
        >>> image_grid((32, 48), (16, 16))
        (1, 2, 3)
    """
    if sides[0] % patch[0] or sides[1] % patch[1]:
        raise ValueError(f"an image of {sides} is no whole number of patches of {patch}")
    return 1, sides[0] // patch[0], sides[1] // patch[1]


def image_sides(config: ViViTConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image and of a patch.

    Raises:
        ValueError: the config is not of an image model.

    Example:
        >>> image_sides(vit_config_from_transformers({}))
        ((224, 224), (16, 16))
    """
    (t, h, w), (pt, ph, pw) = config.grid, config.patch
    if t != 1 or pt != 1 or config.variant != "joint":
        raise ValueError(f"variant={config.variant!r}, grid={config.grid}, patch={config.patch} is no image model")
    return (h * ph, w * pw), (ph, pw)


VIT = Family(
    ViViT,
    "ViTForImageClassification",
    vit_keys,
    vit_config_from_transformers,
    vit_config_to_transformers,
    form="original",
    complete=with_labels,
    stem="model",
    known_as="vit",
)
"""The adapter from transformers' image classifier. Example: ``hub.load_original("google/vit-base-patch16-224")``."""

VIT_MODEL = replace(VIT, peer="ViTModel")
"""The adapter from transformers' image encoder. Example: ``VIT_MODEL.name``."""
