"""Mochi's checkpoints in the form of diffusers' ``MochiTransformer3DModel``, both ways.

What differs beyond names: their patch embedding is a convolution, ours a linear layer on patches; keys and values of
the pooled text are one projection, and so are the two halves of a gated MLP, the gate behind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.hub.keys import Entry, Family, KeyMap, fused, renamed
from tubelet.hub.pixart import embed_keys, square_patch
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.mochi import MochiConfig, MochiTransformer

__all__ = ["MOCHI", "mochi_config_from_diffusers", "mochi_config_to_diffusers", "mochi_keys"]

_DEFAULTS: dict[str, Any] = {
    "patch_size": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 48,
    "pooled_projection_dim": 1536,
    "in_channels": 12,
    "out_channels": None,
    "qk_norm": "rms_norm",
    "text_embed_dim": 4096,
    "time_embed_dim": 256,
    "activation_fn": "swiglu",
    "max_sequence_length": 256,
}
_FIXED = ("qk_norm", "activation_fn")
POOL_HEADS, POSITION_AREA = 8, 192.0 * 192.0  # what no class of theirs lets choose


def mochi_config_from_diffusers(config: Mapping[str, Any]) -> MochiConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`MochiTransformer`.

    Example:
        >>> mochi_config_from_diffusers({"num_layers": 2}).dim
        3072
    """
    c = checked_config(config, _DEFAULTS, {}, "MochiTransformer3DModel")
    for name in _FIXED:
        if c[name] != _DEFAULTS[name]:
            raise ValueError(f"{name}={c[name]!r}, but Mochi's is {_DEFAULTS[name]!r}")
    if c["out_channels"] not in (None, c["in_channels"]):
        raise ValueError(f"out_channels={c['out_channels']} are not the in_channels={c['in_channels']}")
    return MochiConfig(
        dim=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        text_width=c["pooled_projection_dim"],
        latent_channels=c["in_channels"],
        text_dim=c["text_embed_dim"],
        pool_heads=POOL_HEADS,
        patch=(1, c["patch_size"], c["patch_size"]),
        frequencies=c["time_embed_dim"],
        area=POSITION_AREA,
    )


def mochi_config_to_diffusers(config: MochiConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: values that their class cannot have.

    Example:
        >>> from tubelet.models import mochi_10b
        >>> mochi_config_to_diffusers(mochi_10b())["pooled_projection_dim"]
        1536
    """
    only = {"time_scale": 1000, "pool_heads": POOL_HEADS, "area": POSITION_AREA}
    check_own(config, only, "diffusers' class")
    return {
        "patch_size": square_patch(config.patch),
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "num_layers": config.depth,
        "pooled_projection_dim": config.text_width,
        "in_channels": config.latent_channels,
        "out_channels": None,
        "qk_norm": _DEFAULTS["qk_norm"],
        "text_embed_dim": config.text_dim,
        "time_embed_dim": config.frequencies,
        "activation_fn": _DEFAULTS["activation_fn"],
        "max_sequence_length": _DEFAULTS["max_sequence_length"],
    }


def mochi_keys(config: MochiConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import mochi_10b
        >>> groups, unknown = mochi_keys(mochi_10b()).groups(["rope.frequencies"], "ours")
        >>> groups[0].theirs, unknown
        (('pos_frequencies',), [])
    """
    time, pool, block = "time_embed.timestep_embedder", "time_embed.pooler", "transformer_blocks.*"
    last, theirs_last = f"blocks.{config.depth - 1}", f"transformer_blocks.{config.depth - 1}"
    joint, mlps = "blocks.*.branches.0.inner.streams", "blocks.*.branches.1.branches"
    return KeyMap(
        (
            *embed_keys("patch_embed.proj", square_patch(config.patch)),
            Entry(("rope.frequencies",), ("pos_frequencies",)),
            *renamed("time.up", f"{time}.linear_1"),
            *renamed("time.down", f"{time}.linear_2"),
            *renamed("pool.q_proj", f"{pool}.to_q"),
            *fused(("pool.k_proj", "pool.v_proj"), f"{pool}.to_kv"),
            *renamed("pool.out_proj", f"{pool}.to_out"),
            *renamed("text", "time_embed.caption_proj"),
            *renamed(f"{last}.modulations.0.proj", f"{theirs_last}.norm1_context.linear_1"),
            *renamed("blocks.*.modulations.0.proj", f"{block}.norm1_context.linear"),
            *renamed("blocks.*.modulations.1.proj", f"{block}.norm1.linear"),
            *_attention(f"{joint}.0", f"{block}.attn1", "add_{}_proj", "norm_added_{}", "to_add_out"),
            *_attention(f"{joint}.1", f"{block}.attn1", "to_{}", "norm_{}", "to_out.0"),
            *_mlp(f"{mlps}.0.inner", f"{block}.ff_context"),
            *_mlp(f"{mlps}.1.inner", f"{block}.ff"),
            *renamed("final_modulation.proj", "norm_out.linear"),
            *renamed("project", "proj_out"),
        )
    )


def _attention(ours: str, theirs: str, proj: str, norm: str, out: str) -> Sequence[Entry]:
    """Three projections without bias, two norms, and the way back."""
    return (
        *(e for name in "qkv" for e in renamed(f"{ours}.{name}_proj", f"{theirs}.{proj.format(name)}", ["weight"])),
        *(e for name in "qk" for e in renamed(f"{ours}.{name}_norm", f"{theirs}.{norm.format(name)}", ["weight"])),
        *renamed(f"{ours}.out_proj", f"{theirs}.{out}"),
    )


def _mlp(ours: str, theirs: str) -> Sequence[Entry]:
    """The value and its gate in one projection, and the projection back."""
    both = fused((f"{ours}.up", f"{ours}.gate"), f"{theirs}.net.0.proj", ["weight"])
    return (*both, *renamed(f"{ours}.down", f"{theirs}.net.2", ["weight"]))


MOCHI = Family(
    MochiTransformer,
    "MochiTransformer3DModel",
    mochi_keys,
    mochi_config_from_diffusers,
    mochi_config_to_diffusers,
)
"""The adapter between :class:`tubelet.models.MochiTransformer` and diffusers'. Example: ``MOCHI.keys(config)``."""
