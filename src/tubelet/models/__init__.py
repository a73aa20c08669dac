"""Whole models, one readable file each: wiring written out, a frozen flat config, presets as one-line functions."""

from tubelet.models.cosmos import (
    CosmosConfig,
    CosmosTransformer,
    cosmos_1_7b,
    cosmos_1_14b,
    cosmos_1_v2w_7b,
    cosmos_1_v2w_14b,
    cosmos_2_5_2b,
    cosmos_2_5_14b,
    cosmos_2_t2i_2b,
    cosmos_2_t2i_14b,
    cosmos_2_v2w_2b,
    cosmos_2_v2w_14b,
)
from tubelet.models.experts import NoiseExperts
from tubelet.models.ltx import LTXConfig, LTXTransformer, ltx_2b, ltx_13b, ltx_places
from tubelet.models.mochi import MochiConfig, MochiTransformer, mochi_10b
from tubelet.models.video_dit import VideoDiT, VideoDiTConfig, video_dit_b, video_dit_digits, video_dit_s, video_dit_xl
from tubelet.models.wan import (
    WanConfig,
    WanTransformer,
    pad_prompts,
    wan_1_3b,
    wan_2_2_5b,
    wan_2_2_i2v_14b,
    wan_14b,
    wan_i2v_14b,
)

__all__ = [
    "CosmosConfig",
    "CosmosTransformer",
    "LTXConfig",
    "LTXTransformer",
    "MochiConfig",
    "MochiTransformer",
    "NoiseExperts",
    "VideoDiT",
    "VideoDiTConfig",
    "WanConfig",
    "WanTransformer",
    "cosmos_1_7b",
    "cosmos_1_14b",
    "cosmos_1_v2w_7b",
    "cosmos_1_v2w_14b",
    "cosmos_2_5_2b",
    "cosmos_2_5_14b",
    "cosmos_2_t2i_2b",
    "cosmos_2_t2i_14b",
    "cosmos_2_v2w_2b",
    "cosmos_2_v2w_14b",
    "ltx_2b",
    "ltx_13b",
    "ltx_places",
    "mochi_10b",
    "pad_prompts",
    "video_dit_b",
    "video_dit_digits",
    "video_dit_s",
    "video_dit_xl",
    "wan_1_3b",
    "wan_2_2_5b",
    "wan_2_2_i2v_14b",
    "wan_14b",
    "wan_i2v_14b",
]
