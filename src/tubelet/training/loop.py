"""The loop around a step that the user writes: progress, checkpoints, Ctrl-C, and nothing else.

The step does the forward, the backward, clipping, the optimiser and the average, in the open. The loop adds what is the
same everywhere. Ctrl-C never tears a step: the step under way is finished and saved first, so that a run that goes on
from the file equals one that was never stopped.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from torch import Tensor

from tubelet.training.progress import Progress

__all__ = ["History", "Interrupted", "fit"]


class History:
    """The numbers of a run, one series per name, with the steps they belong to.

    Example:
        >>> history = History()
        >>> history.add(0, {"loss": 2.0})
        >>> history.add(1, {"loss": 1.0, "accuracy": 0.5})
        >>> history["loss"]
        [2.0, 1.0]
        >>> history.steps["accuracy"]
        [1]
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.values: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        """The values of one series."""
        return self.values[name]

    def add(self, step: int, record: Mapping[str, int | float]) -> None:
        """Append a step's numbers."""
        for name, value in record.items():
            self.steps.setdefault(name, []).append(step)
            self.values.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        """Both tables as plain lists."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both tables over."""
        self.steps = {name: list(steps) for name, steps in state["steps"].items()}
        self.values = {name: list(values) for name, values in state["values"].items()}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed: the step under way was finished and saved, then :func:`fit` raised this.

    Attributes:
        step: steps done, which the saved file says too.

    Example:
        >>> Interrupted(12).step
        12
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def fit(
    step_fn: Callable[[int], Mapping[str, int | float | Tensor]],
    steps: int,
    *,
    start: int = 0,
    save: Callable[[int], None] | None = None,
    save_every: int | None = None,
    history: History | None = None,
    progress: Progress | None = None,
) -> History:
    """Call ``step_fn`` for the steps ``start, ..., steps - 1``.

    Args:
        step_fn: does one whole step and gives its numbers (floats or one-element tensors). ``loss`` and ``tokens``
            are shown. Let it depend on nothing but its argument and the state that ``save`` writes.
        steps: length of the run, counted from 0.
        start: steps done before, as :meth:`Checkpoint.restore` says.
        save: called with the number of steps done: every ``save_every`` steps, at the end, and on Ctrl-C.
        save_every: steps between saves; None: at the end and on Ctrl-C only.
        history: the series to go on with; put the same object into the checkpoint to keep it over a resume.
        progress: how to show the run; by default a bar or lines on standard output.

    Returns:
        The history, with ``start`` to ``steps - 1`` added.

    Raises:
        ValueError: ``start`` outside ``[0, steps]`` or ``save_every`` below 1.
        FloatingPointError: the loss is not finite; nothing is saved after it.
        Interrupted: Ctrl-C was pressed once, and the run is saved. A second one raises ``KeyboardInterrupt`` at once.

    Example:
        >>> history = fit(lambda step: {"loss": 1 / (step + 1)}, 4)  # doctest: +ELLIPSIS
        train 4/4  loss ...
        >>> history["loss"]
        [1.0, 0.5, 0.3333333333333333, 0.25]
    """
    if not 0 <= start <= steps:
        raise ValueError(f"start={start} must be between 0 and steps={steps}")
    if save_every is not None and save_every < 1:
        raise ValueError(f"save_every must be at least 1, got {save_every}")
    history = History() if history is None else history
    with _graceful_interrupt() as interrupted, progress or Progress(steps, start=start) as shown:
        for step in range(start, steps):
            record = {name: _number(value) for name, value in step_fn(step).items()}
            if not math.isfinite(record.get("loss", 0.0)):
                raise FloatingPointError(f"the loss of step {step} is {record['loss']}")
            history.add(step, record)
            shown.update(done := step + 1, record)
            due = done == steps or (save_every is not None and done % save_every == 0)
            stop = interrupted.is_set()
            if save is not None and (due or stop):
                save(done)
            if stop:
                raise Interrupted(done)
    return history


def _number(value: int | float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _graceful_interrupt() -> AbstractContextManager[threading.Event]:
    """An event that the first Ctrl-C sets; the second acts as if this were not here."""
    return _handling() if threading.current_thread() is threading.main_thread() else _ignoring()


@contextmanager
def _ignoring() -> Iterator[threading.Event]:
    yield threading.Event()


@contextmanager
def _handling() -> Iterator[threading.Event]:
    event = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
