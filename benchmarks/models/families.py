"""The families, in alphabetical order: how diffusers' class is asked, how ours is, and a row of the table.

Each is asked as its pipeline does, with prompts of the pipeline's length at half of all noise. To add one, write its
two functions and its entry.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.family import Family, ask, index, text
from tubelet.layout import Rows, TokenLayout
from tubelet.models import ltx_places

__all__ = ["FAMILIES"]

STEP, LEVEL = 500, 501 / 1000
"""A step of a discrete path of 1,000, and its noise level."""


@cache
def allegro_tables(head_dim: int, t: int, h: int, w: int) -> tuple[Any, Tensor]:
    """The pipeline's cosines and sines of each axis, and the place of each token on it."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    tables = get_3d_rotary_pos_embed_allegro(head_dim, ((0, 0), (h, w)), (h, w), t, (2.2, 2.0, 2.0))[:3]
    return tables, torch.cartesian_prod(*map(torch.arange, (t, h, w))).T[:, None]


def allegro_theirs(model: Any, x: Tensor) -> Tensor:
    t, h, w = x.shape[2:]
    prompt, mask = text(512, model.config.caption_channels, x), torch.ones(1, 512)
    rotation = allegro_tables(model.config.attention_head_dim, t, h // 2, w // 2)
    out: Tensor = model(
        x, prompt, torch.tensor([STEP]), encoder_attention_mask=mask, image_rotary_emb=rotation, return_dict=False
    )[0]  # fmt: skip
    return out


def allegro_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    return ask(model, x, layout, LEVEL, text(512, model.config.text_dim, x))


@cache
def cogvideox_tables(base: tuple[int, int, int], t: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The pipeline's cosines and sines for latents of these sides."""
    from diffusers import CogVideoXPipeline

    height, width, head_dim = base
    config = SimpleNamespace(
        patch_size=2, patch_size_t=None, sample_height=height, sample_width=width, attention_head_dim=head_dim
    )
    pipeline = SimpleNamespace(transformer=SimpleNamespace(config=config), vae_scale_factor_spatial=8)
    make = CogVideoXPipeline._prepare_rotary_positional_embeddings
    tables: tuple[Tensor, Tensor] = make(pipeline, 8 * h, 8 * w, t, torch.device("cpu"))
    return tables


def cogvideox_theirs(model: Any, x: Tensor) -> Tensor:
    c, frames = model.config, x.transpose(1, 2)
    rotation = cogvideox_tables((c.sample_height, c.sample_width, c.attention_head_dim), *x.shape[2:])
    prompt = text(c.max_text_seq_length, c.text_embed_dim, x)
    out: Tensor = model(frames, prompt, torch.tensor([STEP]), image_rotary_emb=rotation, return_dict=False)[0]
    return out.transpose(1, 2)


def cogvideox_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    return ask(model, x, layout, LEVEL, text(226, model.config.text_dim, x), joint=True)


def cosmos_theirs(model: Any, x: Tensor) -> Tensor:
    levels = torch.linspace(0.1, 0.9, x.shape[2])[None, None, :, None, None]
    prompt, known = text(512, model.config.text_embed_dim, x), torch.zeros_like(x[:, :1])
    out: Tensor = model(x, levels.to(x), prompt, fps=16, condition_mask=known, return_dict=False)[0]
    return out


def cosmos_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    levels = torch.linspace(0.1, 0.9, layout.grids[0].t).to(x)
    known = x.new_zeros(*x.shape[:-1], model.config.cells)
    t, prompt = index(layout).rows(levels, "frame"), text(512, model.config.text_dim, x)
    return ask(model, x, layout, t, prompt, known=known, fps=torch.tensor([16.0]))


def dit_shared(model: Any) -> None:
    """One embedding of time and class for all blocks, as in the published weights."""
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb


def dit_theirs(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x[:, :, 0], torch.tensor([STEP]), torch.tensor([7]), return_dict=False)[0]
    return out[:, :, None]


def dit_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    out: Tensor = model(x, Rows(torch.tensor([LEVEL])), index(layout), torch.tensor([7]))
    return out


def hunyuan_theirs(model: Any, x: Tensor) -> Tensor:
    prompt, mask = text(256, model.config.text_embed_dim, x), torch.ones(1, 256, dtype=torch.long)
    pooled, guidance = text(1, model.config.pooled_projection_dim, x)[:, 0], torch.tensor([6000.0])
    out: Tensor = model(x, torch.tensor([500]), prompt, mask, pooled, guidance, return_dict=False)[0]
    return out


def hunyuan_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    pooled, guidance = text(1, model.config.pooled_dim, x)[:, 0], torch.tensor([6.0])
    prompt = text(256, model.config.text_dim, x)
    return ask(model, x, layout, 0.5, prompt, joint=True, pooled=pooled, guidance=guidance)


def latte_theirs(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x, torch.tensor([STEP]), text(120, model.config.caption_channels, x), return_dict=False)[0]
    return out


def latte_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    return ask(model, x, layout, LEVEL, text(120, model.config.text_dim, x))


def ltx_theirs(model: Any, x: Tensor) -> Tensor:
    sides = dict(zip(("num_frames", "height", "width"), x.shape[2:], strict=True))
    prompt, mask = text(128, model.config.caption_channels, x), torch.ones(1, 128)
    scale = (8 / 25, 32, 32)
    out: Tensor = model(
        x.flatten(2).mT, prompt, torch.tensor([500.0]), mask, rope_interpolation_scale=scale, return_dict=False, **sides
    )[0]
    return out.mT.unflatten(2, x.shape[2:])


def ltx_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    places = ltx_places(index(layout), 25.0, causal=False)
    return ask(model, x, layout, 0.5, text(128, model.config.text_dim, x), places=places)


def mochi_theirs(model: Any, x: Tensor) -> Tensor:
    prompt, mask = text(256, model.config.text_embed_dim, x), torch.ones(1, 256, dtype=torch.bool)
    out: Tensor = model(x, prompt, torch.tensor([500.0]), mask, return_dict=False)[0]
    return -out  # it predicts data minus noise


def mochi_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    return ask(model, x, layout, 0.5, text(256, model.config.text_dim, x), joint=True)


def wan_theirs(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x, torch.tensor([500.0]), text(512, model.config.text_dim, x), return_dict=False)[0]
    return out


def wan_ours(model: Any, x: Tensor, layout: TokenLayout) -> Tensor:
    return ask(model, x, layout, 0.5, text(512, model.config.text_dim, x))


FAMILIES: dict[str, Family] = {
    "allegro": Family(
        "AllegroTransformer3DModel", {"num_layers": 2},
        4, (4, 64, 64), (1, 2, 2), allegro_theirs, allegro_ours,
    ),
    "cogvideox-5b": Family(
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 48, "num_layers": 2, "use_rotary_positional_embeddings": True},
        16, (4, 64, 64), (1, 2, 2), cogvideox_theirs, cogvideox_ours,
    ),
    "cosmos-2b": Family(  # Predict2; the padding mask, which the peer resizes by torchvision, is left out
        "CosmosTransformer3DModel",
        {
            "in_channels": 17, "num_attention_heads": 16, "num_layers": 2, "rope_scale": (1.0, 3.0, 3.0),
            "extra_pos_embed_type": None, "concat_padding_mask": False,
        },
        16, (4, 64, 64), (1, 2, 2), cosmos_theirs, cosmos_ours,
    ),
    "dit-xl": Family(
        "DiTTransformer2DModel", {"num_layers": 2, "out_channels": 8, "sample_size": 128},
        4, (1, 128, 128), (1, 2, 2), dit_theirs, dit_ours, prepare=dit_shared,
    ),
    "hunyuan-video": Family(
        "HunyuanVideoTransformer3DModel", {"num_layers": 2, "num_single_layers": 2},
        16, (4, 64, 64), (1, 2, 2), hunyuan_theirs, hunyuan_ours,
    ),
    "latte": Family(
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "caption_channels": 4096,
            "in_channels": 4, "out_channels": 8, "patch_size": 2, "num_layers": 2, "attention_bias": True,
            "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000,
            "norm_elementwise_affine": False, "norm_eps": 1e-6,
        },
        4, (16, 32, 32), (1, 2, 2), latte_theirs, latte_ours,
    ),
    "ltx-2b": Family(
        "LTXVideoTransformer3DModel", {"num_layers": 2},
        128, (8, 16, 32), (1, 1, 1), ltx_theirs, ltx_ours,
    ),
    "mochi": Family(
        "MochiTransformer3DModel", {"num_layers": 2},
        12, (4, 64, 64), (1, 2, 2), mochi_theirs, mochi_ours,
    ),
    "wan-1.3b": Family(
        "WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 2},
        16, (4, 64, 64), (1, 2, 2), wan_theirs, wan_ours,
    ),
}  # fmt: skip
"""What is compared, by name."""
