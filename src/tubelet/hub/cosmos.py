"""Cosmos' checkpoints in the form of diffusers' ``CosmosTransformer3DModel`` and of NVIDIA's own files, both ways.

What differs beyond names: their patches are read channel by channel and written in the order ``ph pw pt c``, ours are
both in the order ``pt ph pw c`` with the masks behind. Their config does not say what number the network is fed; it is
EDM's in the models that have learned positions, the noise level itself in those that have none. Without learned
positions their ``max_size`` only bounds the grid; ours has no bound, and writes their default.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Change, Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.models.cosmos import CosmosConfig, CosmosTransformer

__all__ = [
    "COSMOS",
    "COSMOS_ORIGINAL",
    "cosmos_config_from_diffusers",
    "cosmos_config_from_original",
    "cosmos_config_to_diffusers",
    "cosmos_config_to_original",
    "cosmos_keys",
    "cosmos_original_keys",
]

_AXES = ("time", "height", "width")

_DEFAULTS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
    "use_crossattn_projection": False,
    "crossattn_proj_in_channels": 1024,
    "encoder_hidden_states_channels": 1024,
    "controlnet_block_every_n": None,
    "img_context_dim_in": None,
    "img_context_num_tokens": 256,
    "img_context_dim_out": 2048,
}


def cosmos_config_from_diffusers(config: Mapping[str, Any]) -> CosmosConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`CosmosTransformer`, such as those of Cosmos-Transfer2.5.

    Example:
        >>> cosmos_config_from_diffusers({"num_attention_heads": 16, "extra_pos_embed_type": None}).dim
        2048
    """
    c = checked_config(config, _DEFAULTS, {}, "CosmosTransformer3DModel")
    _refuse_others(c)
    learned, projected = c["extra_pos_embed_type"] is not None, c["use_crossattn_projection"]
    pt, ph, pw = c["patch_size"]
    scale_t, scale_h, scale_w = map(float, c["rope_scale"])
    t, h, w = (side // patch for side, patch in zip(c["max_size"], c["patch_size"], strict=True))
    return CosmosConfig(
        dim=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        mlp_ratio=float(c["mlp_ratio"]),
        rank=c["adaln_lora_dim"],
        latent_channels=c["out_channels"],
        known_channel=c["in_channels"] > c["out_channels"],
        padding_channel=c["concat_padding_mask"],
        text_dim=c["crossattn_proj_in_channels"] if projected else c["text_embed_dim"],
        context_dim=c["text_embed_dim"] if projected else None,
        patch=(pt, ph, pw),
        extent=(t, h, w) if learned else None,
        rope_scale=(scale_t, scale_h, scale_w),
        time="edm" if learned else "level",
    )


def _refuse_others(c: Mapping[str, Any]) -> None:
    """What the class can be beyond Cosmos 1, Predict2 and Predict2.5."""
    for name in ("img_context_dim_in", "controlnet_block_every_n"):
        if c[name] is not None:
            raise ValueError(f"{name}={c[name]} makes a Cosmos-Transfer2.5, which has no adapter")
    if c["in_channels"] - c["out_channels"] not in (0, 1):
        found = f"in_channels={c['in_channels']} with out_channels={c['out_channels']}"
        raise ValueError(f"{found}: a mask of given latents is one channel more or none")
    if c["extra_pos_embed_type"] not in (None, "learnable"):
        raise ValueError(f"extra_pos_embed_type={c['extra_pos_embed_type']!r}, but Cosmos' is 'learnable' or None")
    if c["use_crossattn_projection"] and c["encoder_hidden_states_channels"] != c["text_embed_dim"]:
        found = f"encoder_hidden_states_channels={c['encoder_hidden_states_channels']}"
        raise ValueError(f"{found}, but cross-attention takes text_embed_dim={c['text_embed_dim']}")


def cosmos_config_to_diffusers(config: CosmosConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: ``time`` is not that of their models with, or without, learned positions.

    Example:
        >>> from tubelet.models import cosmos_1_14b
        >>> cosmos_config_to_diffusers(cosmos_1_14b())["max_size"]
        [128, 240, 240]
    """
    if (config.time == "edm") != (config.extent is not None):
        raise ValueError(f"time={config.time!r} with extent={config.extent}: the published models have both or neither")
    projected = config.context_dim is not None
    extent = config.extent
    return _DEFAULTS | {
        "in_channels": config.latent_channels + config.known_channel,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "num_layers": config.depth,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.context_dim if projected else config.text_dim,
        "adaln_lora_dim": config.rank,
        "max_size": list(_DEFAULTS["max_size"])
        if extent is None
        else [side * patch for side, patch in zip(extent, config.patch, strict=True)],
        "patch_size": list(config.patch),
        "rope_scale": list(config.rope_scale),
        "concat_padding_mask": config.padding_channel,
        "extra_pos_embed_type": None if extent is None else "learnable",
        "use_crossattn_projection": projected,
        "crossattn_proj_in_channels": config.text_dim if projected else _DEFAULTS["crossattn_proj_in_channels"],
        "encoder_hidden_states_channels": config.context_dim or _DEFAULTS["encoder_hidden_states_channels"],
    }


def cosmos_config_from_original(config: Mapping[str, Any]) -> CosmosConfig:
    """NVIDIA's files hold no config, and the tensors do not tell how positions are scaled.

    Raises:
        ValueError: always.

    Example:
        >>> cosmos_config_from_original({})
        Traceback (most recent call last):
        ValueError: Cosmos' own files hold no config, and no tensor tells ...: give config=, such as cosmos_1_7b()
    """
    raise ValueError(
        "Cosmos' own files hold no config, and no tensor tells how positions are scaled: "
        "give config=, such as cosmos_1_7b()"
    )


def cosmos_config_to_original(config: CosmosConfig) -> dict[str, Any]:
    """Nothing, since NVIDIA's files hold no config.

    Example:
        >>> from tubelet.models import cosmos_1_7b
        >>> cosmos_config_to_original(cosmos_1_7b())
        {}
    """
    return {}


def cosmos_keys(config: CosmosConfig) -> KeyMap:
    """Which of our tensors are which of diffusers'.

    Example:
        >>> from tubelet.models import cosmos_2_v2w_2b
        >>> name = "blocks.3.branches.1.modulation.up.weight"
        >>> groups, unknown = cosmos_keys(cosmos_2_v2w_2b()).groups([name], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.norm2.linear_2.weight',), [])
    """
    return KeyMap(_entries(config, _DIFFUSERS))


def cosmos_original_keys(config: CosmosConfig) -> KeyMap:
    """Which of our tensors are which of NVIDIA's own files: Cosmos 1 with learned positions, else Predict2 and 2.5.

    Example:
        >>> from tubelet.models import CosmosTransformer
        >>> model = CosmosTransformer(CosmosConfig(dim=24, depth=2, heads=2, rank=4, text_dim=8))
        >>> keys = cosmos_original_keys(model.config)
        >>> state = keys.to_theirs(model.state_dict())     # or torch.load("model.pt"), a pickle
        >>> model.load_state_dict(keys.to_ours(state)), sorted(state)[0]
        (<All keys matched successfully>, 'net.blocks.0.adaln_modulation_cross_attn.1.weight')
    """
    if config.extent is not None:
        return KeyMap(_entries(config, _COSMOS_1), _UNREAD_1)
    return KeyMap(_entries(config, _COSMOS_2), _UNREAD_2)


class _Names(NamedTuple):
    """How a file calls its modules; those of blocks stand behind ``blocks``."""

    embed: str
    positions: str
    time_norm: str
    time: str
    text: str
    blocks: str
    attentions: tuple[str, str]
    q: str
    k: str
    v: str
    out: str
    q_norm: str
    k_norm: str
    mlp_up: str
    mlp_down: str
    modulations: tuple[str, str, str]
    final: str
    down: str
    up: str
    project: str


_DIFFUSERS = _Names(
    embed="patch_embed.proj",
    positions="learnable_pos_embed",
    time_norm="time_embed.norm",
    time="time_embed.t_embedder",
    text="crossattn_proj.0",
    blocks="transformer_blocks.*",
    attentions=("attn1", "attn2"),
    q="to_q",
    k="to_k",
    v="to_v",
    out="to_out.0",
    q_norm="norm_q",
    k_norm="norm_k",
    mlp_up="ff.net.0.proj",
    mlp_down="ff.net.2",
    modulations=("norm1", "norm2", "norm3"),
    final="norm_out",
    down="linear_1",
    up="linear_2",
    project="proj_out",
)

_COSMOS_1 = _Names(
    embed="net.x_embedder.proj.1",
    positions="net.extra_pos_embedder",
    time_norm="net.affline_norm",
    time="net.t_embedder.1",
    text="net.crossattn_proj.0",
    blocks="net.blocks.block*.blocks",
    attentions=("0.block.attn", "1.block.attn"),
    q="to_q.0",
    k="to_k.0",
    v="to_v.0",
    out="to_out.0",
    q_norm="to_q.1",
    k_norm="to_k.1",
    mlp_up="2.block.layer1",
    mlp_down="2.block.layer2",
    modulations=("0.adaLN_modulation", "1.adaLN_modulation", "2.adaLN_modulation"),
    final="net.final_layer.adaLN_modulation",
    down="1",
    up="2",
    project="net.final_layer.linear",
)

_COSMOS_2 = _Names(
    embed="net.x_embedder.proj.1",
    positions="net.extra_pos_embedder",
    time_norm="net.t_embedding_norm",
    time="net.t_embedder.1",
    text="net.crossattn_proj.0",
    blocks="net.blocks.*",
    attentions=("self_attn", "cross_attn"),
    q="q_proj",
    k="k_proj",
    v="v_proj",
    out="output_proj",
    q_norm="q_norm",
    k_norm="k_norm",
    mlp_up="mlp.layer1",
    mlp_down="mlp.layer2",
    modulations=("adaln_modulation_self_attn", "adaln_modulation_cross_attn", "adaln_modulation_mlp"),
    final="net.final_layer.adaln_modulation",
    down="1",
    up="2",
    project="net.final_layer.linear",
)

_UNREAD_1 = ("net.logvar.0.freqs", "net.logvar.0.phases", "net.logvar.1.weight", "net.pos_embedder.seq")
_UNREAD_2 = (
    *(f"net.accum_{name}" for name in ("image_sample_counter", "iteration", "train_in_hours", "video_sample_counter")),
    *(f"net.pos_embedder.{name}" for name in ("dim_spatial_range", "dim_temporal_range", "seq")),
    "net.t_embedding_norm._extra_state",
    *(
        f"net.blocks.*.{side}_attn.{name}._extra_state"
        for side in ("self", "cross")
        for name in ("attn_op", "k_norm", "q_norm")
    ),
)


def _entries(config: CosmosConfig, names: _Names) -> tuple[Entry, ...]:
    """All of our tensors in a file's names."""
    weights = {
        "time_norm": names.time_norm,
        "modulation.up": f"{names.time}.linear_1",
        "modulation.down": f"{names.time}.linear_2",
        "blocks.*.branches.2.inner.up": f"{names.blocks}.{names.mlp_up}",
        "blocks.*.branches.2.inner.down": f"{names.blocks}.{names.mlp_down}",
        "final_modulation.down": f"{names.final}.{names.down}",
        "final_modulation.up": f"{names.final}.{names.up}",
    }
    for i, attention in enumerate(names.attentions):
        ours, theirs = f"blocks.*.branches.{i}.inner", f"{names.blocks}.{attention}"
        projections = {"q_proj": names.q, "k_proj": names.k, "v_proj": names.v, "out_proj": names.out}
        leaves = projections | {"q_norm": names.q_norm, "k_norm": names.k_norm}
        weights |= {f"{ours}.{own}": f"{theirs}.{other}" for own, other in leaves.items()}
    for i, modulation in enumerate(names.modulations):
        for own, other in (("down", names.down), ("up", names.up)):
            weights[f"blocks.*.branches.{i}.modulation.{own}"] = f"{names.blocks}.{modulation}.{other}"
    tables = {f"positions.{axis}": f"{names.positions}.pos_emb_{axis[0]}" for axis in _AXES}
    return (
        Entry(("embed.weight",), (f"{names.embed}.weight",), *_patches_in(config)),
        Entry(("project.weight",), (f"{names.project}.weight",), *_patches_out(config)),
        *renamed("text.0", names.text),
        *(Entry((ours,), (theirs,)) for ours, theirs in tables.items()),
        *(entry for ours, theirs in weights.items() for entry in renamed(ours, theirs, ["weight"])),
    )


def _patches_in(config: CosmosConfig) -> tuple[Change, Change]:
    """Columns ``(c pt ph pw)`` of all channels to ``(pt ph pw c)`` of the latents, then of each mask."""
    t, h, w = config.patch
    channels = [config.latent_channels, *[1] * (config.known_channel + config.padding_channel)]
    widths = [math.prod(config.patch) * c for c in channels]

    def to_ours(weight: Tensor) -> list[Tensor]:
        parts = torch.split(weight, widths, 1)
        return [torch.cat([rearrange(p, "d (c t h w) -> d (t h w c)", t=t, h=h, w=w) for p in parts], dim=1)]

    def to_theirs(weight: Tensor) -> list[Tensor]:
        parts = torch.split(weight, widths, 1)
        return [torch.cat([rearrange(p, "d (t h w c) -> d (c t h w)", t=t, h=h, w=w) for p in parts], dim=1)]

    return to_ours, to_theirs


def _patches_out(config: CosmosConfig) -> tuple[Change, Change]:
    """Rows ``(ph pw pt c)`` to ``(pt ph pw c)``."""
    t, h, w = config.patch
    return (
        lambda weight: [rearrange(weight, "(h w t c) d -> (t h w c) d", t=t, h=h, w=w)],
        lambda weight: [rearrange(weight, "(t h w c) d -> (h w t c) d", t=t, h=h, w=w)],
    )


COSMOS = Family(
    CosmosTransformer,
    "CosmosTransformer3DModel",
    cosmos_keys,
    cosmos_config_from_diffusers,
    cosmos_config_to_diffusers,
    wide=tuple(f"positions.{axis}" for axis in _AXES),
)
"""The adapter of :class:`tubelet.models.CosmosTransformer` to diffusers' class. Example: ``COSMOS.keys(config)``."""

COSMOS_ORIGINAL = Family(
    CosmosTransformer,
    "",
    cosmos_original_keys,
    cosmos_config_from_original,
    cosmos_config_to_original,
    wide=COSMOS.wide,
    form="original",
)
"""The adapter of :class:`tubelet.models.CosmosTransformer` to NVIDIA's files. Example: ``COSMOS_ORIGINAL.form``."""
