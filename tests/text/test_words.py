"""The word tokenizer and encoder: exact ids, exact sums of table rows, and errors a person can act on."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.layout import TokenLayout
from tubelet.protocols import TextEncoder, TextTokens
from tubelet.text import WordEncoder, WordEncoderConfig, WordTokenizer
from tubelet.text.words import split_words

WORDS = ("a", "drifting", "left", "seven", "two")


def make_encoder(max_length: int = 6) -> WordEncoder:
    return WordEncoder(WordEncoderConfig(words=WORDS, dim=8, max_length=max_length), dtype=torch.float64)


def test_vocabulary_is_sorted_lower_case_and_complete() -> None:
    tokenizer = WordTokenizer.fit(["A Seven drifting LEFT.", "it's state-of-the-art, Zürich 2x"])
    assert tokenizer.words == ("2x", "a", "drifting", "it's", "left", "seven", "state-of-the-art", "zürich")


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from([" ", ", ", "  \n", "! "]))
def test_encode_and_decode_are_inverse(words: list[str], separator: str) -> None:
    tokenizer = WordTokenizer(WORDS)
    ids = tokenizer.encode(separator.join(words).upper())
    assert [WORDS[i] for i in ids] == words
    assert tokenizer.decode(ids) == " ".join(words)


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_captions_make_a_tokenizer_that_encodes_them(captions: list[str]) -> None:
    tokenizer = WordTokenizer.fit(captions)
    restored = WordTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert restored == tokenizer
    for caption in captions:
        assert restored.encode(caption) == tokenizer.encode(caption)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],
        ),
        ("x\u0302-ray q\u0307's", ["x\u0302-ray", "q\u0307's"]),
        ("\u0e2b\u0e21\u0e39", ["\u0e2b\u0e21\u0e39"]),
        ("\u0130zmir", ["i\u0307zmir"]),
        ("\u0301 a", ["a"]),
    ],
)
def test_combining_marks_stay_with_their_letters(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert WordTokenizer.fit([text]).words == tuple(sorted(set(words)))


def test_composed_and_decomposed_prompts_are_one() -> None:
    tokenizer = WordTokenizer.fit(["Zu\u0308rich caf\u00e9"])
    assert tokenizer.encode("z\u00fcrich cafe\u0301") == tokenizer.encode("Zu\u0308rich caf\u00e9")


def test_unknown_words_are_all_named_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'sevn' \(did you mean 'seven'\?\); 'qqqqq' \(known words: a, drifting"):
        WordTokenizer(WORDS).encode("a sevn sevn qqqqq")
    many = WordTokenizer(tuple(f"w{i:03}" for i in range(50)))
    with pytest.raises(ValueError, match=r"'qqqqq' \(nothing close among 50 known words\)"):
        many.encode("qqqqq")


@pytest.mark.parametrize("words", [("a", "a"), ("Seven",), ("two words",), ("",), ("left!",)])
def test_bad_vocabularies(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="words"):
        WordTokenizer(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"got \['_class', 'extra', 'format_version', 'words'\]"),
        ({"_class": "Other"}, "_class must be 'WordTokenizer', got 'Other'"),
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"words": "a b"}, "words must be a list of strings, got 'a b'"),
        ({"words": ["a", 1]}, "words must be a list of strings"),
        ({"words": ["a", "a"]}, "words repeats 'a'"),
    ],
)
def test_from_dict_is_strict(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordTokenizer.from_dict(WordTokenizer(WORDS).to_dict() | change)
    with pytest.raises(ValueError, match="has the keys"):
        WordTokenizer.from_dict({"words": ["a"]})


def test_tokens_are_word_plus_position_and_lengths_are_compact() -> None:
    encoder = make_encoder()
    tokens, lengths = encoder(["a seven", "", "two drifting left"])
    embed, position = encoder.embed.weight, encoder.position.weight
    expected = torch.stack(
        [
            embed[1] + position[0],
            embed[4] + position[1],
            embed[0],
            embed[5] + position[0],
            embed[2] + position[1],
            embed[3] + position[2],
        ]
    )
    assert lengths == (2, 1, 3)
    assert torch.equal(tokens, expected)
    assert TokenLayout.packed([None] * 3, text_lengths=lengths).shape == (6,)


def test_a_prompt_encodes_the_same_alone_and_in_company() -> None:
    encoder = make_encoder()
    together = encoder(["a two", "left", ""])
    alone = [encoder([prompt]).tokens for prompt in ("a two", "left", "")]
    assert all(torch.equal(x, y) for x, y in zip(together.tokens.split(together.lengths), alone, strict=True))


def test_the_null_token_learns_and_is_touched_by_empty_prompts_only() -> None:
    encoder = make_encoder()
    encoder(["a two"]).tokens.sum().backward()
    assert encoder.embed.weight.grad is not None
    assert encoder.position.weight.grad is not None
    assert not encoder.embed.weight.grad[0].any()
    encoder.zero_grad()
    encoder(["", "..."]).tokens.sum().backward()
    assert encoder.embed.weight.grad is not None
    assert encoder.position.weight.grad is not None
    assert torch.equal(encoder.embed.weight.grad[0], torch.full((8,), 2.0, dtype=torch.float64))
    assert not encoder.embed.weight.grad[1:].any()
    assert not encoder.position.weight.grad.any()


def test_encoder_errors() -> None:
    encoder = make_encoder(max_length=2)
    with pytest.raises(ValueError, match="'a two left' has 3 words, more than max_length 2"):
        encoder(["a two left"])
    with pytest.raises(ValueError, match="prompts is empty"):
        encoder([])
    with pytest.raises(ValueError, match=r"'svn' .*did you mean 'seven'"):
        encoder(["a svn"])
    for bad in ({"dim": 0}, {"max_length": 0}, {"words": ("a", "a")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            WordEncoderConfig(**{"words": WORDS, "dim": 8} | bad)  # type: ignore[arg-type]


def test_initialisation_is_seeded_and_has_the_stated_spread() -> None:
    config = WordEncoderConfig(words=tuple(f"w{i}" for i in range(200)), dim=64, max_length=200)
    torch.manual_seed(0)
    first = WordEncoder(config)
    torch.manual_seed(0)
    second = WordEncoder(config)
    assert torch.equal(first.embed.weight, second.embed.weight)
    assert float(first.embed.weight.detach().std()) == pytest.approx(1, abs=0.03)
    assert float(first.position.weight.detach().std()) == pytest.approx(0.02, abs=0.001)


def test_meta_construction_dtype_and_copies() -> None:
    config = WordEncoderConfig(words=WORDS, dim=8)
    assert all(p.is_meta for p in WordEncoder(config, device="meta").parameters())
    half = WordEncoder(config, dtype=torch.bfloat16)
    assert half(["a"]).tokens.dtype == torch.bfloat16
    encoder = make_encoder()
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(["a two"]).tokens, encoder(["a two"]).tokens)
    assert dataclasses.asdict(config) == {"words": WORDS, "dim": 8, "max_length": 32}
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder(["a"]), TextTokens)
