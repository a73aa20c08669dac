"""LTX-Video's checkpoints, both ways: diffusers' ``LTXVideoTransformer3DModel``, and Lightricks' own files.

Only names differ. Lightricks' files have four others than diffusers' and hold the autoencoder, too; their config is in
a file's metadata, which is not read: the shapes say all but the heads, of which every published model has 32. Whether
the first latent frame counts as one frame is told to :func:`tubelet.models.ltx_places`.

Source: https://github.com/Lightricks/LTX-Video, ``ltx_video/models/transformers/transformer3d.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.shapes import FileShapes
from tubelet.hub.theirs import checked_config
from tubelet.models.ltx import LTXConfig, LTXTransformer

__all__ = [
    "LTX",
    "LTX_ORIGINAL",
    "ltx_config_from_diffusers",
    "ltx_config_from_original",
    "ltx_config_to_diffusers",
    "ltx_config_to_original",
    "ltx_keys",
    "ltx_original_config",
    "ltx_original_keys",
]

_DEFAULTS: dict[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "attention_bias": True,
    "attention_out_bias": True,
}

_FIXED = (
    "patch_size",
    "patch_size_t",
    "activation_fn",
    "qk_norm",
    "norm_elementwise_affine",
    "attention_bias",
    "attention_out_bias",
)
"""What all LTX-Videos have in common."""

_ORIGINAL_FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "adaptive_norm": "single_scale_shift",
    "attention_bias": True,
    "attention_type": "default",
    "double_self_attention": False,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "positional_embedding_theta": 10000.0,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "timestep_scale_multiplier": 1000,
    "upcast_attention": False,
    "use_linear_projection": False,
}
_ORIGINAL_DEFAULTS: dict[str, Any] = {
    **_ORIGINAL_FIXED,
    "attention_head_dim": 64,
    "caption_channels": 4096,
    "causal_temporal_positioning": False,
    "cross_attention_dim": 2048,
    "in_channels": 128,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "num_attention_heads": 32,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": 128,
    "project_to_2d_pos": True,
}
"""The published 2B model's."""


