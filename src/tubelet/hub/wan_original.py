"""Wan's checkpoints as their authors publish them, ``WanModel`` of Wan 2.1 and 2.2, both ways.

The names differ from diffusers', the tensors do not. Their config says neither the patch nor the width of the text, and
``model_type="i2v"`` is a model with CLIP's tokens in Wan 2.1 and one without in Wan 2.2: the tensors' shapes tell. A
single file without a config is read by its shapes alone; its heads are then 128 wide, as in every published model.

Source: https://github.com/Wan-Video/Wan2.1 and https://github.com/Wan-Video/Wan2.2, ``wan/modules/model.py``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.hub.wan import WAN, patches, table
from tubelet.models.wan import WanConfig, WanTransformer

__all__ = [
    "WAN_ORIGINAL",
    "wan_config_from_original",
    "wan_config_to_original",
    "wan_original_config",
    "wan_original_keys",
]

_FIXED: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "text_dim": 4096,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
}
"""What ``WanModel`` never writes to its config: its defaults."""

_DEFAULTS: dict[str, Any] = {
    **_FIXED,
    "model_type": "t2v",
    "text_len": 512,
    "in_dim": 16,
    "dim": 2048,
    "ffn_dim": 8192,
    "freq_dim": 256,
    "out_dim": 16,
    "num_heads": 16,
    "num_layers": 32,
    "eps": 1e-6,
    "image_dim": None,
    "image_tokens": None,
}

_IMAGE_DIM, _IMAGE_TOKENS, _HEAD_DIM = 1280, 514, 128


def wan_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors; ``image_dim`` and ``image_tokens`` are ours.

    Args:
        config: what their ``config.json`` says; empty for a file that has none.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`wan_config_from_original` reads.

    Raises:
        ValueError: tensors that every Wan has are missing, or a width that makes no heads of 128 where none are given.

    Example:
        >>> wan_original_config({}, {"patch_embedding.weight": (128, 16, 1, 2, 2)})
        Traceback (most recent call last):
        ValueError: the tensors are not WanModel's: there is no time_embedding.0.weight of rank 2
    """
    file = FileShapes("WanModel", shapes)
    dim, channels, *patch = file.of("patch_embedding.weight", 5)
    if "num_heads" not in config and dim % _HEAD_DIM:
        raise ValueError(f"without a config heads are {_HEAD_DIM} wide, which does not divide the width {dim}")
    read = {
        "dim": dim,
        "in_dim": channels,
        "patch_size": tuple(patch),
        "freq_dim": file.of("time_embedding.0.weight")[1],
        "text_dim": file.of("text_embedding.0.weight")[1],
        "ffn_dim": file.of("blocks.0.ffn.0.weight")[0],
        "out_dim": file.of("head.head.weight")[0] // math.prod(patch),
        "num_heads": dim // _HEAD_DIM,
        "num_layers": file.count("blocks"),
        "cross_attn_norm": file.has("blocks.0.norm3.weight"),
        "image_dim": shapes.get("img_emb.proj.0.weight", (None,))[0],
        "image_tokens": shapes.get("img_emb.emb_pos", (1, None))[1],
    }
    kind = "t2v" if read["image_dim"] is None else "i2v" if read["image_tokens"] is None else "flf2v"
    return {"model_type": kind, **read, **config}


def wan_config_from_original(config: Mapping[str, Any]) -> WanConfig:
    """Our config from theirs; keys that are missing have their defaults, and an image is there where ``image_dim`` is.

    Their ``text_len`` is how many tokens every prompt is padded to before the model, which ours leaves to its caller
    (:func:`tubelet.models.wan.pad_prompts`).

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`WanTransformer`.

    Example:
        >>> wan_config_from_original({"dim": 1536, "num_heads": 12, "num_layers": 30, "ffn_dim": 8960}).depth
        30
    """
    c = checked_config(config, _DEFAULTS, {}, "WanModel")
    for name in ("qk_norm", "window_size"):
        if (value := _plain(c[name])) != _FIXED[name]:
            raise ValueError(f"{name}={value!r}, but Wan's is {_FIXED[name]!r}")
    _check_kind(c)
    if c["in_dim"] < c["out_dim"]:
        raise ValueError(f"in_dim={c['in_dim']} are fewer than out_dim={c['out_dim']}")
    return WanConfig(
        dim=c["dim"],
        depth=c["num_layers"],
        heads=c["num_heads"],
        mlp_dim=c["ffn_dim"],
        latent_channels=c["out_dim"],
        given_channels=c["in_dim"] - c["out_dim"],
        text_dim=c["text_dim"],
        image_dim=c["image_dim"],
        image_tokens=c["image_tokens"],
        patch=tuple(c["patch_size"]),
        frequencies=c["freq_dim"],
        cross_norm=c["cross_attn_norm"],
        eps=c["eps"],
    )


