"""Attention to text and image by separate keys: the sum of two cross-attentions, and Wan's own."""

from functools import partial

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from tubelet.attention import CrossAttention, DecoupledCrossAttention
from tubelet.layout import Grid, TokenLayout
from tubelet.norms import RMSNorm

F64 = {"dtype": torch.float64}


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_equal_to_wans() -> None:
    theirs = randomised(
        WanAttention(
            12, 3, 4, 1e-6, added_kv_proj_dim=6, cross_attention_dim_head=4, processor=WanAttnProcessor()
        ).double()
    )
    ours = DecoupledCrossAttention(12, 3, image_dim=6, qk_norm=partial(RMSNorm, eps=1e-6), across_heads=True, **F64)
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out.0", "q_norm": "norm_q"}
    names |= {"k_norm": "norm_k", "image_k_proj": "add_k_proj", "image_v_proj": "add_v_proj"}
    for name, source in (names | {"image_k_norm": "norm_added_k"}).items():
        getattr(ours, name).load_state_dict(theirs.get_submodule(source).state_dict())
    x, text = torch.randn(2, 5, 12, **F64), torch.randn(2, 512, 12, **F64)
    # the peer takes one context, so that its image is as wide as its text: it is projected from the first 6 features
    image = torch.randn(2, 3, 6, **F64)
    theirs.add_k_proj = nn.Sequential(First(6), theirs.add_k_proj)
    theirs.add_v_proj = nn.Sequential(First(6), theirs.add_v_proj)
    context = torch.cat([nn.functional.pad(image, (0, 6), value=9.0), text], dim=1)
    torch.testing.assert_close(ours(x, text, image), theirs(x, context), rtol=1e-11, atol=1e-12)


class First(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.width]


@pytest.mark.parametrize("across", [False, True])
def test_the_sum_of_two_cross_attentions_on_packed_samples(across: bool) -> None:
    options = {"qk_norm": RMSNorm, "across_heads": across, **F64}
    ours = randomised(DecoupledCrossAttention(8, 2, context_dim=5, image_dim=3, **options))
    text_only, image_only = (
        CrossAttention(8, 2, context_dim=5, **options),
        CrossAttention(8, 2, context_dim=3, **options),
    )
    for name in ("q_proj", "q_norm", "out_proj"):
        for each in (text_only, image_only):
            getattr(each, name).load_state_dict(getattr(ours, name).state_dict())
    for name in ("k_proj", "v_proj", "k_norm"):
        getattr(text_only, name).load_state_dict(getattr(ours, name).state_dict())
        getattr(image_only, name).load_state_dict(getattr(ours, f"image_{name}").state_dict())
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1), Grid(1, 1, 3)])
    text_layout, image_layout = (TokenLayout.packed([None] * 3, n) for n in ([2, 0, 3], [0, 0, 4]))
    x, text, image = torch.randn(9, 8, **F64), torch.randn(5, 5, **F64), torch.randn(4, 3, **F64)
    got = ours(x, text, image, layout, text_layout, image_layout)
    parts = text_only(x, text, layout, text_layout) + image_only(x, image, layout, image_layout)
    torch.testing.assert_close(got, parts - ours.out_proj.bias, rtol=1e-11, atol=1e-12)
    expected = ours.out_proj.bias.expand(2, 8)  # the second sample has neither text nor image
    torch.testing.assert_close(got[4:6], expected, rtol=1e-11, atol=1e-12)


def test_meta_construction_and_widths() -> None:
    module = DecoupledCrossAttention(8, 2, qk_norm=RMSNorm, device="meta")
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu").reset_parameters()
    with pytest.raises(ValueError, match="image has width 3, but the module was made for 8"):
        module(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8), torch.zeros(1, 2, 3))
