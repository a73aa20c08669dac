"""Any patchifier with any block, path and autoencoder: one way from video to loss, forward and backward."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.diffusion import VP, Process, RectifiedFlow
from tubelet.layout import TokenLayout
from tubelet.mlp import MLP, SwiGLU
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.patchify import Patchify, Unpatchify, fold, grid_of
from tubelet.positions import LearnedPositions, Rope3d, SinCos3d
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

DIM, CHANNELS = 32, 4
PATCHES = [(1, 1, 1), (1, 2, 2), (2, 1, 2)]
AUTOENCODERS = {
    "causal 4x8x8": CausalAutoencoderConfig(latent_channels=CHANNELS, widths=(8, 8), depths=(1, 1)),
    "causal 2x4x4": CausalAutoencoderConfig(latent_channels=CHANNELS, widths=(8,), depths=(1,), temporal=2, spatial=4),
}
PROCESSES = {
    "flow": Process(path=RectifiedFlow()),
    "vp eps": Process(path=VP.linear(), prediction="eps"),
    "vp v": Process(path=VP.cosine(), prediction="v"),
}


def adaln() -> TransformerBlock:
    attention = Branch(
        Attention(DIM, 2, qk_norm=RMSNorm),
        LayerNorm(DIM, affine=False),
        modulation=AdaLNZero(DIM, DIM),
        takes=["layout", "rope"],
    )
    return TransformerBlock([attention, Branch(MLP(DIM), LayerNorm(DIM, affine=False), modulation=AdaLNZero(DIM, DIM))])


def plain() -> TransformerBlock:
    attention = Branch(Attention(DIM, 2, kv_heads=1), RMSNorm(DIM), post_norm=RMSNorm(DIM), takes=["layout"])
    return TransformerBlock([attention, Branch(SwiGLU(DIM, 2 * DIM), RMSNorm(DIM))])


def shared() -> TransformerBlock:
    """One modulation for the block, norms across heads, gates alone on the MLP."""
    attention = Branch(
        Attention(DIM, 2, qk_norm=LayerNorm, across_heads=True),
        LayerNorm(DIM, affine=False),
        modulation=ModulationSlice(DIM, 0),
        takes=["layout", "rope"],
    )
    mlp = Branch(MLP(DIM), RMSNorm(DIM), modulation=ModulationSlice(DIM, 3, parts=1), parts=["gate"], gate=torch.tanh)
    return TransformerBlock([attention, mlp], AdaLNZero(DIM, DIM, parts=4))


BLOCKS = {"adaln": adaln, "plain": plain, "shared": shared}
POSITIONS = {"sincos": lambda: SinCos3d(DIM), "learned": lambda: LearnedPositions((8, 8, 8), DIM)}


def pairwise(*axes: list[str]) -> list[tuple[str, ...]]:
    """A few combinations in which every pair of choices of every two axes occurs."""
    wanted = {(i, a, j, b) for (i, xs), (j, ys) in itertools.combinations(enumerate(axes), 2) for a in xs for b in ys}
    chosen = []
    while wanted:
        best = max(itertools.product(*axes), key=lambda case: len(wanted & pairs(case)))
        chosen.append(best)
        wanted -= pairs(best)
    return chosen


def pairs(case: tuple[str, ...]) -> set[tuple[int, str, int, str]]:
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(case), 2)}


CASES = pairwise([str(p) for p in PATCHES], list(BLOCKS), list(POSITIONS), list(PROCESSES), list(AUTOENCODERS))


def test_the_cases_are_few_and_pairwise() -> None:
    assert len(CASES) <= 12 and {a for case in CASES for a in case} >= {*BLOCKS, *POSITIONS, *PROCESSES, *AUTOENCODERS}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_from_video_to_loss_and_back(case: tuple[str, ...]) -> None:
    patch = next(p for p in PATCHES if str(p) == case[0])
    block, positions, process = BLOCKS[case[1]](), POSITIONS[case[2]](), PROCESSES[case[3]]
    autoencoder = CausalAutoencoder(AUTOENCODERS[case[4]])
    patchify, unpatchify, time = (
        Patchify(patch, CHANNELS, DIM),
        Unpatchify(patch, CHANNELS, DIM),
        TimestepEmbedding(DIM),
    )
    modules = nn.ModuleList([patchify, block, unpatchify, time])
    for parameter in modules.parameters():
        nn.init.normal_(parameter, std=0.2)
    z = autoencoder.encode(torch.rand(2, 1, 13, 16, 16) * 2 - 1).sample(torch.Generator().manual_seed(0))
    z = z[:, :, : z.shape[2] // patch[0] * patch[0]]
    grid = grid_of(z.shape[1:], patch)
    index = TokenLayout.dense(2, grid).on("cpu")
    t = index.rows(torch.tensor([0.2, 0.7]), "sample")
    x0, noise = fold(z, patch), torch.randn_like(fold(z, patch))

    def predict(noisy: Tensor, where: object) -> Tensor:
        tokens = patchify(noisy) + positions(index.coords)
        context = {"layout": where, "rope": Rope3d(DIM // 2)(index.coords)}
        tokens = block(tokens, t.map(lambda level: time(1000 * level)), context)
        return unpatchify(tokens, grid)

    noisy = process.noise(z, torch.randn_like(z), t)
    prediction = predict(noisy, index)
    loss = process.loss(fold(prediction, patch), x0, noise, t)
    decoded = autoencoder.decode(autoencoder.unscale(prediction))
    (loss + decoded.square().mean()).backward()
    assert prediction.shape == z.shape and loss.isfinite()
    used = [p for name, p in modules.named_parameters() if p.grad is not None]
    assert all(p.grad.isfinite().all() and p.grad.any() for p in used)
    assert all(p.grad is not None for m in (patchify, unpatchify, block) for p in m.parameters())
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())
    # the samples of the batch do not meet anywhere on the way
    changed = noisy.detach().clone()
    changed[1] += 1
    assert torch.allclose(predict(changed, index)[0], prediction[0], rtol=1e-4, atol=1e-4)
