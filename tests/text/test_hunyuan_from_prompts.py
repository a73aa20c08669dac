"""HunyuanVideo from prompts: Llama's tokens and CLIP's vector into the transformer, as diffusers does it all."""

from types import SimpleNamespace

import hunyuans
import tiny_text
import torch
from diffusers import HunyuanVideoPipeline
from parity import error

from tubelet.hub import from_diffusers
from tubelet.layout import TokenLayout
from tubelet.patchify import fold
from tubelet.text import TransformersEncoder

PROMPTS = ["a red dog", ""]
TEMPLATE = "a green cat {} runs"


def test_hunyuan_from_prompts_is_diffusers_from_prompts() -> None:
    """The peer's prompts lie in padded rows under a mask, ours end to end; and each sample is what it is alone."""
    llama, words = tiny_text.model("llama", dtype=torch.float32), tiny_text.tokenizer("llama")
    clip, clip_words = tiny_text.model("clip", dtype=torch.float32), tiny_text.tokenizer("clip")
    self = SimpleNamespace(
        text_encoder=llama, tokenizer=words, text_encoder_2=clip, tokenizer_2=clip_words,
        _execution_device=torch.device("cpu"),
    )  # fmt: skip
    theirs = hunyuans.peer("text", text_embed_dim=16, pooled_projection_dim=16)
    question = hunyuans.question(theirs)
    framed = {"template": TEMPLATE, "crop_start": 4}
    rows, mask = HunyuanVideoPipeline._get_llama_prompt_embeds(self, PROMPTS, framed, max_sequence_length=7)
    question.text, question.lengths = rows, tuple(mask.sum(1).tolist())
    question.pooled = HunyuanVideoPipeline._get_clip_prompt_embeds(self, PROMPTS, max_sequence_length=12)
    expected = question.theirs(theirs)

    ours = from_diffusers({"_class_name": "HunyuanVideoTransformer3DModel", **theirs.config}, theirs.state_dict())
    text = TransformersEncoder(llama, words, layer=-3, template=TEMPLATE, max_length=7, truncate=True)(PROMPTS)
    pooled = TransformersEncoder(clip, clip_words, truncate=True).pooled(PROMPTS)
    patches = fold(question.latents.float(), question.patch)
    layout = TokenLayout.packed([question.grid] * 2)
    t = layout.rows(question.time.double() / 1000, "sample")
    with torch.no_grad():
        found = ours(patches.flatten(0, 1), t, text.tokens, layout, text.layout, pooled)
    assert error(found.view_as(patches), fold(expected, question.patch)) <= 1e-5
