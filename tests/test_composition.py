"""Any patchifier with any pattern, block, path and autoencoder: one way from videos to loss, forward and backward.

Samples of three sizes are packed; packed equals separate all along the way. The video DiT likewise with every pattern
and backend, in self- and cross-attention.
"""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.diffusion import VP, Process, RectifiedFlow
from tubelet.layout import Grid, LayoutIndex, TokenLayout
from tubelet.mlp import MLP, SwiGLU
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.patchify import Patchify, Unpatchify, crop_padding, fold_packed, pad_to_patch, unfold_packed
from tubelet.positions import LearnedPositions, Rope3d, SinCos3d
from tubelet.protocols import Pattern
from tubelet.testing import matrix_patterns
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

DIM, HEADS, CHANNELS, TEXT = 32, 4, 4, [2, 0, 3]
VIDEOS = [(1, 5, 16, 16), (1, 1, 16, 32), (1, 9, 24, 16)]
PATCHES = {"1x1x1": (1, 1, 1), "1x2x2": (1, 2, 2), "2x1x2": (2, 1, 2)}
PATTERNS = matrix_patterns()
AUTOENCODERS = {
    "causal 4x8x8": CausalAutoencoderConfig(latent_channels=CHANNELS, widths=(8, 8), depths=(1, 1)),
    "causal 2x4x4": CausalAutoencoderConfig(latent_channels=CHANNELS, widths=(8,), depths=(1,), temporal=2, spatial=4),
}
PROCESSES = {
    "flow": Process(path=RectifiedFlow()),
    "vp eps": Process(path=VP.linear(), prediction="eps"),
    "vp v": Process(path=VP.cosine(), prediction="v"),
}
POSITIONS = {"sincos": lambda: SinCos3d(DIM), "learned": lambda: LearnedPositions((8, 8, 8), DIM)}


def adaln(pattern: Pattern) -> TransformerBlock:
    attention = Branch(
        Attention(DIM, HEADS, qk_norm=RMSNorm, pattern=pattern),
        LayerNorm(DIM, affine=False),
        modulation=AdaLNZero(DIM, DIM),
        takes=["layout", "rope"],
    )
    return TransformerBlock([attention, Branch(MLP(DIM), LayerNorm(DIM, affine=False), modulation=AdaLNZero(DIM, DIM))])


def plain(pattern: Pattern) -> TransformerBlock:
    attention = Branch(
        Attention(DIM, HEADS, kv_heads=2, pattern=pattern), RMSNorm(DIM), post_norm=RMSNorm(DIM), takes=["layout"]
    )
    return TransformerBlock([attention, Branch(SwiGLU(DIM, 2 * DIM), RMSNorm(DIM))])


def crossing(pattern: Pattern) -> TransformerBlock:
    attention = Branch(Attention(DIM, HEADS, pattern=pattern), LayerNorm(DIM), gate=torch.tanh, takes=["layout"])
    text = CrossAttention(DIM, HEADS, context_dim=6)
    return TransformerBlock([attention, Branch(text, LayerNorm(DIM), takes=["text", "layout", "text_layout"])])


def shared(pattern: Pattern) -> TransformerBlock:
    """One modulation for the block, norms across heads, gates alone on the MLP."""
    attention = Branch(
        Attention(DIM, HEADS, pattern=pattern, qk_norm=LayerNorm, across_heads=True),
        LayerNorm(DIM, affine=False),
        modulation=ModulationSlice(DIM, 0),
        takes=["layout", "rope"],
    )
    mlp = Branch(MLP(DIM), RMSNorm(DIM), modulation=ModulationSlice(DIM, 3, parts=1), parts=["gate"], gate=torch.tanh)
    return TransformerBlock([attention, mlp], AdaLNZero(DIM, DIM, parts=4))


BLOCKS = {"adaln": adaln, "plain": plain, "crossing": crossing, "shared": shared}


