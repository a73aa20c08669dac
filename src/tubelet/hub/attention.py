"""Our attention inside a model of diffusers': any pattern, layout and backend, with the model's own weights and code.

Every attention processor of diffusers ends in one call, PyTorch's ``scaled_dot_product_attention``. :func:`use_attend`
answers that call, and only that: projections, norms and rotations stay the model's. What is asked for besides (a mask,
a scale, shared heads) is served exactly or refused. Nothing of diffusers is imported.

A processor that attends in another way, such as one set to another attention backend of diffusers', is an error at the
first call, not a model that quietly attends everything.

Shapes: ``b`` rows of ``n`` video tokens and ``m`` text tokens, ``h`` heads of ``d`` numbers.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tubelet.attention import Joint, Spatial, Temporal, attend
from tubelet.layout import Grid, JointIndex, JointLayout, LayoutIndex, TokenLayout
from tubelet.protocols import Pattern

__all__ = ["Attending", "use_attend"]

_APART, _FIRST, _LAST, _FRAMES, _PLACES = "text apart", "text first", "text last", "frames", "places"

_STACKS: dict[str, dict[str, str]] = {
    "AllegroTransformer3DModel": {"transformer_blocks": _APART},
    "CogVideoXTransformer3DModel": {"transformer_blocks": _FIRST},
    "CosmosTransformer3DModel": {"transformer_blocks": _APART},
    "HunyuanVideoTransformer3DModel": {"transformer_blocks": _LAST, "single_transformer_blocks": _LAST},
    "LTXVideoTransformer3DModel": {"transformer_blocks": _APART},
    "LatteTransformer3DModel": {"transformer_blocks": _FRAMES, "temporal_transformer_blocks": _PLACES},
    "MochiTransformer3DModel": {"transformer_blocks": _LAST},
    "WanTransformer3DModel": {"blocks": _APART},
}
"""Where the blocks of a class are, and where the text is when they attend."""

_OWN_TEXT = {
    "LatteTransformer3DModel": "repeats its text for each frame, and hides padding by its own mask",
    "MochiTransformer3DModel": "takes the padding of its text away itself, a sample at a time",
}
"""Why a class has no use for a layout of its text."""

_HIDES = -1e4  # what diffusers adds to hide a key: the exponential of this is 0 in every dtype


@final
class Attending:
    """What :func:`use_attend` did to a model; :meth:`remove`, or leaving a ``with`` block, undoes it."""

    def __init__(self, forwards: Mapping[nn.Module, Callable[..., Any]]) -> None:
        self.before = {module: vars(module).get("forward") for module in forwards}
        for module, forward in forwards.items():
            module.forward = forward

    def remove(self) -> None:
        """Give the model its own attention back.

        Example:
            >>> Attending({}).remove()
        """
        for module, forward in self.before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
        self.before = {}

    def __enter__(self) -> "Attending":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def use_attend(
    model: nn.Module,
    video: Grid | TokenLayout,
    *,
    text: TokenLayout | None = None,
    pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
    backend: str = "auto",
) -> Attending:
    """Make the blocks of a diffusers model attend by :func:`tubelet.attend`.

    The pattern governs the video's tokens (and, in models of joint attention, their text by the pattern's own rule);
    cross-attention to text is dense. Latte's blocks attend within a frame or within a place, and so does any pattern
    there. With gradient checkpointing the model must still attend this way when the backward runs.

    Args:
        model: one of diffusers' Allegro, CogVideoX, Cosmos, HunyuanVideo, LTX, Latte, Mochi and Wan transformers, with
            diffusers' own attention backend, the default.
        video: the grid of tokens, which all rows of a batch share whatever their number; or where the samples lie, as
            with several videos on the one row of an LTX model.
        text: where the prompts lie in the text tokens. Without it all of them are attended but those that a mask hides,
            and a mask is served by backends that serve a bias. With it every backend serves, and a mask must say the
            same.
        pattern: which tokens of the video attend to each other.
        backend: a name from :func:`tubelet.attention.backends`, or "auto".

    Returns:
        A handle whose ``remove()`` undoes it, and a context manager that does.

    Raises:
        ValueError: a class that is not known, ``text`` for one that minds its padding itself (Latte, Mochi), or a model
            that attends by a handle already. At a call: tokens that are not those of ``video`` or ``text``, a mask that
            ``text`` contradicts, dropout, causal attention, or what :func:`tubelet.attend` refuses.
        RuntimeError: at a call, an attention processor that never calls ``scaled_dot_product_attention``.

    Example:
        >>> from tubelet.attention import Window
        >>> from diffusers import WanTransformer3DModel
        >>> sizes = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 12, "ffn_dim": 8, "text_dim": 8}
        >>> model = WanTransformer3DModel(in_channels=4, out_channels=4, **sizes)
        >>> video, time, prompt = torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(1, 5, 8)
        >>> with use_attend(model, Grid(3, 4, 4), pattern=Window((3, 2, 2))):
        ...     model(video, time, prompt).sample.shape
        torch.Size([1, 4, 3, 8, 8])
    """
    stacks = _STACKS.get(type(model).__name__)
    if stacks is None:
        raise ValueError(f"{type(model).__name__} is not known; use_attend knows {', '.join(_STACKS)}")
    if text is not None and (why := _OWN_TEXT.get(type(model).__name__)):
        raise ValueError(f"{type(model).__name__} {why}: leave text out, got {text}")
    device = next(model.parameters()).device
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for name, place in stacks.items():
        answer = _Answer(video, text, pattern, backend, place, device)
        modules = [module for module in model.get_submodule(name).modules() if hasattr(module, "processor")]
        forwards |= {module: _Forward(module, answer) for module in modules}
    if any(isinstance(vars(module).get("forward"), _Forward) for module in forwards):
        raise ValueError(f"{type(model).__name__} attends by a handle of use_attend already; remove() it first")
    return Attending(forwards)


class _Forward:
    """The forward of an attention module, of which the one call is answered."""

    def __init__(self, module: nn.Module, answer: "_Answer") -> None:
        self.module, self.forward, self.answer = module, module.forward, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        other = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        mode = _Redirect(partial(self.answer, other is not None))
        with mode:
            out = self.forward(*args, **kwargs)
        if not mode.calls:
            kind = type(getattr(self.module, "processor", None)).__name__
            raise RuntimeError(
                f"{kind} never called scaled_dot_product_attention; set diffusers' attention backend to 'native'"
            )
        return out


class _Redirect(TorchFunctionMode):
    """Inside the block, ``scaled_dot_product_attention`` is ``answer``; what ``answer`` calls itself is not."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer, self.calls = answer, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.answer(*args, **(kwargs or {}))


