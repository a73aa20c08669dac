"""CogVideoX's checkpoints under its authors' names, those of SwissArmyTransformer, both ways.

The tensors are those of diffusers' form but for two: queries, keys and values are one linear layer, and one linear
layer modulates a block, the video's six parts first and then the text's. Files hold no config, and no tensor tells how
positions are laid; whole training states keep the autoencoder and the text encoder in the same file.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tubelet.hub.cogvideox import cogvideox_keys
from tubelet.hub.keys import Entry, Family, KeyMap, fused
from tubelet.models.cogvideox import CogVideoXConfig, CogVideoXTransformer

__all__ = [
    "COGVIDEOX_ORIGINAL",
    "cogvideox_config_from_original",
    "cogvideox_config_to_original",
    "cogvideox_original_keys",
]

_BLOCK, _LAYER, _MIXIN = "transformer_blocks.*", "transformer.layers.*", "mixins.adaln_layer"
_NAMES = {
    "patch_embed": "mixins.pos_embed",
    "patch_embed.proj": "mixins.patch_embed.proj",
    "patch_embed.text_proj": "mixins.patch_embed.text_proj",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "ofs_embedding.linear_1": "ofs_embed.0",
    "ofs_embedding.linear_2": "ofs_embed.2",
    f"{_BLOCK}.norm1.norm": f"{_LAYER}.input_layernorm",
    f"{_BLOCK}.attn1.to_out.0": f"{_LAYER}.attention.dense",
    f"{_BLOCK}.attn1.norm_q": f"{_MIXIN}.query_layernorm_list.*",
    f"{_BLOCK}.attn1.norm_k": f"{_MIXIN}.key_layernorm_list.*",
    f"{_BLOCK}.norm2.norm": f"{_LAYER}.post_attention_layernorm",
    f"{_BLOCK}.ff.net.0.proj": f"{_LAYER}.mlp.dense_h_to_4h",
    f"{_BLOCK}.ff.net.2": f"{_LAYER}.mlp.dense_4h_to_h",
    "norm_final": "transformer.final_layernorm",
    "norm_out.norm": "mixins.final_layer.norm_final",
    "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
    "proj_out": "mixins.final_layer.linear",
}
"""Diffusers' modules, and those of the authors that hold the same tensors."""


def cogvideox_config_from_original(config: Mapping[str, Any]) -> CogVideoXConfig:
    """The authors' files hold no config, and the tensors do not tell how positions are laid.

    Raises:
        ValueError: always.

    Example:
        >>> cogvideox_config_from_original({})
        Traceback (most recent call last):
        ValueError: CogVideoX's own files hold no config, and no tensor tells ...: give config=, such as cogvideox_5b()
    """
    raise ValueError(
        "CogVideoX's own files hold no config, and no tensor tells how positions are laid: "
        "give config=, such as cogvideox_5b()"
    )


def cogvideox_config_to_original(config: CogVideoXConfig) -> dict[str, Any]:
    """Nothing, since the authors' files hold no config.

    Example:
        >>> from tubelet.models import cogvideox_2b
        >>> cogvideox_config_to_original(cogvideox_2b())
        {}
    """
    return {}


def cogvideox_original_keys(config: CogVideoXConfig) -> KeyMap:
    """Which of our tensors are which of theirs.

    Example:
        >>> from tubelet.models import cogvideox_5b
        >>> groups, _ = cogvideox_original_keys(cogvideox_5b()).groups(["text_modulations.3.proj.bias"], "ours")
        >>> groups[0].theirs
        ('mixins.adaln_layer.adaLN_modulations.3.1.bias',)
    """
    return KeyMap(
        (
            *(renamed for entry in cogvideox_keys(config).entries for renamed in _under_their_names(entry)),
            *fused([f"blocks.*.branches.0.inner.{x}_proj" for x in "qkv"], f"{_LAYER}.attention.query_key_value"),
            *fused(["modulations.*.proj", "text_modulations.*.proj"], f"{_MIXIN}.adaLN_modulations.*.1"),
        ),
        ignored=(
            "mixins.pos_embed.freqs_cos",
            "mixins.pos_embed.freqs_sin",
            "transformer.position_embeddings.weight",
            "transformer.word_embeddings.weight",
            "mixins.patch_embed.word_embeddings.weight",
            *(("mixins.pos_embed.pos_embedding",) if config.learned is None else ()),
        ),
    )


def _under_their_names(entry: Entry) -> list[Entry]:
    """An entry of diffusers' form with the authors' name; none where the authors have one layer instead of several."""
    module, _, leaf = entry.theirs[0].rpartition(".")
    return [replace(entry, theirs=(f"{_NAMES[module]}.{leaf}",))] if module in _NAMES else []


COGVIDEOX_ORIGINAL = Family(
    CogVideoXTransformer,
    "",
    cogvideox_original_keys,
    cogvideox_config_from_original,
    cogvideox_config_to_original,
    form="original",
    prefixes=("model.diffusion_model.",),
    others=("conditioner.", "first_stage_model."),
)
"""The adapter of :class:`tubelet.models.CogVideoXTransformer` to its authors' files.

Example: ``COGVIDEOX_ORIGINAL.form``.
"""