def wan_config_to_original(config: WanConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a value that ``WanModel`` does not read from a config and has otherwise: another patch than
            ``(1, 2, 2)``, text that is not 4096 wide, no norm before cross-attention, an image that is not 1280 wide,
            positions other than 514, ``time_scale`` other than 1000.

    Example:
        >>> from tubelet.models import wan_2_2_i2v_14b
        >>> wan_config_to_original(wan_2_2_i2v_14b())["model_type"]
        'i2v'
    """
    fixed = {
        "patch": (config.patch, {_FIXED["patch_size"]}),
        "text_dim": (config.text_dim, {_FIXED["text_dim"]}),
        "cross_norm": (config.cross_norm, {True}),
        "image_dim": (config.image_dim, {None, _IMAGE_DIM}),
        "image_tokens": (config.image_tokens, {None, _IMAGE_TOKENS}),
        "time_scale": (config.time_scale, {1000.0}),
    }
    for name, (value, known) in fixed.items():
        if value not in known:
            raise ValueError(f"{name}={value}, but WanModel has {' or '.join(map(str, known))} and reads no other")
    given = config.given_channels > 0
    return {
        "model_type": "flf2v" if config.image_tokens else "i2v" if config.image_dim or given else "t2v",
        "text_len": _DEFAULTS["text_len"],
        "in_dim": config.latent_channels + config.given_channels,
        "dim": config.dim,
        "ffn_dim": config.mlp_dim,
        "freq_dim": config.frequencies,
        "out_dim": config.latent_channels,
        "num_heads": config.heads,
        "num_layers": config.depth,
        "eps": config.eps,
    }


def wan_original_keys(config: WanConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import wan_1_3b
        >>> groups, unknown = wan_original_keys(wan_1_3b()).groups(["blocks.3.modulation.table"], "ours")
        >>> groups[0].theirs, unknown
        (('blocks.3.modulation',), [])
    """
    return KeyMap(
        (
            Entry(("embed.weight",), ("patch_embedding.weight",), *patches(config)),
            *renamed("embed", "patch_embedding", ["bias"]),
            *renamed("time.up", "time_embedding.0"),
            *renamed("time.down", "time_embedding.2"),
            *renamed("modulation", "time_projection.1"),
            *renamed("text.up", "text_embedding.0"),
            *renamed("text.down", "text_embedding.2"),
            *renamed("image.before", "img_emb.proj.0"),
            *renamed("image.mlp.up", "img_emb.proj.1"),
            *renamed("image.mlp.down", "img_emb.proj.3"),
            *renamed("image.after", "img_emb.proj.4"),
            table("image.positions", "img_emb.emb_pos"),
            table("blocks.*.modulation.table", "blocks.*.modulation"),
            *_attention("blocks.*.branches.0.inner", "blocks.*.self_attn"),
            *_attention("blocks.*.branches.1.inner", "blocks.*.cross_attn"),
            *renamed("blocks.*.branches.1.inner.image_k_proj", "blocks.*.cross_attn.k_img"),
            *renamed("blocks.*.branches.1.inner.image_v_proj", "blocks.*.cross_attn.v_img"),
            *renamed("blocks.*.branches.1.inner.image_k_norm", "blocks.*.cross_attn.norm_k_img", ["weight"]),
            *renamed("blocks.*.branches.1.norm", "blocks.*.norm3"),
            *renamed("blocks.*.branches.2.inner.up", "blocks.*.ffn.0"),
            *renamed("blocks.*.branches.2.inner.down", "blocks.*.ffn.2"),
            table("final_modulation.table", "head.modulation"),
            *renamed("project", "head.head"),
        )
    )


def _attention(ours: str, theirs: str) -> Sequence[Entry]:
    """Four projections and two norms."""
    return (
        *(entry for name in "qkv" for entry in renamed(f"{ours}.{name}_proj", f"{theirs}.{name}")),
        *renamed(f"{ours}.out_proj", f"{theirs}.o"),
        *renamed(f"{ours}.q_norm", f"{theirs}.norm_q", ["weight"]),
        *renamed(f"{ours}.k_norm", f"{theirs}.norm_k", ["weight"]),
    )


def _check_kind(c: Mapping[str, Any]) -> None:
    """That ``model_type`` is one of Wan 2.1's and 2.2's, and goes with the image that is there."""
    kinds = {"t2v": {(False, False)}, "ti2v": {(False, False)}, "i2v": {(False, False), (True, False)}}
    kinds["flf2v"] = {(True, True)}
    image = (c["image_dim"] is not None, c["image_tokens"] is not None)
    if image not in kinds.get(c["model_type"], ()):
        found = f"image_dim={c['image_dim']} and image_tokens={c['image_tokens']}"
        raise ValueError(f"model_type={c['model_type']!r} with {found} is no Wan 2.1 or 2.2")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


WAN_ORIGINAL = Family(
    WanTransformer,
    "WanModel",
    wan_original_keys,
    wan_config_from_original,
    wan_config_to_original,
    wide=WAN.wide,
    form="original",
    complete=wan_original_config,
    prefixes=("model.diffusion_model.",),
)
"""The adapter between :class:`tubelet.models.WanTransformer` and its authors' class. Example: ``WAN_ORIGINAL.peer``."""
