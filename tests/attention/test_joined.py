"""Cross-attention whose keys are the tokens of the window and the text, against one softmax over both, row by row."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet import LayerNorm
from tubelet.attention import Attention, JoinedCrossAttention, VideoOnly, Window
from tubelet.layout import Grid, JointIndex, JointLayout, TokenLayout

F64: dict[str, Any] = {"dtype": torch.float64}
GRIDS, TEXTS = (Grid(2, 3, 2), Grid(1, 2, 3), Grid(2, 2, 2)), (3, 0, 1)
VIDEO, TEXT = TokenLayout.packed(GRIDS, capacity=30), TokenLayout.packed([None] * 3, TEXTS, capacity=7)
PATTERN = Window((1, 2, 2))


def module(**options: Any) -> JoinedCrossAttention:
    made = JoinedCrossAttention(8, 2, qk_norm=LayerNorm, **{"pattern": PATTERN, **F64, **options})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_hand(made: JoinedCrossAttention, x: Tensor, text: Tensor, grid: Grid) -> Tensor:
    """Each query with its keys picked out one by one."""
    cells = [(t, h, w) for t in range(grid.t) for h in range(grid.h) for w in range(grid.w)]
    rows = []
    for token, (t, h, w) in zip(x, cells, strict=True):
        own = [i for i, (s, y, z) in enumerate(cells) if (s, y // 2, z // 2) == (t, h // 2, w // 2)]
        seen = torch.cat([x[own], text])
        q = made.q_norm(made.q_proj(token).view(2, 4))
        k = made.k_norm(made.k_proj(seen).view(-1, 2, 4))
        weights = torch.einsum("hd,mhd->hm", q / 2, k).softmax(-1)
        rows.append(made.out_proj(torch.einsum("hm,mhd->hd", weights, made.v_proj(seen).view(-1, 2, 4)).flatten()))
    return torch.stack(rows)


def test_one_softmax_over_the_window_and_the_text() -> None:
    """Of every sample in a pack, with gradients; padding of both never counts."""
    made, x, text = module(), torch.full((30, 8), 7.0, **F64), torch.full((7, 8), 7.0, **F64)
    x[:26], text[:4] = torch.randn(26, 8, **F64), torch.randn(4, 8, **F64)
    out = made(x, text, VIDEO.on("cpu"), JointLayout((TEXT, VIDEO)).on("cpu"))[:26]
    out.square().sum().backward()
    packed = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    samples = zip(x[:26].split([g.tokens for g in GRIDS]), text[:4].split(TEXTS), GRIDS, strict=True)
    want = torch.cat([by_hand(made, *sample) for sample in samples])
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    want.square().sum().backward()
    for got, parameter in zip(packed, made.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-10, atol=1e-10)


def test_without_text_it_is_self_attention() -> None:
    made, x, none = module(), torch.randn(26, 8, **F64), TokenLayout.packed([None] * 3, [0, 0, 0])
    plain = Attention(8, 2, qk_norm=LayerNorm, pattern=PATTERN, **F64)
    plain.load_state_dict(made.state_dict())
    video = TokenLayout.packed(GRIDS)
    joint = JointIndex.of(none.on("cpu"), video.on("cpu"))
    got = made(x, torch.zeros(0, 8, **F64), video.on("cpu"), joint)
    torch.testing.assert_close(got, plain(x, video), rtol=1e-11, atol=1e-11)


def test_rows_are_packs_of_one_and_images_may_stay_apart() -> None:
    made = module(pattern=VideoOnly(Window((2, 2, 2))))
    x, text = torch.randn(2, 8, 8, **F64), torch.randn(2, 3, 8, **F64)
    for grid in (Grid(2, 2, 2), Grid(1, 2, 4)):
        video, words = TokenLayout.dense(2, grid), TokenLayout.padded([3, 1], 3)
        rows = made(x, text, video.on("cpu"), JointLayout((words, video)).on("cpu"))
        for i, length in enumerate((3, 1)):
            one, some = TokenLayout.packed([grid]), TokenLayout.packed([None], [length])
            alone = made(x[i], text[i, :length], one.on("cpu"), JointLayout((some, one)).on("cpu"))
            torch.testing.assert_close(rows[i], alone, rtol=1e-11, atol=1e-11)
    changed = x.clone()
    changed[:, 1:] += 1  # the other tokens of the images
    joint = JointLayout((words, video)).on("cpu")
    assert torch.equal(made(changed, text, video.on("cpu"), joint)[:, 0], rows[:, 0])


@pytest.mark.graph
def test_widths_are_named() -> None:
    video, text = TokenLayout.packed([Grid(1, 1, 2)]).on("cpu"), TokenLayout.packed([None], [1]).on("cpu")
    joint = JointIndex.of(text, video)
    with pytest.raises(ValueError, match="text has width 7, but the module was made for 8"):
        module()(torch.zeros(2, 8, **F64), torch.zeros(1, 7, **F64), video, joint)
    with pytest.raises(ValueError, match="x has width 6, but the module was made for 8"):
        module()(torch.zeros(2, 6, **F64), torch.zeros(1, 8, **F64), video, joint)
    with pytest.raises(ValueError, match="dim=8 is not a multiple of heads=3"):
        JoinedCrossAttention(8, 3)
    assert module().reset_parameters() is None
