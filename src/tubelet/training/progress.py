"""What a run shows while it goes on: a bar on a terminal, plain lines elsewhere.

Both show the loss (a running mean), tokens per second where steps report ``tokens``, and the time left.
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

__all__ = ["Progress"]


@runtime_checkable
class Writable(Protocol):
    """What progress is written to: ``sys.stdout``, a text file, ``io.StringIO``."""

    def write(self, text: str, /) -> Any:
        """Write text."""
        ...

    def flush(self) -> Any:
        """Pass on what is buffered."""
        ...

    def isatty(self) -> bool:
        """Whether a person watches."""
        ...


@final
class Progress:
    """Progress of one run; a context manager.

    On a terminal with ``rich`` installed it draws a bar; otherwise it prints a line at most every ``interval`` seconds
    and at the end.

    Args:
        steps: length of the run.
        start: steps done before, in a run that is resumed.
        title: stands before everything.
        interval: seconds between plain lines.
        stream: where to write; standard output by default.

    Example:
        >>> with Progress(2, title="train", interval=0.0) as progress:
        ...     progress.update(1, {"loss": 0.5})  # doctest: +ELLIPSIS
        train 1/2  loss 0.5000  0:0... left
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        title: str = "train",
        interval: int | float = 10.0,
        stream: Writable | None = None,
    ) -> None:
        self.steps, self.start, self.title, self.interval = steps, start, title, interval
        self.stream: Writable = sys.stdout if stream is None else stream
        self.loss: float | None = None
        self.tokens = 0.0
        self.began = self.printed = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        self.began = self.printed = time.monotonic()
        self.bar = _bar(self.stream, self.title, self.steps, self.start)
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, record: Mapping[str, int | float]) -> None:
        """Count a step.

        Args:
            done: steps done, with this one.
            record: what the step gave; ``loss`` and ``tokens`` are shown.
        """
        if "loss" in record:
            loss = record["loss"]
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.tokens += record.get("tokens", 0.0)
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, status=self.status(done, now))
        elif now - self.printed >= self.interval or done == self.steps:
            self.printed = now
            print(f"{self.title} {done}/{self.steps}  {self.status(done, now)}", file=self.stream, flush=True)

    def status(self, done: int, now: float) -> str:
        """The line's text: loss, tokens per second, time left."""
        seconds = max(now - self.began, 1e-9)
        left = round(seconds / max(done - self.start, 1) * (self.steps - done))
        parts = [] if self.loss is None else [f"loss {self.loss:.4f}"]
        parts += [f"{self.tokens / seconds:,.0f} tokens/s"] if self.tokens else []
        return "  ".join([*parts, f"{left // 60}:{left % 60:02d} left"])


def _bar(stream: Writable, title: str, steps: int, start: int) -> Any:
    """A rich bar with one task, or None where the stream is no terminal or rich is missing."""
    if not stream.isatty():
        return None
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ImportError:
        return None
    console_file: Any = stream
    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[status]}"),
        console=Console(file=console_file),
    )
    bar.add_task(title, total=steps, completed=start, status="")
    return bar
