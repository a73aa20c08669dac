"""What makes each family of the benchmark of models tiny, in the words of diffusers' configs."""

TINY = {
    "allegro": {"cross_attention_dim": 24, "num_attention_heads": 2, "attention_head_dim": 12, "caption_channels": 8},
    "cogvideox-5b": {"num_attention_heads": 2, "attention_head_dim": 16, "text_embed_dim": 8},
    "cosmos-2b": {"num_attention_heads": 2, "attention_head_dim": 12, "text_embed_dim": 8, "adaln_lora_dim": 4},
    "dit-xl": {"num_attention_heads": 2, "attention_head_dim": 12, "num_embeds_ada_norm": 9, "sample_size": 8},
    "hunyuan-video": {
        "num_attention_heads": 2, "attention_head_dim": 12, "rope_axes_dim": (4, 4, 4), "text_embed_dim": 8,
        "pooled_projection_dim": 8,
    },
    "latte": {"cross_attention_dim": 24, "num_attention_heads": 2, "attention_head_dim": 12, "caption_channels": 8},
    "ltx-2b": {"cross_attention_dim": 32, "num_attention_heads": 2, "attention_head_dim": 16, "caption_channels": 8},
    "mochi": {"num_attention_heads": 2, "attention_head_dim": 12, "pooled_projection_dim": 12, "text_embed_dim": 16},
    "wan-1.3b": {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 16, "text_dim": 8},
}  # fmt: skip
