"""Keys and values of the past for frame-causal attention: a state that goes in and comes out, never kept in a module.

Frames may come one by one or several at a time; what is kept is the text, the sink frames and the last frames of the
window (StreamingLLM, arXiv:2309.17453), so that memory does not grow with the video where the pattern has a window.

Shapes: q ``(*b, n, h, d)``, k ``(*b, n, hk, d)``, v ``(*b, n, hk, e)`` with ``n`` tokens: text, or whole frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.dispatch import attend
from tubelet.attention.patterns import FrameCausal

__all__ = ["FrameCache"]

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class FrameCache:
    """What later frames attend: start with ``FrameCache(pattern)`` and hand each result to the next call.

    Args:
        pattern: window and sink.
        backend, scale: as in :func:`tubelet.attend`.
        text: keys and values of the text.
        sink: those of the first frames, one entry a frame.
        recent: those of the last frames, at most ``window - 1`` of them.
        seen: how many frames have passed.

    Raises:
        ValueError: ``pattern`` is another one than ``FrameCausal``.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> pattern, (q, k, v) = FrameCausal(window=2), torch.randn(3, 12, 1, 8)
        >>> cache, parts = FrameCache(pattern), []
        >>> for rows in torch.arange(12).split(4):
        ...     out, cache = cache.frames(q[rows], k[rows], v[rows], tokens=4)
        ...     parts.append(out)
        >>> whole = attend(q, k, v, pattern=pattern, layout=TokenLayout.packed([Grid(3, 2, 2)]))
        >>> bool((torch.cat(parts) - whole).norm() < 1e-5 * whole.norm()), len(cache.recent)
        (True, 1)
    """

    pattern: FrameCausal
    backend: str = "auto"
    scale: float | None = None
    text: KeysAndValues | None = None
    sink: tuple[KeysAndValues, ...] = ()
    recent: tuple[KeysAndValues, ...] = ()
    seen: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, FrameCausal):
            raise ValueError(f"pattern must be a FrameCausal, got {self.pattern}")

    def prefix(
        self,
        q: Float[Tensor, "*b n h d"],
        k: Float[Tensor, "*b n hk d"],
        v: Float[Tensor, "*b n hk e"],
    ) -> tuple[Float[Tensor, "*b n h e"], "FrameCache"]:
        """Attention of the text, which comes before any frame and attends itself alone; and the cache that knows it.

        Raises:
            ValueError: text or frames have passed already.
        """
        if self.text is not None or self.seen:
            raise ValueError(
                f"text comes first and once, but {self.seen} frames and text={self.text is not None} passed"
            )
        return self._attend(q, k, v), replace(self, text=(k, v))

    def frames(
        self,
        q: Float[Tensor, "*b n h d"],
        k: Float[Tensor, "*b n hk d"],
        v: Float[Tensor, "*b n hk e"],
        tokens: int,
    ) -> tuple[Float[Tensor, "*b n h e"], "FrameCache"]:
        """Attention of the next frames, of ``tokens`` tokens each; and the cache for those after them.

        Raises:
            ValueError: q, k, v are not whole frames, or differ from the cached ones.
        """
        counts = {x.shape[-3] for x in (q, k, v)}
        if tokens < 1 or len(counts) > 1 or 0 in counts or q.shape[-3] % tokens:
            found = ", ".join(f"{name} {x.shape[-3]}" for name, x in zip("qkv", (q, k, v), strict=True))
            raise ValueError(f"q, k and v must be the same whole frames of tokens={tokens}, got tokens {found}")
        held = next(iter((*self.sink, *self.recent)), None)
        if held is not None and held[0].shape[-3] != tokens:
            raise ValueError(f"frames have tokens={tokens}, but those in the cache have {held[0].shape[-3]}")
        self._check(k, v)
        cache, parts = self, []
        for queries, keys, values in zip(*(torch.split(x, tokens, dim=-3) for x in (q, k, v)), strict=True):
            kept = [*cache._kept(), (keys, values)]
            parts.append(self._attend(queries, *(torch.cat(side, dim=-3) for side in zip(*kept, strict=True))))
            cache = cache._with(keys, values)
        return torch.cat(parts, dim=-3), cache if self.pattern.window is None else cache._compact()

    def _compact(self) -> "FrameCache":
        """The same frames without the rest of the tensors that they were cut from."""
        sink, recent = (tuple((_own(k), _own(v)) for k, v in frames) for frames in (self.sink, self.recent))
        return replace(self, sink=sink, recent=recent)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, backend=self.backend, scale=self.scale)

    def _kept(self) -> Iterator[KeysAndValues]:
        if self.text is not None:
            yield self.text
        yield from self.sink
        yield from self.recent

    def _with(self, k: Tensor, v: Tensor) -> "FrameCache":
        """The next frame joins the sink, where that is not full, or the window."""
        if self.pattern.window is None or self.seen < self.pattern.sink:
            return replace(self, sink=(*self.sink, (k, v)), seen=self.seen + 1)
        recent = (*self.recent, (k, v))
        kept = self.pattern.window - 1
        return replace(self, recent=recent[len(recent) - min(kept, len(recent)) :], seen=self.seen + 1)

    def _check(self, k: Tensor, v: Tensor) -> None:
        held = next(self._kept(), None)
        for name, old, new in zip("kv", held or (), (k, v), strict=False):
            before, now = (*old.shape[:-3], *old.shape[-2:]), (*new.shape[:-3], *new.shape[-2:])
            if before != now:
                raise ValueError(f"{name} has batch, heads and width {now}, but the cache holds {before}")


def _own(x: Tensor) -> Tensor:
    """``x`` in memory that holds nothing else."""
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()
