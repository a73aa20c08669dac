"""ViViT's checkpoints in the form of transformers' ``VivitForVideoClassification``, both ways.

Google's weights of model 1 are published so, such as ``google/vivit-b-16x2-kinetics400``. What differs beyond names:
their embedding of tubelets is a convolution, and their class token's place stands in one table with the tubelets'.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap
from tubelet.hub.vit import (
    classes_of,
    gelu_of,
    label_names,
    sides_of,
    transformers_vit_keys,
    whole_sides,
    with_labels,
)
from tubelet.models.vivit import ViViT, ViViTConfig
from tubelet.patchify import conv3d_weight_to_linear, linear_weight_to_conv3d

__all__ = ["VIVIT", "vivit_config_from_transformers", "vivit_config_to_transformers", "vivit_keys"]

_PEER = "VivitForVideoClassification"
_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "num_frames": 32,
    "tubelet_size": (2, 16, 16),
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_fast",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}


def vivit_config_from_transformers(config: Mapping[str, Any]) -> ViViTConfig:
    """Our config from theirs; keys that are missing have transformers' defaults, others of theirs change no number.

    Raises:
        ValueError: sizes that are no positive whole numbers, or no whole number of tubelets, or an activation that
            :class:`ViViT` does not have.

    Example:
        >>> vivit_config_from_transformers({"num_labels": 400}).grid
        (16, 14, 14)
    """
    c = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    pt, ph, pw = patch = whole_sides("tubelet_size", c["tubelet_size"], 3)
    video = (*whole_sides("num_frames", [c["num_frames"]], 1), *sides_of("image_size", c["image_size"]))
    if any(side % part for side, part in zip(video, patch, strict=True)):
        raise ValueError(f"num_frames={video[0]}, image_size={video[1:]} are no multiples of tubelet_size={patch}")
    t, h, w = (side // part for side, part in zip(video, patch, strict=True))
    return ViViTConfig(
        dim=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        grid=(t, h, w),
        classes=classes_of(config),
        latent_channels=c["num_channels"],
        patch=(pt, ph, pw),
        qkv_bias=c["qkv_bias"],
        gelu=gelu_of(c["hidden_act"]),
        eps=c["layer_norm_eps"],
    )


def vivit_config_to_transformers(config: ViViTConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: another variant than ``"joint"``, or no classes.

    Example:
        >>> from tubelet.models import vivit_b
        >>> vivit_config_to_transformers(vivit_b())["tubelet_size"]
        [2, 16, 16]
    """
    if config.variant != "joint" or config.classes is None:
        raise ValueError(
            f"variant={config.variant!r} with classes={config.classes}, but {_PEER} is joint, with classes"
        )
    frames, height, width = (side * part for side, part in zip(config.grid, config.patch, strict=True))
    return {
        "architectures": [_PEER],
        "model_type": "vivit",
        "image_size": height if height == width else [height, width],
        "num_frames": frames,
        "tubelet_size": list(config.patch),
        "num_channels": config.latent_channels,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu_fast" if config.gelu == "tanh" else "gelu",
        "layer_norm_eps": config.eps,
        "qkv_bias": config.qkv_bias,
        **label_names(config.classes),
    }


def vivit_keys(config: ViViTConfig) -> KeyMap:
    """Which of our tensors are which of theirs, in the names of their files.

    Example:
        >>> from tubelet.models import vivit_b
        >>> vivit_keys(vivit_b()).groups(["encoder.trunk.norm.bias"], "ours")[0][0].theirs
        ('vivit.layernorm.bias',)
    """
    theirs = "vivit.embeddings.patch_embeddings.projection.weight"

    def to_theirs(weight: Tensor) -> list[Tensor]:
        return [linear_weight_to_conv3d(weight, config.patch)]

    kernel = Entry(("embed.proj.weight",), (theirs,), lambda kernel: [conv3d_weight_to_linear(kernel)], to_theirs)
    return transformers_vit_keys(config, "vivit.", kernel)


VIVIT = Family(
    ViViT,
    _PEER,
    vivit_keys,
    vivit_config_from_transformers,
    vivit_config_to_transformers,
    form="original",
    complete=with_labels,
    stem="model",
)
"""The adapter between :class:`tubelet.models.ViViT` and transformers' class. Example: ``VIVIT.peer``."""
