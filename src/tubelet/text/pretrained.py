"""Frozen text models of the package ``transformers`` as text encoders: T5, UMT5, CLIP, Llama, BERT and their like.

What differs between the recipes of video models is how a prompt is framed, which state is read, and what becomes of
padding:

- Wan (UMT5), Mochi and Allegro (T5), Cosmos (T5): the last state under a mask, the padding dropped, which is the
  default; Wan and Cosmos then put zeros behind it, as :func:`tubelet.models.pad_prompts` does.
- CogVideoX and Open-Sora (T5): padding that the encoder sees as text and that is kept: ``pad_to``, ``keep_padding``.
  LTX-Video (T5): seen, then dropped: ``pad_to`` alone.
- HunyuanVideo: Llama's third state from the end inside a template whose beginning is cut off (``layer``, ``template``,
  ``crop``), and CLIP's pooled state (:meth:`TransformersEncoder.pooled`).

Shapes: ``n`` tokens of all prompts, ``d`` the model's width.
"""

import inspect
import itertools
import json
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.files import parsing, require
from tubelet.protocols import TextTokens

__all__ = ["TransformersEncoder", "load_text_model"]

States = tuple[Tensor, ...]
_UNLIMITED = 2**31  # tokenizers that know no limit say 10^30, which their truncation cannot hold


class _Encoded(NamedTuple):
    """One prompt: its tokens, and what the model pooled them to, if it does."""

    tokens: Float[Tensor, "m d"]
    pooled: Float[Tensor, " p"] | None