def pairwise(*axes: list[str]) -> list[tuple[str, ...]]:
    """A few combinations in which every pair of choices of every two axes occurs.

    Each case begins with a pair that is still wanted, and takes along each further axis the choice that covers most.
    """
    wanted = {(i, a, j, b) for (i, xs), (j, ys) in itertools.combinations(enumerate(axes), 2) for a in xs for b in ys}
    chosen = []
    while wanted:
        i, a, j, b = min(wanted)
        case = {i: a, j: b}
        for axis in (axis for axis in range(len(axes)) if axis not in case):
            case[axis] = max(axes[axis], key=lambda x: len(wanted & pairs({**case, axis: x})))
        chosen.append(tuple(case[axis] for axis in range(len(axes))))
        wanted -= pairs(case)
    return chosen


def pairs(case: dict[int, str]) -> set[tuple[int, str, int, str]]:
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(sorted(case.items()), 2)}


AXES = [list(axis) for axis in (PATCHES, PATTERNS, BLOCKS, POSITIONS, PROCESSES, AUTOENCODERS)]
CASES = pairwise(*AXES)


def test_the_cases_are_few_and_pairwise() -> None:
    for (i, xs), (j, ys) in itertools.combinations(enumerate(AXES), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(xs, ys))
    assert len(CASES) <= 1.5 * len(PATTERNS) * 3  # no fewer than the product of the two longest axes


@cache
def encoded(name: str) -> tuple[CausalAutoencoder, tuple[Tensor, ...]]:
    autoencoder = CausalAutoencoder(AUTOENCODERS[name]).double()
    draw = torch.Generator().manual_seed(0)
    videos = [torch.rand(1, *size, generator=draw, dtype=torch.float64) * 2 - 1 for size in VIDEOS]
    return autoencoder, tuple(autoencoder.encode(video).mode()[0].detach() for video in videos)


