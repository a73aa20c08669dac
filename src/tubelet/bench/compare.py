"""Two runs against each other: the ratio of medians of every common row, with a bootstrap interval.

The interval is the percentile bootstrap of Efron (1979): both rows' samples are drawn again with replacement, and the
ratio of their medians is taken, many times. It speaks of the scatter inside the two runs. What differed between them as
a whole (another clock, a neighbour on the machine) is not in it; two runs of one version show how much that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tubelet.bench.table import aligned

__all__ = ["Change", "compare", "comparison", "ratio_interval"]

Verdict = Literal["faster", "slower", "same", "lost", "gained", "untimed"]


@dataclass(frozen=True)
class Change:
    """How one row went from the first run to the second: ratio of medians and its interval, where both have times.

    Example:
        >>> Change("row", 0.5, 0.4, 0.6, "faster").regressed(1.05)
        False
    """

    key: str
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict

    def regressed(self, above: float) -> bool:
        """Whether the row got slower by more than ``above`` times, beyond its scatter, or has no time any more.

        Example:
            >>> Change("row", 1.2, 1.1, 1.3, "slower").regressed(1.05)
            True
        """
        return self.verdict == "lost" or (self.verdict == "slower" and self.ratio is not None and self.ratio > above)


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, force: bool = False) -> list[Change]:
    """Every row that both runs have.

    Args:
        first, second: documents of :func:`tubelet.bench.load`.
        force: compare runs of other hardware; where each has one dtype, rows of different dtypes too.

    Raises:
        ValueError: hardware or dtypes differ without ``force``, or no row is common.

    Example:
        >>> run = {"environment": {"hardware": {}}, "rows": []}
        >>> compare(run, run)
        Traceback (most recent call last):
        ...
        ValueError: the runs have no row in common: 0 and 0 rows
    """
    _same_hardware(first, second, force)
    dtypes = [sorted({row["dtype"] for row in run["rows"]}) for run in (first, second)]
    across = dtypes[0] != dtypes[1] and len(dtypes[0]) == len(dtypes[1]) == 1
    if across and not force:
        raise ValueError(f"the first run is of {dtypes[0][0]}, the second of {dtypes[1][0]}; --force compares them")
    old, new = ({_key(row, across): row for row in run["rows"]} for run in (first, second))
    common = [key for key in old if key in new]
    if not common:
        raise ValueError(f"the runs have no row in common: {len(old)} and {len(new)} rows")
    return [_change(key, old[key], new[key]) for key in common]


def ratio_interval(
    first: Sequence[int | float], second: Sequence[int | float], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio of medians, second over first, and the ends of its 95 % interval.

    Example:
        >>> ratio_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
        (2.0, 2.0, 2.0)
    """
    generator = np.random.default_rng(seed)
    old, new = (np.asarray(values, dtype=np.float64) for values in (first, second))
    medians = [np.median(x[generator.integers(len(x), size=(draws, len(x)))], axis=1) for x in (old, new)]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(np.median(new) / np.median(old)), float(low), float(high)


def comparison(changes: Sequence[Change]) -> str:
    """The changes as aligned Markdown; real ones, whose interval excludes 1, are named.

    Example:
        >>> print(comparison([Change("row", 0.5, 0.4, 0.6, "faster")]).splitlines()[-1])
        | row | 0.500 | 0.400 – 0.600 | faster |
    """
    lines = [
        [c.key.replace("|", "\\|"), "" if c.ratio is None else f"{c.ratio:.3f}", _interval(c), c.verdict]
        for c in changes
    ]
    return aligned(["row", "ratio", "95 % interval", "verdict"], lines, left=1)


def _interval(change: Change) -> str:
    return "" if change.low is None or change.high is None else f"{change.low:.3f} – {change.high:.3f}"


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    if old["seconds"] is None or new["seconds"] is None:
        both = old["seconds"] is None and new["seconds"] is None
        return Change(key, None, None, None, "untimed" if both else "lost" if new["seconds"] is None else "gained")
    ratio, low, high = ratio_interval(old["seconds"], new["seconds"])
    verdict: Verdict = "slower" if low > 1 else "faster" if high < 1 else "same"
    return Change(key, ratio, low, high, verdict)


def _key(row: Mapping[str, Any], across: bool) -> str:
    key: str = row["key"]
    return key.replace(f" {row['dtype']} ", " ") if across else key


def _same_hardware(first: Mapping[str, Any], second: Mapping[str, Any], force: bool) -> None:
    old, new = (run["environment"]["hardware"] for run in (first, second))
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if differing and not force:
        name = differing[0]
        raise ValueError(
            f"the runs are of other hardware: {name} is {old.get(name)!r} in the first, {new.get(name)!r} in the "
            f"second; --force compares them"
        )
