"""DiT's checkpoints in the form of diffusers' ``DiTTransformer2DModel``, both ways.

Diffusers' class differs from the published model in three numbers, which a config read from it keeps: its sinusoid of
times ends at the lowest frequency (``freq_shift=1``), the norm before the MLP has an epsilon of its own (1e-5), and
grids of other sizes span the places of the trained one (``base_grid``). Each of its blocks holds a copy of the
embeddings of time and class; copies that differ make another model and are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.hub.keys import Entry, Family, KeyMap, renamed
from tubelet.hub.pixart import attention_keys, embed_keys, project_keys, square_patch
from tubelet.hub.theirs import check_own, checked_config
from tubelet.models.dit import DiT, DiTConfig

__all__ = ["DIT", "dit_config_from_diffusers", "dit_config_to_diffusers", "dit_keys"]

_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
_FIXED = (
    "dropout",
    "norm_num_groups",
    "attention_bias",
    "activation_fn",
    "upcast_attention",
    "norm_type",
    "norm_elementwise_affine",
)
"""What has one value in DiT."""


def dit_config_from_diffusers(config: Mapping[str, Any]) -> DiTConfig:
    """Our config from theirs; keys that are missing have diffusers' defaults.

    Raises:
        ValueError: keys that the class does not have, or values that make another model than :class:`DiT`.

    Example:
        >>> dit_config_from_diffusers({"num_layers": 12, "out_channels": 8}).base_grid
        (16, 16)
    """
    c = checked_config(config, _DEFAULTS, {name: _DEFAULTS[name] for name in _FIXED}, "DiTTransformer2DModel")
    out = c["out_channels"] or c["in_channels"]
    if out < c["in_channels"]:
        raise ValueError(f"out_channels={out} are fewer than in_channels={c['in_channels']}")
    if c["sample_size"] % c["patch_size"]:
        raise ValueError(f"sample_size={c['sample_size']} is not a multiple of patch_size={c['patch_size']}")
    dim, side = c["num_attention_heads"] * c["attention_head_dim"], c["sample_size"] // c["patch_size"]
    return DiTConfig(
        dim=dim,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=4 * dim,
        latent_channels=c["in_channels"],
        variance_channels=out - c["in_channels"],
        classes=c["num_embeds_ada_norm"],
        patch=(1, c["patch_size"], c["patch_size"]),
        freq_shift=1,
        mlp_eps=c["norm_eps"],
        base_grid=(side, side),
    )


def dit_config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    """Their config from ours, as JSON values.

    Raises:
        ValueError: a value that their class does not have.

    Example:
        >>> import dataclasses
        >>> from tubelet.models import dit_xl
        >>> theirs = dataclasses.replace(dit_xl(), freq_shift=1, base_grid=(16, 16))
        >>> dit_config_to_diffusers(theirs)["sample_size"]
        32
    """
    base, side = config.base_grid, square_patch(config.patch)
    fixed = {
        "freq_shift": 1,
        "eps": 1e-6,
        "frequencies": 256,
        "position_axes": 2,
        "time_scale": 1000.0,
        "time_shift": -1.0,
        "mlp_dim": 4 * config.dim,
    }
    check_own(config, fixed, "DiTTransformer2DModel")
    if base is None or base[0] != base[1]:
        raise ValueError(f"base_grid={base}, but DiTTransformer2DModel has the side of one square")
    return {
        **{name: _DEFAULTS[name] for name in _FIXED},
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels + config.variance_channels,
        "num_layers": config.depth,
        "sample_size": base[0] * side,
        "patch_size": side,
        "num_embeds_ada_norm": config.classes,
        "norm_eps": config.mlp_eps,
    }


def dit_keys(config: DiTConfig) -> KeyMap:
    """Which of our tensors are which of diffusers'.

    Example:
        >>> from tubelet.models import dit_s
        >>> dit_keys(dit_s()).groups(["label.table.weight"], "ours")[0][0].theirs[11]
        'transformer_blocks.11.norm1.emb.class_embedder.embedding_table.weight'
    """
    theirs, side = "transformer_blocks.*", square_patch(config.patch)
    return KeyMap(
        (
            *embed_keys("pos_embed.proj", side),
            *_copied("time.up", "timestep_embedder.linear_1", config),
            *_copied("time.down", "timestep_embedder.linear_2", config),
            *_copied("label.table", "class_embedder.embedding_table", config, ["weight"]),
            *renamed("blocks.*.modulation.proj", f"{theirs}.norm1.linear"),
            *attention_keys("blocks.*.branches.0.inner", f"{theirs}.attn1"),
            *renamed("blocks.*.branches.1.inner.up", f"{theirs}.ff.net.0.proj"),
            *renamed("blocks.*.branches.1.inner.down", f"{theirs}.ff.net.2"),
            *renamed("final_norm.modulation.proj", "proj_out_1"),
            *project_keys("proj_out_2", side, [config.latent_channels, config.variance_channels]),
        )
    )


def _copied(ours: str, theirs: str, config: DiTConfig, leaves: Sequence[str] = ("weight", "bias")) -> list[Entry]:
    """What every block of theirs has a copy of."""

    def entry(leaf: str) -> Entry:
        names = tuple(f"transformer_blocks.{i}.norm1.emb.{theirs}.{leaf}" for i in range(config.depth))

        def to_ours(*copies: Tensor) -> list[Tensor]:
            for name, copy in zip(names, copies, strict=True):
                if not copy.is_meta and not torch.equal(copy, copies[0]):  # meta: only the shapes are asked
                    raise ValueError(f"{name} differs from {names[0]}, but DiT has one embedding for all blocks")
            return [copies[0]]

        return Entry((f"{ours}.{leaf}",), names, to_ours, lambda tensor: [tensor.clone() for _ in names])

    return [entry(leaf) for leaf in leaves]


DIT = Family(DiT, "DiTTransformer2DModel", dit_keys, dit_config_from_diffusers, dit_config_to_diffusers)
"""The adapter between :class:`tubelet.models.DiT` and diffusers' class. Example: ``DIT.keys(config)``."""
