"""CogVideoX's checkpoints in the form of diffusers' ``CogVideoXTransformer3DModel``, both ways.

What differs beyond names: one linear layer in each norm of theirs modulates video and text, ours are two, each for both
norms of a block; their patches have the channels outermost, ours innermost with the given ones apart; their table of
learned positions is one axis, text first. Their sizes of samples are pixels of latents and frames of video: they say
over which grid the rotations are fitted and how large the table is, and are defaults where the model has neither.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.theirs import checked_config
from tubelet.models.cogvideox import CogVideoXConfig, CogVideoXTransformer

__all__ = ["COGVIDEOX", "cogvideox_config_from_diffusers", "cogvideox_config_to_diffusers", "cogvideox_keys"]

_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embed_dim": 512,
    "ofs_embed_dim": None,
    "text_embed_dim": 4096,
    "num_layers": 30,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "patch_size_t": None,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 226,
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "spatial_interpolation_scale": 1.875,
    "temporal_interpolation_scale": 1.0,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
    "patch_bias": True,
}
_FIXED = (
    "flip_sin_to_cos",
    "freq_shift",
    "dropout",
    "attention_bias",
    "activation_fn",
    "timestep_activation_fn",
    "norm_elementwise_affine",
)


def cogvideox_config_from_diffusers(config: Mapping[str, Any]) -> CogVideoXConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than
            :class:`CogVideoXTransformer`.

    Example:
        >>> cogvideox_config_from_diffusers({"num_attention_heads": 48, "num_layers": 42}).dim
        3072
    """
    c = checked_config(config, _DEFAULTS, {}, "CogVideoXTransformer3DModel")
    for key in _FIXED:
        if c[key] != _DEFAULTS[key]:
            raise ValueError(f"{key}={c[key]!r}, but CogVideoX has {_DEFAULTS[key]!r}")
    if c["in_channels"] < c["out_channels"]:
        raise ValueError(f"in_channels={c['in_channels']} are fewer than out_channels={c['out_channels']}")
    if c["ofs_embed_dim"] not in (None, c["time_embed_dim"]):
        raise ValueError(f"ofs_embed_dim={c['ofs_embed_dim']} cannot be added to time_embed_dim={c['time_embed_dim']}")
    if c["patch_size_t"] is None and not c["patch_bias"]:
        raise ValueError("patch_bias=False, but CogVideoX's embedding of patches has a bias")
    if c["patch_size_t"] is not None and c["patch_size_t"] < 2:
        raise ValueError(f"patch_size_t={c['patch_size_t']}: patches of one frame have patch_size_t=None")
    rows, columns = (c[f"sample_{side}"] // c["patch_size"] for side in ("height", "width"))
    return CogVideoXConfig(
        dim=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        time_dim=c["time_embed_dim"],
        latent_channels=c["out_channels"],
        given_channels=c["in_channels"] - c["out_channels"],
        text_dim=c["text_embed_dim"],
        patch=(c["patch_size_t"] or 1, c["patch_size"], c["patch_size"]),
        ofs=c["ofs_embed_dim"] is not None,
        eps=c["norm_eps"],
        **_positions(c, rows, columns),
    )


def _positions(c: Mapping[str, Any], rows: int, columns: int) -> dict[str, Any]:
    """Sinusoids, or rotations by the index (patches of several frames) or fitted to a grid, perhaps with a table."""
    rotary, learned = c["use_rotary_positional_embeddings"], c["use_learned_positional_embeddings"]
    if c["patch_size_t"] is not None and (learned or not rotary):
        raise ValueError(f"patch_size_t={c['patch_size_t']}, but only rotary positions fit patches of several frames")
    if not rotary and learned:
        raise ValueError("use_learned_positional_embeddings=True, but without rotary positions")
    if not rotary:
        plane = c["spatial_interpolation_scale"]
        return {"rotary": False, "sincos": (c["temporal_interpolation_scale"], plane, plane)}
    if c["patch_size_t"] is not None:
        return {}
    if not learned:
        return {"base": (rows, columns)}
    frames = (c["sample_frames"] - 1) // c["temporal_compression_ratio"] + 1
    tables = {"learned": (frames, rows, columns), "learned_text": c["max_text_seq_length"]}
    return {"base": (rows, columns), **tables}


def cogvideox_config_to_diffusers(config: CogVideoXConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: patches, positions or times that their class cannot have.

    Example:
        >>> from tubelet.models import cogvideox_5b
        >>> cogvideox_config_to_diffusers(cogvideox_5b())["sample_width"]
        90
    """
    t, h, w = config.patch
    if h != w:
        raise ValueError(f"patch={config.patch}, but diffusers' patches are square")
    if (config.time_scale, config.time_shift) != (1000, -1):
        fed = f"time_scale={config.time_scale}, time_shift={config.time_shift}"
        raise ValueError(f"{fed}, but diffusers' pipelines feed indices of 1000 steps")
    written = _DEFAULTS | {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.latent_channels + config.given_channels,
        "out_channels": config.latent_channels,
        "time_embed_dim": config.time_dim,
        "ofs_embed_dim": config.time_dim if config.ofs else None,
        "text_embed_dim": config.text_dim,
        "num_layers": config.depth,
        "patch_size": h,
        "patch_size_t": None if t == 1 else t,
        "patch_bias": t == 1,
        "norm_eps": config.eps,
        **_written_positions(config),
    }
    if cogvideox_config_from_diffusers(written) != config:
        places = {name: getattr(config, name) for name in ("patch", "rotary", "base", "sincos", "learned")}
        raise ValueError(f"positions {places} are not among those of CogVideoXTransformer3DModel")
    return written


def _written_positions(config: CogVideoXConfig) -> dict[str, Any]:
    """What says where tokens stand; for patches of several frames the largest grid of the published ones."""
    written: dict[str, Any] = {"use_rotary_positional_embeddings": config.rotary}
    if config.sincos is not None:
        time, plane, _ = config.sincos
        written |= {"temporal_interpolation_scale": time, "spatial_interpolation_scale": plane}
    if config.base is not None:
        rows, columns = (side * config.patch[1] for side in config.base)
        written |= {"sample_height": rows, "sample_width": columns}
    if config.learned is not None:
        frames = (config.learned[0] - 1) * _DEFAULTS["temporal_compression_ratio"] + 1
        written |= {"use_learned_positional_embeddings": True, "sample_frames": frames}
        written |= {"max_text_seq_length": config.learned_text}
    if config.patch[0] > 1:
        written |= {"sample_height": 300, "sample_width": 300, "sample_frames": 81}
    return written


def cogvideox_keys(config: CogVideoXConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import cogvideox_5b
        >>> groups, unknown = cogvideox_keys(cogvideox_5b()).groups(["text_modulations.3.proj.bias"], "ours")
        >>> groups[0].theirs, unknown
        (('transformer_blocks.3.norm1.linear.bias', 'transformer_blocks.3.norm2.linear.bias'), [])
    """
    block, attention, mlp = "transformer_blocks.*", "blocks.*.branches.0", "blocks.*.branches.1"
    return KeyMap(
        (
            Entry(("embed.weight",), ("patch_embed.proj.weight",), *_patches_in(config)),
            *renamed("embed", "patch_embed.proj", ["bias"]),
            *renamed("text", "patch_embed.text_proj"),
            Entry(("tables.0.table", "tables.1.table"), ("patch_embed.pos_embedding",), *_tables(config)),
            *renamed("time.up", "time_embedding.linear_1"),
            *renamed("time.down", "time_embedding.linear_2"),
            *renamed("ofs.up", "ofs_embedding.linear_1"),
            *renamed("ofs.down", "ofs_embedding.linear_2"),
            *(_modulations(leaf) for leaf in ("weight", "bias")),
            *renamed(f"{attention}.norm", f"{block}.norm1.norm"),
            *(entry for x in "qkv" for entry in renamed(f"{attention}.inner.{x}_proj", f"{block}.attn1.to_{x}")),
            *renamed(f"{attention}.inner.out_proj", f"{block}.attn1.to_out.0"),
            *renamed(f"{attention}.inner.q_norm", f"{block}.attn1.norm_q"),
            *renamed(f"{attention}.inner.k_norm", f"{block}.attn1.norm_k"),
            *renamed(f"{mlp}.norm", f"{block}.norm2.norm"),
            *renamed(f"{mlp}.inner.up", f"{block}.ff.net.0.proj"),
            *renamed(f"{mlp}.inner.down", f"{block}.ff.net.2"),
            *renamed("last_norm", "norm_final"),
            *renamed("final_norm", "norm_out.norm"),
            *renamed("final_modulation.proj", "norm_out.linear"),
            *(Entry((f"project.{x}",), (f"proj_out.{x}",), *_patches_out(config)) for x in ("weight", "bias")),
        )
    )


Change = Callable[..., Sequence[Tensor]]


def _modulations(leaf: str) -> Entry:
    """Theirs: video and text for each norm. Ours: both norms for video and for text."""

    def crossed(first: Tensor, second: Tensor) -> list[Tensor]:
        (a, b), (c, d) = first.chunk(2), second.chunk(2)
        return [torch.cat([a, c]), torch.cat([b, d])]

    ours = f"modulations.*.proj.{leaf}", f"text_modulations.*.proj.{leaf}"
    theirs = tuple(f"transformer_blocks.*.{norm}.linear.{leaf}" for norm in ("norm1", "norm2"))
    return Entry(ours, theirs, crossed, crossed)


def _tables(config: CogVideoXConfig) -> tuple[Change, Change]:
    """One table of text and then cells, against a table each."""
    extent, tokens = config.learned or (1, 1, 1), config.learned_text

    def to_ours(table: Tensor) -> list[Tensor]:
        return [table[0, tokens:].reshape(*extent, -1), table[0, :tokens]]

    def to_theirs(grid: Tensor, text: Tensor) -> list[Tensor]:
        return [torch.cat([text, grid.flatten(0, 2)])[None]]

    return to_ours, to_theirs


def _patches_in(config: CogVideoXConfig) -> tuple[Change, Change]:
    """A convolution of one frame, or a linear layer on patches ``(c pt ph pw)``, as one on ``(pt ph pw c)``."""
    t, h, w = config.patch
    channels = [config.latent_channels, config.given_channels]
    widths = [math.prod(config.patch) * c for c in channels]

    def to_ours(weight: Tensor) -> list[Tensor]:
        cells = rearrange(weight.flatten(1), "d (c t h w) -> d c t h w", t=t, h=h, w=w)
        parts = torch.split(cells, channels, 1)
        return [torch.cat([rearrange(part, "d c t h w -> d (t h w c)") for part in parts], dim=1)]

    def to_theirs(weight: Tensor) -> list[Tensor]:
        parts = torch.split(weight, widths, 1)
        cells = torch.cat([rearrange(part, "d (t h w c) -> d c t h w", t=t, h=h, w=w) for part in parts], dim=1)
        return [cells.squeeze(2) if t == 1 else cells.flatten(1)]

    return to_ours, to_theirs


def _patches_out(config: CogVideoXConfig) -> tuple[Change, Change]:
    """The rows of the last projection, or its bias, with the channels innermost."""
    t, h, w = config.patch

    def to_ours(rows: Tensor) -> list[Tensor]:
        return [rearrange(rows, "(c t h w) ... -> (t h w c) ...", t=t, h=h, w=w)]

    def to_theirs(rows: Tensor) -> list[Tensor]:
        return [rearrange(rows, "(t h w c) ... -> (c t h w) ...", t=t, h=h, w=w)]

    return to_ours, to_theirs


COGVIDEOX = Family(
    CogVideoXTransformer,
    "CogVideoXTransformer3DModel",
    cogvideox_keys,
    cogvideox_config_from_diffusers,
    cogvideox_config_to_diffusers,
)
"""The adapter to diffusers' class. Example: ``COGVIDEOX.keys(config)``."""