class _Answer:
    """One stack's answer to ``scaled_dot_product_attention``.

    Layouts that are given are put on the device here, once and outside compiled code.
    """

    def __init__(
        self,
        video: Grid | TokenLayout,
        text: TokenLayout | None,
        pattern: Pattern,
        backend: str,
        place: str,
        device: torch.device,
    ) -> None:
        self.video, self.text, self.pattern, self.backend, self.place = video, text, pattern, backend, place
        self.video_index = None if isinstance(video, Grid) else _index(video, device)
        self.text_index = None if text is None else _index(text, device)
        joint = place in (_FIRST, _LAST) and text is not None and not isinstance(video, Grid)
        self.joint_index = _joint_index(text, video, device) if joint else None

    def __call__(
        self,
        has_text: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p or is_causal:
            raise ValueError(f"attend has neither dropout nor this mask, got {dropout_p=} and {is_causal=}")
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        options = {"backend": self.backend, "scale": scale}
        if self.place in (_FIRST, _LAST):
            out = self._joint(q, k, v, attn_mask, options)
        elif has_text:
            out = self._cross(q, k, v, attn_mask, options)
        elif self.place == _APART:
            out = self._alone(q, k, v, attn_mask, options)
        else:
            out = self._within(q, k, v, attn_mask, options)
        return out.transpose(1, 2)

    def _alone(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The video's tokens among themselves."""
        layout, bias = self._layout(q), _bias(mask, q)
        if not self._packed(q):
            return attend(q, k, v, pattern=self.pattern, layout=layout, bias=bias, **options)
        bias = bias if bias is None or bias.ndim < 4 else bias[0]
        return attend(q[0], k[0], v[0], pattern=self.pattern, layout=layout, bias=bias, **options)[None]

    def _within(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The video's tokens within their frame, or within their place, as rows of the whole grid."""
        if not isinstance(self.video, Grid) or mask is not None:
            raise ValueError(f"blocks within {self.place} need video as a Grid and no mask, got {self.video}, {mask=}")
        frames = self.place == _FRAMES
        form, size = ("(b f) p h d", self.video.t) if frames else ("(b p) f h d", self.video.h * self.video.w)
        sides = {"f" if frames else "p": size}
        q, k, v = (rearrange(x, f"{form} -> b (f p) h d", **sides) for x in (q, k, v))
        pattern = self.pattern & (Spatial() if frames else Temporal())
        out = attend(q, k, v, pattern=pattern, layout=self._layout(q), **options)
        return rearrange(out, f"b (f p) h d -> {form}", f=self.video.t)

    def _cross(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The video's tokens to the text's, or to an image's."""
        packed = self._packed(q)
        if self.text is None:
            if packed:
                raise ValueError("video is packed on one row, so text must say whose the prompts are, got text=None")
            return attend(q, k, v, bias=_bias(mask, q), **options)
        _check_mask(mask, self._valid_text(k), self.text)
        if packed:
            return attend(q[0], k[0], v[0], layout=self._layout(q), kv_layout=self.text_index, **options)[None]
        return attend(q, k, v, kv_layout=self.text_index, **options)

    def _joint(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The tokens of video and text together."""
        width = self.video.tokens if isinstance(self.video, Grid) else self.video.width
        rows = len(q) if isinstance(self.video, Grid) else len(self.video.grids)
        if self._packed(q) or q.shape[1] < width or len(q) != rows:
            raise ValueError(f"the model has {tuple(q.shape[:2])} tokens, which are not text and video={self.video}")
        sizes = [width, q.shape[1] - width] if self.place == _LAST else [q.shape[1] - width, width]

        def streams(x: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
            return self._text_first(torch.split(x, sizes, dim))

        index, bias = self._joint_layout(q, q.shape[1] - width), _bias(mask, q)
        if self.text is not None:
            valid = self._valid_text(streams(k)[0])
            valid = torch.cat(self._text_first((valid, valid.new_ones(len(q), width))), 1)
            _check_mask(mask, valid, self.text)
            bias = None
        elif bias is not None:
            if not index.identity:
                raise ValueError(f"a mask over padded video needs text as a layout, got {self.video} and text=None")
            for dim in (dim for dim in (-1, -2) if bias.shape[dim] == q.shape[1]):
                bias = torch.cat(streams(bias, dim), dim)
        q, k, v = (index.merge(*streams(x)) for x in (q, k, v))
        out = attend(q, k, v, pattern=self.pattern, layout=index.index, bias=bias, **options)
        return torch.cat(self._text_first(index.split(out)), 1)

    def _text_first(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The model's order of text and video as ours, and ours as the model's."""
        return parts if self.place == _FIRST else parts[::-1]

    def _packed(self, q: Tensor) -> bool:
        """Whether the samples lie on the one row that there is."""
        if isinstance(self.video, Grid) or self.video.batched:
            return False
        if len(q) != 1:
            raise ValueError(f"video is packed on one row, but the model has {len(q)}")
        return True

    def _layout(self, q: Tensor) -> LayoutIndex:
        """Where the video's tokens lie."""
        if self.video_index is not None:
            return self.video_index
        assert isinstance(self.video, Grid)
        return _index(TokenLayout.dense(len(q), self.video), q.device)

    def _joint_layout(self, q: Tensor, tokens: int) -> JointIndex:
        if self.joint_index is not None:
            return self.joint_index
        video = TokenLayout.dense(len(q), self.video) if isinstance(self.video, Grid) else self.video
        return _joint_index(self.text or TokenLayout.padded([tokens] * len(q), tokens), video, q.device)

    def _valid_text(self, k: Tensor) -> Tensor:
        """Which of the text's tokens are not padding, a row each."""
        assert self.text is not None and self.text_index is not None
        shape = self.text.shape if self.text.batched else (1, *self.text.shape)
        if shape != tuple(k.shape[:2]):
            raise ValueError(f"text has tokens {shape}, but the model attends to {tuple(k.shape[:2])}")
        return self.text_index.valid.view(shape)


@lru_cache(maxsize=16)
def _index(layout: TokenLayout, device: torch.device) -> LayoutIndex:
    return layout.on(device)


@lru_cache(maxsize=16)
def _joint_index(text: TokenLayout, video: TokenLayout, device: torch.device) -> JointIndex:
    return JointLayout((text, video)).on(device)


def _bias(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What a mask adds to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros((), dtype=q.dtype, device=q.device).where(mask, -torch.inf)


def _check_mask(mask: Tensor | None, valid: Tensor, text: TokenLayout) -> None:
    """That a mask of the keys hides just the padding of the text."""
    if mask is None:
        return
    shown, hidden = (mask, ~mask) if mask.dtype == torch.bool else (mask == 0, mask <= _HIDES)
    valid = valid[:, None, None]
    if not bool(((shown & valid) | (hidden & ~valid)).all()):
        raise ValueError(f"the model's mask hides other tokens than the padding of text={text.lengths}")