def ltx_config_from_diffusers(config: Mapping[str, Any]) -> LTXConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`LTXTransformer`.

    Example:
        >>> ltx_config_from_diffusers({"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}).dim
        4096
    """
    c = checked_config(config, _DEFAULTS, {}, "LTXVideoTransformer3DModel")
    for key in _FIXED:
        if c[key] != _DEFAULTS[key]:
            raise ValueError(f"{key}={c[key]!r}, but LTX-Video's is {_DEFAULTS[key]!r}")
    return _config(c)


def _config(c: Mapping[str, Any]) -> LTXConfig:
    """What both configs say under the same names."""
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    if c["cross_attention_dim"] != dim:
        raise ValueError(f"cross_attention_dim={c['cross_attention_dim']}, but the projected text is {dim} wide")
    if c["out_channels"] not in (None, c["in_channels"]):
        raise ValueError(f"out_channels={c['out_channels']} are not in_channels={c['in_channels']}")
    return LTXConfig(
        dim=dim,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        latent_channels=c["in_channels"],
        text_dim=c["caption_channels"],
        eps=c["norm_eps"],
    )


def ltx_config_to_diffusers(config: LTXConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: ``time_scale`` is not 1000; their class is fed the scaled time.

    Example:
        >>> from tubelet.models import ltx_13b
        >>> ltx_config_to_diffusers(ltx_13b())["attention_head_dim"]
        128
    """
    return {**_DEFAULTS, **_sizes(config)}


def _sizes(config: LTXConfig) -> dict[str, Any]:
    """Ours under their names."""
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but LTX-Video is fed times of 0 to 1000")
    return {
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "cross_attention_dim": config.dim,
        "num_layers": config.depth,
        "norm_eps": config.eps,
        "caption_channels": config.text_dim,
    }


def ltx_original_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What a config of theirs leaves open, from the shapes of the tensors.

    Args:
        config: what is known, such as the ``"transformer"`` of the config in a file's metadata; empty for a file alone.
        shapes: of every tensor, by their names.

    Returns:
        A config that :func:`ltx_config_from_original` reads.

    Raises:
        ValueError: tensors that every LTX-Video has are missing, or a width that does not make 32 heads where their
            number is not given.

    Example:
        >>> ltx_original_config({}, {"proj_in.weight": (2048, 128)})
        Traceback (most recent call last):
        ValueError: the tensors are not Transformer3DModel's: there is no patchify_proj.weight of rank 2
    """
    file = FileShapes("Transformer3DModel", shapes)
    dim, channels = file.of("patchify_proj.weight")
    heads = config.get("num_attention_heads", _ORIGINAL_DEFAULTS["num_attention_heads"])
    if dim % heads:
        raise ValueError(f"num_attention_heads={heads} do not divide the width {dim}")
    return {
        "attention_head_dim": dim // heads,
        "caption_channels": file.of("caption_projection.linear_1.weight")[1],
        "cross_attention_dim": dim,
        "in_channels": channels,
        "num_attention_heads": heads,
        "num_layers": file.count("transformer_blocks"),
        "out_channels": file.of("proj_out.weight")[0],
        **config,
    }


def ltx_config_from_original(config: Mapping[str, Any]) -> LTXConfig:
    """Our config from Lightricks'; keys that are missing are those of the published 2B model.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`LTXTransformer`.

    Example:
        >>> ltx_config_from_original({"num_layers": 3, "causal_temporal_positioning": True}).depth
        3
    """
    return _config(checked_config(config, _ORIGINAL_DEFAULTS, _ORIGINAL_FIXED, "Transformer3DModel"))


def ltx_config_to_original(config: LTXConfig) -> dict[str, Any]:
    """Lightricks' config from ours, as JSON values; ``causal_temporal_positioning`` is left to its reader.

    Raises:
        ValueError: ``time_scale`` is not 1000.

    Example:
        >>> from tubelet.models import ltx_2b
        >>> ltx_config_to_original(ltx_2b())["timestep_scale_multiplier"]
        1000
    """
    known = {key: value for key, value in _ORIGINAL_DEFAULTS.items() if key != "causal_temporal_positioning"}
    return {**known, **_sizes(config)}


def ltx_keys(config: LTXConfig) -> KeyMap:
    """Which of our tensors are which of diffusers'.

    Example:
        >>> from tubelet.models import ltx_2b
        >>> groups, unknown = ltx_keys(ltx_2b()).groups(["blocks.3.branches.1.inner.q_norm.weight"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.attn2.norm_q.weight',), [])
    """
    return _keys("proj_in", "time_embed", "norm_{}")


def ltx_original_keys(config: LTXConfig) -> KeyMap:
    """Which of our tensors are which of Lightricks' ``Transformer3DModel``.

    Example:
        >>> from tubelet.models import ltx_2b
        >>> groups, unknown = ltx_original_keys(ltx_2b()).groups(["blocks.3.branches.1.inner.q_norm.weight"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.attn2.q_norm.weight',), [])
    """
    return _keys("patchify_proj", "adaln_single", "{}_norm")


def _keys(embed: str, time: str, norm: str) -> KeyMap:
    """All entries, with the names in which diffusers' files and Lightricks' differ."""
    block = "transformer_blocks.*"
    return KeyMap(
        (
            *renamed("embed", embed),
            *renamed("time.up", f"{time}.emb.timestep_embedder.linear_1"),
            *renamed("time.down", f"{time}.emb.timestep_embedder.linear_2"),
            *renamed("modulation", f"{time}.linear"),
            *renamed("text.up", "caption_projection.linear_1"),
            *renamed("text.down", "caption_projection.linear_2"),
            Entry(("blocks.*.modulation.table",), (f"{block}.scale_shift_table",)),
            *_attention("blocks.*.branches.0.inner", f"{block}.attn1", norm),
            *_attention("blocks.*.branches.1.inner", f"{block}.attn2", norm),
            *renamed("blocks.*.branches.2.inner.up", f"{block}.ff.net.0.proj"),
            *renamed("blocks.*.branches.2.inner.down", f"{block}.ff.net.2"),
            Entry(("final_modulation.table",), ("scale_shift_table",)),
            *renamed("project", "proj_out"),
        )
    )


def _attention(ours: str, theirs: str, norm: str) -> Sequence[Entry]:
    """Four projections and two norms."""
    return (
        *(entry for name in "qkv" for entry in renamed(f"{ours}.{name}_proj", f"{theirs}.to_{name}")),
        *renamed(f"{ours}.out_proj", f"{theirs}.to_out.0"),
        *(entry for x in "qk" for entry in renamed(f"{ours}.{x}_norm", f"{theirs}.{norm.format(x)}", ["weight"])),
    )


LTX = Family(
    LTXTransformer,
    "LTXVideoTransformer3DModel",
    ltx_keys,
    ltx_config_from_diffusers,
    ltx_config_to_diffusers,
)
"""The adapter between :class:`tubelet.models.LTXTransformer` and diffusers' class. Example: ``LTX.keys(config)``."""

LTX_ORIGINAL = Family(
    LTXTransformer,
    "Transformer3DModel",
    ltx_original_keys,
    ltx_config_from_original,
    ltx_config_to_original,
    wide=LTX.wide,
    form="original",
    complete=ltx_original_config,
    prefixes=("model.diffusion_model.",),
    others=("vae.",),
)
"""The adapter between :class:`tubelet.models.LTXTransformer` and Lightricks' files. Example: ``LTX_ORIGINAL.peer``."""