@final
class TransformersEncoder:
    """A text model and its tokenizer as a :class:`tubelet.protocols.TextEncoder`.

    The model is frozen and put in eval mode, and it is no submodule of what holds the encoder: state dicts, averages
    and optimisers do not see it. It runs where it lies, in its own dtype whatever autocast says, without gradients.
    Prompts run in chunks of similar length with padding behind them under a mask, whatever the tokenizer's
    ``padding_side``; each gets the tokens that it gets alone. Equal prompts run once.

    Args:
        model: from ``transformers``, without a head and without a decoder: ``T5EncoderModel``, ``UMT5EncoderModel``,
            ``CLIPTextModel``, ``CLIPTextModelWithProjection``, ``LlamaModel``, ``BertModel``...
        tokenizer: the model's own.
        layer: which state becomes the tokens. None: the last, behind the model's final norm. A number counts the states
            as ``output_hidden_states`` lists them, the embeddings first; -3 is HunyuanVideo's. A function of all these
            states, each ``(b, n, d)``, may add a norm or join several layers.
        template: a text around each prompt, which stands for ``{}``.
        crop: how many tokens to cut off the front. None: those that the template has before the prompt.
        max_length: the most tokens of a prompt, those cut off not counted. None: what the tokenizer and the model hold.
        truncate: cut longer prompts, where the tokenizer cuts them, instead of refusing them.
        pad_to: how many tokens each prompt is padded to, those cut off not counted, with padding that the model sees as
            text. None: padding is masked.
        keep_padding: keep the padding of ``pad_to`` as tokens.
        chunk: the most prompts that run at once.
        cache: how many prompts are remembered, the latest used ones. Sampling asks for the same at every step.

    Raises:
        ValueError: a model that has a decoder or does not read text, a tokenizer with more entries than the model has,
            a template without one ``{}``, or numbers that do not go together.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
        >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "dog": 1}, unk_token="<pad>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
        >>> encoder = TransformersEncoder(LlamaModel(LlamaConfig(vocab_size=2, **sizes)), tokenizer, layer=-3)
        >>> text = encoder(["dog", ""])
        >>> text.tokens.shape, text.lengths
        (torch.Size([1, 8]), (1, 0))
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        layer: int | Callable[[States], Tensor] | None = None,
        template: str = "{}",
        crop: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int | None = None,
        keep_padding: bool = False,
        chunk: int = 16,
        cache: int = 32,
    ) -> None:
        arguments = _check(model, tokenizer)
        if template.count("{}") != 1:
            raise ValueError(f"template must have one '{{}}' for the prompt, got {template!r}")
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.layer, self.template = tokenizer, layer, template
        self.truncate, self.pad_to, self.keep_padding = truncate, pad_to, keep_padding
        self.chunk, self.cache = chunk, cache
        self.crop = self._prefix() if crop is None else crop
        self.max_length = self._longest() if max_length is None else max_length
        self._check_numbers()
        self._options = {"output_hidden_states": layer is not None}
        if "use_cache" in arguments:  # keys and values for generating text, as much memory as the states
            self._options["use_cache"] = False
        self._remembered: dict[str, _Encoded] = {}

    def __call__(self, prompts: Sequence[str], callback: Callable[[int, int], object] | None = None) -> TextTokens:
        """The tokens of each prompt.

        Args:
            prompts: at least one; one that the tokenizer has no tokens for, as may be ``""``, gets none.
            callback: called after each chunk with how many prompts are done, of how many that had to run.

        Returns:
            ``tokens (n, d)`` in the dtype and on the device of the model, and how many belong to each prompt.

        Raises:
            ValueError: no prompts, one text instead of a list, a prompt longer than ``max_length``, a ``layer`` that
                the model does not have, or a model that gives no states.
        """
        encoded = self._encode(prompts, callback)
        return TextTokens(torch.cat([each.tokens for each in encoded]), tuple(len(each.tokens) for each in encoded))

    def pooled(
        self, prompts: Sequence[str], callback: Callable[[int, int], object] | None = None
    ) -> Float[Tensor, "b p"]:
        """One vector a prompt, as the model makes it.

        That is CLIP's state of the end of text, behind the projection for a model that has one, or BERT's pooler. What
        ``cache`` holds from a call for tokens is not computed again.

        Raises:
            ValueError: the model pools nothing, or as for tokens.
        """
        found = [each.pooled for each in self._encode(prompts, callback)]
        pooled = [vector for vector in found if vector is not None]
        if len(pooled) < len(found):
            raise ValueError(f"model {type(self.model).__name__} gives tokens, but no pooled vector")
        return torch.stack(pooled)

    def _encode(self, prompts: Sequence[str], callback: Callable[[int, int], object] | None) -> list[_Encoded]:
        """Each prompt, remembered or new; the shortest new ones run first, so that a chunk has little padding."""
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of texts, got one text: {prompts!r}")
        if not prompts:
            raise ValueError("prompts is empty: at least one prompt is needed")
        found = {prompt: self._remembered[prompt] for prompt in prompts if prompt in self._remembered}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        ids = self._ids(new)
        order = sorted(new, key=lambda prompt: len(ids[prompt]))
        for start in range(0, len(order), self.chunk):
            part = order[start : start + self.chunk]
            found.update(zip(part, self._run([ids[prompt] for prompt in part]), strict=True))
            if callback is not None:
                callback(start + len(part), len(order))
        self._remember({prompt: found[prompt] for prompt in prompts})
        return [found[prompt] for prompt in prompts]

    def _ids(self, prompts: Sequence[str]) -> dict[str, list[int]]:
        """The token numbers of each prompt in its template, without padding."""
        if not prompts:
            return {}
        limit = self.crop + self.max_length
        cut: Mapping[str, Any] = {"truncation": True, "max_length": limit} if self.truncate else {}
        texts = [self.template.replace("{}", prompt) for prompt in prompts]
        ids = dict(zip(prompts, self.tokenizer(texts, verbose=False, **cut)["input_ids"], strict=True))
        for prompt, row in ids.items():
            if len(row) > limit:
                raise ValueError(
                    f"the prompt {reprlib.repr(prompt)} has {len(row) - self.crop} tokens, more than "
                    f"max_length={self.max_length}; truncate=True cuts it"
                )
        return ids

    @torch.no_grad()
    def _run(self, ids: Sequence[Sequence[int]]) -> list[_Encoded]:
        """Token numbers through the model, in one batch."""
        device = self.model.device
        width = max(1, *map(len, ids)) if self.pad_to is None else self.crop + self.pad_to
        padding = self.tokenizer.pad_token_id or 0  # masked or checked: no model sees a 0 that stands for nothing
        rows = torch.tensor([[*row, *[padding] * (width - len(row))] for row in ids], device=device)
        seen = [len(row) if self.pad_to is None else width for row in ids]
        mask = torch.arange(width, device=device) < torch.tensor(seen, device=device)[:, None]
        with torch.autocast(device.type, enabled=False):
            output = self.model(input_ids=rows, attention_mask=mask.long(), **self._options)
            states = self._states(output)
        pooled = output.get("text_embeds", output.get("pooler_output"))
        kept = [width if self.keep_padding else len(row) for row in ids]
        return [  # copies: a slice would keep its whole chunk alive in the cache
            _Encoded(states[i, self.crop : end].clone(), None if pooled is None else pooled[i].clone())
            for i, end in enumerate(kept)
        ]

    def _states(self, output: Any) -> Float[Tensor, "b n d"]:
        """What ``layer`` asks for."""
        name = type(self.model).__name__
        hidden: States | None = output.get("hidden_states")
        if self.layer is None:
            last: Tensor | None = output.get("last_hidden_state")
            if last is None:
                raise ValueError(
                    f"model {name} gives no last_hidden_state: take the model below its head, or say layer="
                )
            return last
        if hidden is None:
            raise ValueError(f"layer={self.layer}, but model {name} gives no hidden states")
        if not isinstance(self.layer, int):
            return self.layer(hidden)
        if not -len(hidden) <= self.layer < len(hidden):
            raise ValueError(f"layer={self.layer}, but model {name} gives {len(hidden)} states")
        return hidden[self.layer]

    def _remember(self, encoded: Mapping[str, _Encoded]) -> None:
        """Put what was used last behind the rest, and drop the oldest."""
        for prompt in encoded:
            self._remembered.pop(prompt, None)
        self._remembered.update(encoded)
        while len(self._remembered) > self.cache:
            del self._remembered[next(iter(self._remembered))]

    def _prefix(self) -> int:
        """How many tokens the template has before its prompt: what all that may follow leaves as it is."""
        if self.template == "{}":
            return 0
        head = self.template.split("{}")[0]
        texts = [head, *(self.template.replace("{}", fill) for fill in ("a", "1", "?"))]
        columns = zip(*self.tokenizer(texts, verbose=False)["input_ids"], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

    def _positions(self) -> int:
        """How many tokens the model has positions for."""
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return positions or _UNLIMITED

    def _longest(self) -> int:
        """The longest prompt that nothing speaks against."""
        held: int = min(self.tokenizer.model_max_length, self._positions(), _UNLIMITED) - self.crop
        return held if self.pad_to is None else min(held, self.pad_to)

    def _check_numbers(self) -> None:
        least = {"crop": 0, "max_length": 1, "pad_to": 1, "chunk": 1, "cache": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        if self.pad_to is None and self.keep_padding:
            raise ValueError("keep_padding=True needs padding: say pad_to")
        if self.pad_to is not None and self.tokenizer.pad_token_id is None:
            raise ValueError(f"pad_to={self.pad_to}, but the tokenizer has no pad_token to pad with: set one")
        if self.pad_to is not None and self.max_length > self.pad_to:
            raise ValueError(f"max_length={self.max_length} is more than pad_to={self.pad_to}")
        longest = self.crop + max(self.max_length, self.pad_to or 0)
        if longest > self._positions():
            raise ValueError(f"prompts of up to {longest} tokens, but the model has {self._positions()} positions")


def load_text_model(
    folder: str | os.PathLike[str],
    model: str = "text_encoder",
    tokenizer: str = "tokenizer",
    *,
    cls: type[nn.Module] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """A text model and its tokenizer from a local folder in the form of the Hugging Face Hub.

    Weights are safetensors, and no code of the folder runs. ``TransformersEncoder(*load_text_model(folder))`` makes the
    encoder.

    Args:
        folder: of a whole pipeline, such as a snapshot of Wan, or of the model alone.
        model: the subfolder of the weights, ``"text_encoder_2"``, say; ``""`` is the folder itself.
        tokenizer: the subfolder of the tokenizer.
        cls: which class of ``transformers`` to build. None: the one that ``config.json`` names.
        device: where the weights go; the CPU by default.
        dtype: of the weights; None keeps the files'.

    Returns:
        The model, in eval mode, and the tokenizer.

    Raises:
        FileNotFoundError: there is no such folder, or no ``config.json`` in it.
        ImportError: ``transformers`` is not installed.
        ValueError: the config names no class of ``transformers``, or the files lack weights that the class has.

    Example:
        >>> load_text_model("snapshots/Wan2.1")
        Traceback (most recent call last):
        ...
        FileNotFoundError: snapshots/Wan2.1/text_encoder holds no config.json
    """
    weights, words = Path(folder) / model, Path(folder) / tokenizer
    for path, name in ((weights, "config.json"), (words, "tokenizer_config.json")):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}")
    transformers = require("transformers", extra="text", use="encoding text by a pretrained model")
    kind: Any = _named(weights / "config.json") if cls is None else cls
    local = {"local_files_only": True, "trust_remote_code": False}
    dtypes = {} if dtype is None else {"dtype": dtype}
    made, report = kind.from_pretrained(weights, use_safetensors=True, output_loading_info=True, **local, **dtypes)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{weights} lacks {len(missing)} weights of {kind.__name__}: {missing[0]}, ...")
    return made.to(device or "cpu").eval(), transformers.AutoTokenizer.from_pretrained(words, **local)


def _named(path: Path) -> type[nn.Module]:
    """The class that a config names, among those of transformers only."""
    transformers = require("transformers", extra="text", use="encoding text by a pretrained model")
    with parsing(path):
        named = json.loads(path.read_text(encoding="utf-8"))["architectures"][0]
        found: Any = getattr(transformers, named, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"{path} names the class {named!r}, which is no model of transformers; say cls=")
    return found


def _check(model: nn.Module, tokenizer: Any) -> set[str]:
    """The arguments that the model takes, once it and the tokenizer go together."""
    name, arguments = type(model).__name__, set(inspect.signature(model.forward).parameters)
    if "decoder_input_ids" in arguments:
        raise ValueError(f"model {name} has a decoder: give the encoder alone, such as T5EncoderModel")
    if not {"input_ids", "attention_mask"} <= arguments or not hasattr(model, "config"):
        raise ValueError(f"model {name} is no text model of transformers: it takes {sorted(arguments)}")
    if not hasattr(tokenizer, "pad_token_id"):
        raise ValueError(f"tokenizer must be one of transformers', got {type(tokenizer).__name__}")
    table: Any = model.get_input_embeddings
    entries: int = table().num_embeddings
    if len(tokenizer) > entries:
        raise ValueError(f"tokenizer has {len(tokenizer)} entries, more than the {entries} of model {name}")
    return arguments
