"""The smallest text encoder, for closed vocabularies, trained along with the denoiser.

A learned vector per word plus a learned vector per position (the input layer of BERT, Devlin et al. 2018,
arXiv:1810.04805). The empty prompt becomes one learned *null* token: the unconditional input of classifier-free
guidance (Ho & Salimans 2022, arXiv:2207.12598).
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.protocols import TextTokens

__all__ = ["WordEncoder", "WordEncoderConfig", "WordTokenizer"]

_MARK = "\u0300"  # stands for any combining mark, none of which the pattern's \w matches
_WORD = re.compile(rf"\w[\w{_MARK}]*(?:['\u2019-]\w[\w{_MARK}]*)*")
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class WordTokenizer:
    """A closed vocabulary of lower-case words.

    Text is lower-cased, composed (Unicode's NFC) and cut into words; a word is a run of letters with their combining
    marks, digits and underscores, joined inside by hyphens or apostrophes. Punctuation and space only separate. A word
    outside the vocabulary is an error, never a silent placeholder.

    Args:
        words: the vocabulary; a word's id is its place here.

    Raises:
        ValueError: a word that is repeated, or is not exactly one lower-case word.

    Example:
        >>> tokenizer = WordTokenizer.fit(["a seven drifting left", "a two"])
        >>> tokenizer.words
        ('a', 'drifting', 'left', 'seven', 'two')
        >>> tokenizer.encode("A two, drifting left!")
        (0, 4, 1, 2)
        >>> tokenizer.encode("a sevn")
        Traceback (most recent call last):
        ...
        ValueError: unknown words in the prompt 'a sevn': 'sevn' (did you mean 'seven'?)
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for place, word in enumerate(self.words):
            if split_words(word) != [word]:
                raise ValueError(f"words[{place}] is {word!r}, which is not one lower-case word")
        if len(set(self.words)) != len(self.words):
            repeated = sorted(word for word in set(self.words) if self.words.count(word) > 1)
            raise ValueError(f"words repeats {', '.join(map(repr, repeated))}")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @classmethod
    def fit(cls, captions: Iterable[str]) -> "WordTokenizer":
        """The vocabulary of all words in ``captions``, sorted, so that the order of captions does not matter."""
        return cls(tuple(sorted({word for caption in captions for word in split_words(caption)})))

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Word ids of ``prompt``; empty when it holds no word.

        Raises:
            ValueError: words outside the vocabulary; all are listed, each with known words close to it.
        """
        words = split_words(prompt)
        unknown = [word for word in dict.fromkeys(words) if word not in self._ids]
        if unknown:
            raise ValueError(f"unknown words in the prompt {prompt!r}: {'; '.join(map(self._suggest, unknown))}")
        return tuple(self._ids[word] for word in words)

    def _suggest(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.words, n=3, cutoff=0.5)
        if close:
            return f"{word!r} (did you mean {' or '.join(map(repr, close))}?)"
        if len(self.words) <= 40:
            return f"{word!r} (known words: {', '.join(self.words)})"
        return f"{word!r} (nothing close among {len(self.words)} known words)"

    def decode(self, ids: Iterable[int]) -> str:
        """The words of ``ids`` joined by spaces."""
        return " ".join(self.words[place] for place in ids)

    def to_dict(self) -> dict[str, object]:
        """A value for JSON that :meth:`from_dict` reads back."""
        return {"_class": type(self).__name__, "format_version": _FORMAT_VERSION, "words": list(self.words)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "WordTokenizer":
        """The tokenizer that :meth:`to_dict` described.

        Raises:
            ValueError: missing or unknown keys, another class or version, or words that are no list of strings.
        """
        expected = {"_class": cls.__name__, "format_version": _FORMAT_VERSION}
        if set(values) != {*expected, "words"}:
            raise ValueError(f"a {cls.__name__} has the keys {sorted([*expected, 'words'])}, got {sorted(values)}")
        for key, value in expected.items():
            if values[key] != value:
                raise ValueError(f"{key} must be {value!r}, got {values[key]!r}")
        words = values["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"words must be a list of strings, got {words!r}")
        return cls(tuple(words))


def split_words(text: str) -> list[str]:
    """Lower-case words of ``text`` in order, as :class:`WordTokenizer` counts them."""
    text = unicodedata.normalize("NFC", text.lower())
    marked = text if text.isascii() else "".join(_MARK if _is_mark(letter) else letter for letter in text)
    return [text[word.start() : word.end()] for word in _WORD.finditer(marked)]


def _is_mark(letter: str) -> bool:
    """Accents that no letter of their own holds, vowel signs of Indic scripts, vowel points and the like."""
    return unicodedata.category(letter) in ("Mn", "Mc")


@dataclass(frozen=True, kw_only=True)
class WordEncoderConfig:
    """What a :class:`WordEncoder` is made of.

    Args:
        words: the vocabulary, see :class:`WordTokenizer`.
        dim: width d of a token.
        max_length: the most words a prompt may have.

    Raises:
        ValueError: ``dim`` or ``max_length`` below 1, or a bad vocabulary.

    Example:
        >>> WordEncoderConfig(words=("a", "seven"), dim=16).max_length
        32
    """

    words: tuple[str, ...]
    dim: int
    max_length: int = 32

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dim), ("max_length", self.max_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        WordTokenizer(self.words)


class WordEncoder(nn.Module):
    """Word vectors plus position vectors; a prompt without words is one learned null token.

    ``token[i] = embed[word[i]] + position[i]``; the null token is ``embed[0]`` alone (words start at row 1). Word and
    null vectors start as N(0, 1), positions as N(0, 0.02^2), so that it begins as a bag of words of unit variance.

    Args:
        config: vocabulary and sizes.
        device: where the parameters live.
        dtype: their type.

    Example:
        >>> encoder = WordEncoder(WordEncoderConfig(words=("a", "left", "seven"), dim=16))
        >>> tokens, lengths = encoder(["a seven", ""])
        >>> tokens.shape, lengths
        (torch.Size([3, 16]), (2, 1))
        >>> bool((tokens[2] == encoder.null).all())
        True
    """

    def __init__(
        self, config: WordEncoderConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = WordTokenizer(config.words)
        self.embed = nn.Embedding(1 + len(config.words), config.dim, device=device, dtype=dtype)
        self.position = nn.Embedding(config.max_length, config.dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the word and position vectors anew."""
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.position.weight, std=0.02)

    @property
    def null(self) -> Float[Tensor, " d"]:
        """The token of the empty prompt."""
        return self.embed.weight[0]

    def forward(self, prompts: Sequence[str]) -> TextTokens:
        """Encode prompts.

        Args:
            prompts: any number of texts, at least one; one without words, such as ``""``, becomes the null token.

        Returns:
            ``tokens (n, d)`` and per prompt its number of words (1 for the null token).

        Raises:
            ValueError: no prompts, unknown words, or more words than ``max_length``.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of texts, got one text: {prompts!r}")
        if not prompts:
            raise ValueError("prompts is empty: at least one prompt is needed")
        ids = [self._ids(prompt) for prompt in prompts]
        rows = torch.tensor([row for prompt in ids for row in prompt], device=self.embed.weight.device)
        places = torch.tensor([place for prompt in ids for place in range(len(prompt))], device=rows.device)
        words: Float[Tensor, "n d"] = self.embed(rows)
        positions: Float[Tensor, "n d"] = self.position(places)
        tokens = torch.where((rows > 0)[:, None], words + positions, words)
        return TextTokens(tokens, tuple(map(len, ids)))

    if TYPE_CHECKING:

        def __call__(self, prompts: Sequence[str]) -> TextTokens: ...

    def _ids(self, prompt: str) -> list[int]:
        ids = [1 + place for place in self.tokenizer.encode(prompt)]
        if len(ids) > self.config.max_length:
            raise ValueError(
                f"the prompt {prompt!r} has {len(ids)} words, more than max_length {self.config.max_length}"
            )
        return ids or [0]
