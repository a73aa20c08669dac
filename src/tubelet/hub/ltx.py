"""LTX-Video's checkpoints, both ways: diffusers' ``LTXVideoTransformer3DModel``, and Lightricks' own files.

Only names differ. Lightricks' files have four others than diffusers': :func:`ltx_original_keys`. Neither config says
whether the first latent frame counts as one frame; that is told to :func:`tubelet.models.ltx_places`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.models.ltx import LTXConfig, LTXTransformer

__all__ = ["LTX", "ltx_config_from_diffusers", "ltx_config_to_diffusers", "ltx_keys", "ltx_original_keys"]

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


def ltx_config_from_diffusers(config: Mapping[str, Any]) -> LTXConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`LTXTransformer`.

    Example:
        >>> ltx_config_from_diffusers({"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}).dim
        4096
    """
    unknown = sorted(key for key in config if key not in _DEFAULTS and not key.startswith("_"))
    if unknown:
        raise ValueError(f"config has keys {unknown}, which LTXVideoTransformer3DModel does not have")
    c = {**_DEFAULTS, **{key: value for key, value in config.items() if key in _DEFAULTS}}
    for key in _FIXED:
        if c[key] != _DEFAULTS[key]:
            raise ValueError(f"{key}={c[key]!r}, but LTX-Video's is {_DEFAULTS[key]!r}")
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
    if config.time_scale != 1000:
        raise ValueError(f"time_scale={config.time_scale}, but diffusers' pipelines feed times of 0 to 1000")
    return {
        **_DEFAULTS,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "cross_attention_dim": config.dim,
        "num_layers": config.depth,
        "norm_eps": config.eps,
        "caption_channels": config.text_dim,
    }


def ltx_keys(config: LTXConfig) -> KeyMap:
    """Which of our tensors are which of diffusers'.

    Example:
        >>> from tubelet.models import ltx_2b
        >>> groups, unknown = ltx_keys(ltx_2b()).groups(["blocks.3.branches.1.inner.q_norm.weight"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.attn2.norm_q.weight',), [])
    """
    return _keys("proj_in", "time_embed", "norm_{}")


def ltx_original_keys(config: LTXConfig, prefix: str = "") -> KeyMap:
    """Which of our tensors are which of Lightricks' ``Transformer3DModel``.

    Args:
        config: any; the names are those of all sizes.
        prefix: stands before every name: ``"model.diffusion_model."`` in files that hold the autoencoder too.

    Example:
        >>> from tubelet.models import ltx_2b
        >>> groups, unknown = ltx_original_keys(ltx_2b()).groups(["blocks.3.branches.1.inner.q_norm.weight"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.attn2.q_norm.weight',), [])
    """
    return _keys("patchify_proj", "adaln_single", "{}_norm", prefix)


def _keys(embed: str, time: str, norm: str, prefix: str = "") -> KeyMap:
    """All entries, with the names in which diffusers' files and Lightricks' differ."""
    text, blocks = f"{prefix}caption_projection", f"{prefix}transformer_blocks.*"
    return KeyMap(
        (
            *renamed("embed", f"{prefix}{embed}"),
            *renamed("time.up", f"{prefix}{time}.emb.timestep_embedder.linear_1"),
            *renamed("time.down", f"{prefix}{time}.emb.timestep_embedder.linear_2"),
            *renamed("modulation", f"{prefix}{time}.linear"),
            *renamed("text.up", f"{text}.linear_1"),
            *renamed("text.down", f"{text}.linear_2"),
            Entry(("blocks.*.modulation.table",), (f"{blocks}.scale_shift_table",)),
            *_attention("blocks.*.branches.0.inner", f"{blocks}.attn1", norm),
            *_attention("blocks.*.branches.1.inner", f"{blocks}.attn2", norm),
            *renamed("blocks.*.branches.2.inner.up", f"{blocks}.ff.net.0.proj"),
            *renamed("blocks.*.branches.2.inner.down", f"{blocks}.ff.net.2"),
            Entry(("final_modulation.table",), (f"{prefix}scale_shift_table",)),
            *renamed("project", f"{prefix}proj_out"),
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
