"""Tiny random text models of transformers, and word-level tokenizers for them: each family's special tokens, no files.

The words are ``a red green dog cat runs``; any other is ``<unk>``. Special tokens stand where the family has them: T5
ends a prompt, Llama begins it, CLIP and BERT do both.
"""

from typing import Any

import torch
from parity import randomise
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "red", "green", "dog", "cat", "runs")
SPECIAL = {"pad": 0, "eos": 1, "unk": 2, "bos": 3}
VOCABULARY = {**{f"<{name}>": i for name, i in SPECIAL.items()}, **{word: 4 + i for i, word in enumerate(WORDS)}}
# CLIP's end of text has the highest number, which its pooling counts on, and pads too
CLIP_VOCABULARY = {"<bos>": 0, "<unk>": 1, **{word: 2 + i for i, word in enumerate(WORDS)}, "<eos>": 2 + len(WORDS)}
FORMS = {"t5": "$A <eos>", "umt5": "$A <eos>", "llama": "<bos> $A", "clip": "<bos> $A <eos>", "bert": "<bos> $A <eos>"}
FAMILIES = tuple(FORMS)


def tokenizer(family: str, *, pad: bool = True, **options: Any) -> Any:
    """A word-level tokenizer with the family's special tokens; ``options`` are transformers' (``padding_side``)."""
    vocabulary = CLIP_VOCABULARY if family == "clip" else VOCABULARY
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, vocabulary[name]) for name in ("<bos>", "<eos>")]
    made.post_processor = processors.TemplateProcessing(single=FORMS[family], special_tokens=special)
    if pad:
        options["pad_token"] = "<eos>" if family == "clip" else "<pad>"
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", **options
    )


def model(family: str, *, projection: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """The family's encoder with random weights, 16 wide, 3 layers (CLIP's and BERT's with 12 positions)."""
    t5 = {"vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    flat = {
        "vocab_size": 10, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    }  # fmt: skip
    clip = {**flat, "vocab_size": 9, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 8}
    made: Any
    match family:
        case "t5":
            made = T5EncoderModel(T5Config(**t5, feed_forward_proj="gated-gelu"))
        case "umt5":
            made = UMT5EncoderModel(UMT5Config(**t5))
        case "llama":
            made = LlamaModel(LlamaConfig(**flat, num_key_value_heads=1))
        case "bert":
            made = BertModel(BertConfig(**flat, max_position_embeddings=12))
        case "clip":
            kind = CLIPTextModelWithProjection if projection else CLIPTextModel
            made = kind(CLIPTextConfig(**clip, projection_dim=6, pad_token_id=8))
    return randomise(made).to(dtype)
