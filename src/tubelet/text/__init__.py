"""Text encoders: prompts in, compacted tokens and their lengths out.

``encoder(prompts) -> TextTokens(tokens (n, d), lengths)``, as :class:`tubelet.protocols.TextEncoder` says: the tokens
of all prompts one after another, without padding; ``lengths[i]`` of them belong to prompt i, and ``.layout`` says the
same to a model. No mask is ever needed.

:class:`WordEncoder` learns a closed vocabulary along with the denoiser. :class:`TransformersEncoder` is a frozen model
of the package ``transformers``: T5, UMT5, CLIP, Llama and their like.
"""

from tubelet.protocols import TextTokens
from tubelet.text.pretrained import TransformersEncoder, load_text_model
from tubelet.text.words import WordEncoder, WordEncoderConfig, WordTokenizer

__all__ = ["TextTokens", "TransformersEncoder", "WordEncoder", "WordEncoderConfig", "WordTokenizer", "load_text_model"]
