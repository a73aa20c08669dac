"""The contrastive head against CLIP's formula written out, and its use on packs of any size."""

import math
from typing import Any

import pytest
import torch
from parity import error
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.layout import Grid, TokenLayout
from tubelet.models import ContrastiveHead, NaViT, NaViTConfig, contrastive_loss
from tubelet.pooling import mean_pool
from tubelet.text import WordEncoder, WordEncoderConfig

F64: dict[str, Any] = {"dtype": torch.float64}


def pairs(samples: int, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    both = torch.randn(2, samples, width, generator=draw, **F64)
    images, texts = F.normalize(both, dim=-1).unbind(0)
    return images.requires_grad_(), texts.requires_grad_()


def by_definition(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The mean of ``-log p`` of each image's own text among all texts, and of each text's own image."""
    likelihoods = [
        (scale * mine @ other).exp() / sum((scale * mine @ each).exp() for each in others)
        for mines, others in ((images, texts), (texts, images))
        for mine, other in zip(mines, others, strict=True)
    ]
    return -torch.stack(likelihoods).log().mean()


def test_the_loss_is_clips() -> None:
    """Value and gradients, against its sums written out (Radford et al., figure 3)."""
    (images, texts), scale = pairs(6), torch.tensor(7.0, **F64, requires_grad=True)
    loss, expected = contrastive_loss(images, texts, scale), by_definition(images, texts, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    inputs = [images, texts, scale]
    for got, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_rows_of_no_sample_take_no_part() -> None:
    """Whatever they hold, in the loss and in the gradients; and a single sample has nothing to tell apart."""
    images, texts = pairs(4)
    real = torch.tensor([True, False, True, True, False, True])
    wide = [torch.full((6, 8), torch.nan, **F64).index_copy(0, real.nonzero()[:, 0], x) for x in (images, texts)]
    loss, alone = contrastive_loss(*wide, 9.0, real), contrastive_loss(images, texts, 9.0)
    torch.testing.assert_close(loss, alone, rtol=1e-13, atol=0)
    for got, want in zip(*(torch.autograd.grad(x, [images, texts]) for x in (loss, alone)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)
    assert contrastive_loss(images[:1], texts[:1], 9.0) == 0


def test_a_batch_of_no_sample_loses_nothing() -> None:
    images, texts = pairs(3)
    loss = contrastive_loss(images, texts, 9.0, torch.zeros(3, dtype=torch.bool))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, [images, texts]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_rows_of_no_sample_hold_reaches_no_weight() -> None:
    head = ContrastiveHead(8, 8, 4, **F64)
    images, texts = (x.detach() for x in pairs(4))
    real = torch.tensor([True, False, True, True, False, True])
    wide = [torch.full((6, 8), torch.nan, **F64).index_copy(0, real.nonzero()[:, 0], x) for x in (images, texts)]
    loss = contrastive_loss(*head(*wide, real), head.scale, real)
    alone = contrastive_loss(*head(images, texts), head.scale)
    torch.testing.assert_close(loss, alone, rtol=1e-13, atol=0)
    for got, want in zip(*(torch.autograd.grad(x, list(head.parameters())) for x in (loss, alone)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


def test_matched_pairs_lose_least() -> None:
    images, texts = pairs(5)
    matched = contrastive_loss(images, images, 20.0)
    assert matched < contrastive_loss(images, texts, 20.0) < contrastive_loss(images, -images, 20.0)
    torch.testing.assert_close(contrastive_loss(images * 0, texts * 0, 20.0), torch.tensor(math.log(5), **F64))


def test_the_loss_sums_in_float32() -> None:
    images, texts = (x.detach().bfloat16() for x in pairs(64))
    loss = contrastive_loss(images, texts, 10.0)
    assert loss.dtype == torch.float32
    assert error(loss, contrastive_loss(images.double(), texts.double(), 10.0)) < 1e-6


def test_the_head_projects_to_unit_vectors_and_its_scale_is_clips() -> None:
    head = ContrastiveHead(12, text_dim=6, width=8, device="meta").to_empty(device="cpu")
    for parameter in head.parameters():
        nn.init.constant_(parameter, torch.nan)
    head.reset_parameters()
    vectors = torch.randn(5, 12), torch.randn(5, 6)
    images, texts = head(*vectors)
    torch.testing.assert_close(images, F.normalize(vectors[0] @ head.image_proj.weight.T, dim=-1))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(5))
    assert head.scale.item() == pytest.approx(1 / 0.07)
    assert head.image_proj.weight.std().item() == pytest.approx(12**-0.5, rel=0.2)
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    assert head.scale == 100
    assert not head(torch.zeros(1, 12), vectors[1][:1])[0].any()


def system(seed: int = 0) -> tuple[NaViT, WordEncoder, ContrastiveHead]:
    torch.manual_seed(seed)
    model = NaViT(NaViTConfig(dim=32, depth=1, heads=2, mlp_dim=32, grid=(1, 4, 4), channels=1, patch=(1, 1, 1)), **F64)
    words = WordEncoder(WordEncoderConfig(words=("bright", "dark", "left", "right"), dim=16)).double()
    return model, words, ContrastiveHead(32, text_dim=16, width=8, **F64)


PROMPTS = ["bright left", "bright right", "dark left", "dark right"]


def scenes() -> tuple[Tensor, list[Grid]]:
    """Pictures of the prompts, of four sizes: one half is of plus or minus one, the rest nearly zero."""
    grids = [Grid(1, 2, 4), Grid(1, 4, 2), Grid(1, 3, 4), Grid(1, 4, 4)]
    draw, parts = torch.Generator().manual_seed(1), []
    for prompt, grid in zip(PROMPTS, grids, strict=True):
        picture = 0.1 * torch.randn(grid.h, grid.w, generator=draw, **F64)
        half = slice(0, grid.w // 2) if "left" in prompt else slice(grid.w // 2, grid.w)
        picture[:, half] += 1.0 if "bright" in prompt else -1.0
        parts.append(picture.reshape(-1, 1))
    return torch.cat(parts), grids


def embed(parts: tuple[NaViT, WordEncoder, ContrastiveHead], layout: TokenLayout, x: Tensor) -> tuple[Tensor, Tensor]:
    model, words, head = parts
    text = words(PROMPTS)
    return head(model(x, layout)[: len(PROMPTS)], mean_pool(text.tokens, text.layout))


def test_two_towers_on_a_pack_equal_one_sample_at_a_time() -> None:
    """Loss and the gradients of both towers: packing changes neither."""
    parts, (x, grids) = system(), scenes()
    everything = [p for part in parts for p in part.parameters()]
    packed = contrastive_loss(*embed(parts, TokenLayout.packed(grids, capacity=64), F.pad(x, (0, 0, 0, 20))), 5.0)
    pieces = x.split([grid.tokens for grid in grids])
    each = [parts[0](part[None], TokenLayout.dense(1, g)) for part, g in zip(pieces, grids, strict=True)]
    texts = [parts[1]([prompt]).tokens.mean(0, keepdim=True) for prompt in PROMPTS]
    separate = contrastive_loss(*parts[2](torch.cat(each), torch.cat(texts)), 5.0)
    torch.testing.assert_close(packed, separate, rtol=1e-12, atol=0)
    both = (torch.autograd.grad(loss, everything, allow_unused=True) for loss in (packed, separate))
    for got, want in zip(*both, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_two_towers_learn_to_match() -> None:
    """Each picture finds its own words, and the words their picture; before, they do not."""
    parts, (x, grids) = system(), scenes()
    layout = TokenLayout.packed(grids)
    optimiser = torch.optim.AdamW([p for part in parts for p in part.parameters()], 1e-2)
    losses = []
    for _ in range(25):
        images, texts = embed(parts, layout, x)
        losses.append(contrastive_loss(images, texts, parts[2].scale))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    scores = images @ texts.T
    assert losses[0] > 1 and losses[-1] < 0.05
    assert scores.argmax(0).tolist() == scores.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ContrastiveHead(4, 4, 4, temperature=0.0), "temperature must be positive, got 0.0 for width=4"),
        (
            lambda: ContrastiveHead(4, 6, 2)(torch.zeros(1, 5), torch.zeros(1, 6)),
            "images has width 5, but the head was made for 4",
        ),
        (
            lambda: ContrastiveHead(4, 6, 2)(torch.zeros(1, 4), torch.zeros(1, 4)),
            "texts has width 4, but the head was made for 6",
        ),
        (
            lambda: ContrastiveHead(4, 6, 2)(torch.zeros(2, 4), torch.zeros(1, 6)),
            "images has 2 samples, but texts has 1",
        ),
        (lambda: contrastive_loss(torch.zeros(2, 4), torch.zeros(3, 4), 1.0), r"same samples, got \(2, 4\), \(3, 4\)"),
        (
            lambda: contrastive_loss(*torch.zeros(2, 2, 4), 1.0, torch.ones(3, dtype=torch.bool)),
            r"real has shape \(3,\), but there are 2 rows",
        ),
        (
            lambda: contrastive_loss(*torch.zeros(2, 2, 4), 1.0, torch.ones(2)),
            "real must be flags of torch.bool, got torch.float32 for 2 rows",
        ),
        (
            lambda: ContrastiveHead(4, 4, 2)(*torch.zeros(2, 2, 4), torch.ones(2, dtype=torch.long)),
            "real must be flags of torch.bool, got torch.int64 for 2 rows",
        ),
    ],
)
@pytest.mark.graph
def test_errors(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