class Model(nn.Module):
    """Patchifier, positions, block and projection."""

    def __init__(self, patch: tuple[int, int, int], block: nn.Module, positions: nn.Module) -> None:
        super().__init__()
        self.patchify, self.unpatchify = Patchify(patch, CHANNELS, DIM), Unpatchify(patch, CHANNELS, DIM)
        self.block, self.positions, self.time = block, positions, TimestepEmbedding(DIM)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.double()

    def forward(self, noisy: Tensor, grids: list[Grid], t: Tensor, text: list[Tensor]) -> Tensor:
        """Packed patches of a list of samples to their predictions, and back to patches."""
        index = TokenLayout.packed(grids).on("cpu")
        tokens = self.patchify(unfold_packed(noisy, grids, self.patchify.patch))
        tokens = tokens + self.positions(index.coords).to(tokens.dtype)
        cond = index.rows(t, "sample").map(lambda level: self.time(1000 * level))
        context = {
            "layout": index,
            "rope": Rope3d(DIM // HEADS)(index.coords),
            "text": torch.cat(text),
            "text_layout": TokenLayout.packed([None] * len(text), [len(x) for x in text]).on("cpu"),
        }
        return fold_packed(self.unpatchify(self.block(tokens, cond, context), grids), self.patchify.patch)[0]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_from_videos_to_loss_and_back(case: tuple[str, ...]) -> None:
    patch, process, (autoencoder, latents) = PATCHES[case[0]], PROCESSES[case[4]], encoded(case[5])
    model = Model(patch, BLOCKS[case[2]](PATTERNS[case[1]]), POSITIONS[case[3]]())
    whole, added = zip(*(pad_to_patch(z, patch) for z in latents), strict=True)
    x0, grids = fold_packed(whole, patch)
    text = [torch.randn(n, 6, dtype=torch.float64) for n in TEXT]
    levels, noise = torch.tensor([0.2, 0.7, 0.5], dtype=torch.float64), torch.randn_like(x0)
    t = TokenLayout.packed(grids).rows(levels, "sample")
    noisy = process.noise(x0, noise, t).requires_grad_()
    prediction = model(noisy, list(grids), levels, text)
    loss = process.loss(prediction, x0, noise, t)
    velocity = process.velocity(prediction, noisy, t)
    outputs = [crop_padding(z, pad) for z, pad in zip(unfold_packed(velocity, grids, patch), added, strict=True)]
    decoded = sum(autoencoder.decode(autoencoder.unscale(z[None])).square().mean() for z in outputs)
    autoencoder.zero_grad()
    (loss + decoded).backward()
    assert loss.isfinite() and [z.shape for z in outputs] == [z.shape for z in latents]
    used = [p for name, p in model.named_parameters() if p.grad is not None]
    assert all(p.grad.isfinite().all() and p.grad.any() for p in used)
    for part in (model.patchify, model.block, model.unpatchify, autoencoder.decoder):
        assert all(p.grad is not None for p in part.parameters())
    assert_separate(model, noisy, list(grids), levels, text, prediction)


def assert_separate(
    model: Model, noisy: Tensor, grids: list[Grid], levels: Tensor, text: list[Tensor], prediction: Tensor
) -> None:
    """Each sample alone gives the same prediction and gradient, to 1e-11."""
    weight = torch.randn_like(prediction)
    (grad,) = torch.autograd.grad(model(noisy, grids, levels, text), noisy, weight)
    start = 0
    for i, grid in enumerate(grids):
        where = slice(start, start := start + grid.tokens)
        piece = noisy.detach()[where].requires_grad_()
        alone = model(piece, [grid], levels[i : i + 1], text[i : i + 1])
        assert relative(prediction[where], alone) <= 1e-11
        assert relative(grad[where], torch.autograd.grad(alone, piece, weight[where])[0]) <= 1e-11


CONFIG = VideoDiTConfig(latent_channels=2, dim=32, depth=2, heads=4, text_dim=5, patch=(1, 1, 2), cond_dim=12)
GRIDS = [Grid(3, 2, 2), Grid(1, 1, 3), Grid(2, 3, 1)]


def video_dit(pattern: Pattern, backend: str, dtype: torch.dtype) -> VideoDiT:
    model = VideoDiT(CONFIG, dtype=dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, Attention):
            module.pattern = pattern
        if isinstance(module, Attention | CrossAttention):
            module.backend = backend
    return model


def indices(which: list[int]) -> tuple[LayoutIndex, LayoutIndex]:
    layout = TokenLayout.packed([GRIDS[i] for i in which])
    return layout.on("cpu"), TokenLayout.packed([None] * len(which), [TEXT[i] for i in which]).on("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])  # no other has such gradients on a CPU
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_video_dit_packed_equals_separate(pattern: str, backend: str, dtype: torch.dtype) -> None:
    """Outputs, and the gradients of patches, text and weights; other samples change no bit of a sample."""
    model, bound = video_dit(PATTERNS[pattern], backend, dtype), 1e-11 if dtype == torch.float64 else 1e-5
    layout, text_layout = indices([0, 1, 2])
    x, text = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((21, 4), (5, 5)))
    levels, weight = torch.tensor([0.1, 0.6, 0.9], dtype=dtype), torch.randn(21, 4, dtype=dtype)
    out = model(x, layout.rows(levels, "sample"), text, layout, text_layout)
    inputs = [x, text, *model.parameters()]
    grads = torch.autograd.grad(out, inputs, weight)
    total = [torch.zeros_like(y) for y in inputs]
    for i, (where, text_where) in enumerate(zip(spans(layout), spans(text_layout), strict=True)):
        one, one_text = indices([i])
        piece, words = x.detach()[where].requires_grad_(), text.detach()[text_where].requires_grad_()
        alone = model(piece, one.rows(levels[i : i + 1], "sample"), words, one, one_text)
        assert relative(out[where], alone) <= bound
        mine = torch.autograd.grad(alone, [piece, words, *model.parameters()], weight[where])
        total[0][where], total[1][text_where] = mine[0], mine[1]
        for sum_, grad in zip(total[2:], mine[2:], strict=True):
            sum_ += grad
    scale = max(float(g.norm()) for g in total)
    assert all(
        float((a - b).norm()) <= bound * max(float(b.norm()), 1e-3 * scale) for a, b in zip(grads, total, strict=True)
    )
    with torch.no_grad():
        before = model(x, layout.rows(levels, "sample"), text, layout, text_layout)
        moved = torch.where((layout.sample == 0)[:, None], 3 - 2 * x, x)
        after = model(moved, layout.rows(levels, "sample"), text, layout, text_layout)
    assert torch.equal(after[12:], before[12:]) and not torch.equal(after[:12], before[:12])


def spans(index: LayoutIndex) -> list[slice]:
    return [slice(start, start + length) for start, length in index.table[:, :2].tolist()]
