"""Pretrained encoders in front of whole models: the pipeline, Wan as diffusers runs it, text of two encoders."""

from collections.abc import Sequence
from types import SimpleNamespace

import tiny_text
import torch
import wans
from diffusers import WanPipeline, WanTransformer3DModel
from parity import error, randomise
from torch import Tensor, nn

from tubelet.attention import Attention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, TimestepEmbedding
from tubelet.hub import from_diffusers
from tubelet.layout import Grid, TokenLayout
from tubelet.models import VideoDiT, VideoDiTConfig, pad_prompts
from tubelet.norms import LayerNorm
from tubelet.pipeline import TextToVideo, generate
from tubelet.recipe import LatentSet, Recipe, train_denoiser
from tubelet.text import TransformersEncoder
from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig

PROMPTS = ["a red dog runs", "", "cat"]


def encoder(family: str, dtype: torch.dtype = torch.float64, **options: object) -> TransformersEncoder:
    return TransformersEncoder(tiny_text.model(family, dtype=dtype), tiny_text.tokenizer(family), **options)


def system() -> TextToVideo:
    vae = CausalAutoencoder(CausalAutoencoderConfig(latent_channels=4, widths=(8, 8), depths=(1, 1)))
    dit = VideoDiT(VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=16))
    return TextToVideo(vae, encoder("umt5", torch.bfloat16), randomise(dit))


def test_the_pipeline_samples_with_any_encoder() -> None:
    """Each video as alone; the prompt matters; the encoder's dtype is its own."""
    model, sizes = system(), [(5, 16, 16), (1, 16, 16), (5, 16, 24)]
    together = generate(model, PROMPTS, sizes, [0, 1, 2], steps=2)
    for i, video in enumerate(together):
        (alone,) = generate(model, PROMPTS[i : i + 1], sizes[i : i + 1], [i], steps=2)
        torch.testing.assert_close(video, alone, rtol=1e-3, atol=1e-3)
    (other,) = generate(model, ["dog"], sizes[:1], [0], steps=2)
    assert (other - together[0]).abs().max() > 1e-2


def test_training_leaves_the_encoder_alone() -> None:
    model = system()
    assert set(model.parts()) == {"vae", "denoiser"}
    assert isinstance(model.text, TransformersEncoder)
    before = {name: value.clone() for name, value in model.text.model.state_dict().items()}
    start = model.denoiser.embed.weight.detach().clone()
    data = LatentSet(tuple(torch.randn(4, 1, 2, 2) for _ in range(3)), tuple(PROMPTS))
    train_denoiser(model, data, Recipe(vae_steps=1, steps=2, budget=12))
    assert not torch.equal(model.denoiser.embed.weight, start)
    assert all(torch.equal(value, before[name]) for name, value in model.text.model.state_dict().items())


def test_wan_from_prompts_is_diffusers_from_prompts() -> None:
    """Prompts through UMT5 and the transformer, ours packed with zeros behind them, the peer's in padded rows."""
    tokens, model, tokenizer = 9, tiny_text.model("umt5", dtype=torch.float32), tiny_text.tokenizer("umt5")
    config = {**wans.peer("text").config, "text_dim": 16}
    theirs = randomise(WanTransformer3DModel.from_config(config))
    parts = SimpleNamespace(text_encoder=model, tokenizer=tokenizer, _execution_device=torch.device("cpu"))
    prompts = PROMPTS[:2]
    rows = WanPipeline._get_t5_prompt_embeds(parts, prompts, max_sequence_length=tokens)
    question = wans.question("text", theirs)
    question.text = rows
    ours = from_diffusers({"_class_name": "WanTransformer3DModel", **theirs.config}, theirs.state_dict())
    text = TransformersEncoder(model, tokenizer, max_length=tokens, truncate=True)(prompts)
    padded, layout = pad_prompts(text.tokens, text.layout, tokens)
    found = question.ours(ours, text=padded, text_layout=layout)
    assert error(found, question.theirs(theirs)) <= 1e-5
    unpadded = question.ours(ours, text=text.tokens, text_layout=text.layout)
    assert error(unpadded, found) > 1e-2  # the zeros count


class TwoEncoders(nn.Module):
    """The way of HunyuanVideo's text in little: tokens join the video's attention, the pooled vector its modulation."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.pooled = TimestepEmbedding(16), nn.Linear(16, 16)
        modulation = AdaLNZero(16, 16, parts=3)
        attention = Branch(Attention(16, 2), LayerNorm(16, affine=False), modulation=modulation, takes=("layout",))
        self.block = TransformerBlock([attention])

    def forward(self, videos: Sequence[Tensor], levels: Tensor, text: Sequence[Tensor], pooled: Tensor) -> Tensor:
        grids = [Grid(2, 1, len(video) // 2) for video in videos]
        layout = TokenLayout.packed(grids, [len(tokens) for tokens in text]).on("cpu")
        x = torch.cat([part for pair in zip(text, videos, strict=True) for part in pair])
        rows = layout.add_per_sample(layout.rows(levels, "frame").map(self.time), self.pooled(pooled))
        out: Tensor = self.block(x, rows, {"layout": layout})
        return out


def test_tokens_of_one_encoder_and_the_vector_of_another() -> None:
    """Llama's cropped third state from the end and CLIP's pooled state, packed = each sample alone."""
    llama = encoder("llama", layer=-3, template="a red dog {} runs", max_length=8)
    clip = encoder("clip")
    text, pooled = llama(PROMPTS), clip.pooled(PROMPTS)
    assert (llama.crop, text.lengths, pooled.shape) == (4, (5, 1, 2), (3, 16))
    model = randomise(TwoEncoders()).double()
    videos = [torch.randn(n, 16, dtype=torch.float64) for n in (4, 6, 2)]
    levels = torch.rand(9, dtype=torch.float64)  # a row for each sample's text and two frames
    parts = text.tokens.split(text.lengths)
    together = model(videos, levels, parts, pooled)
    sizes = [n + len(video) for n, video in zip(text.lengths, videos, strict=True)]
    for i, found in enumerate(together.split(sizes)):
        one = llama(PROMPTS[i : i + 1])
        alone = model(videos[i : i + 1], levels[3 * i :][:3], [one.tokens], clip.pooled(PROMPTS[i : i + 1]))
        assert error(found, alone) <= 1e-11
    swapped = model(videos, levels, parts, pooled.flip(0))
    assert error(swapped, together) > 1e-2
