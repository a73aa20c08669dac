"""Values made once and remembered up to a number of bytes; what was used least recently is forgotten first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["Memory", "Sized"]


@runtime_checkable
class Sized(Protocol):
    """What knows how much it holds.

    Example:
        >>> from tubelet.attention.plan import Plan
        >>> Plan((), 0, 0, False, False).nbytes
        0
    """

    @property
    def nbytes(self) -> int:
        """About how many bytes."""
        ...


T = TypeVar("T", bound=Sized)


class Memory(Generic[T]):
    """At most ``limit`` bytes of what ``make`` gave; a value that is larger by itself is made anew each time.

    Example:
        >>> import numpy as np
        >>> zeros = Memory(np.zeros, limit=100)
        >>> first = zeros(8)
        >>> zeros(8) is first, zeros.nbytes
        (True, 64)
        >>> zeros(9).shape, zeros.nbytes
        ((9,), 72)
    """

    def __init__(self, make: Callable[..., T], limit: int) -> None:
        self._make = make
        self.limit = limit
        self.nbytes = 0
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def __call__(self, *key: Hashable) -> T:
        """The value of these arguments, made where it is not held; two threads may both make it."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return found
        made = self._make(*key)
        with self._lock:
            if key not in self._held and made.nbytes <= self.limit:
                self._held[key] = made
                self.nbytes += made.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._held.popitem(last=False)[1].nbytes
        return made

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()
            self.nbytes = 0
