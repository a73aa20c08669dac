"""The demo's pictures: loss curves, real clips beside their reconstructions, and samples under their captions.

Videos are ``(1, t, h, w)`` in [-1, 1], of any sizes on one sheet; files appear under their names only when complete.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.data import write_contact_sheet
from tubelet.files import replacing
from tubelet.training import History

__all__ = ["loss_curves", "reconstruction_sheet", "sample_sheet"]

_SCALE, _FRAMES = 3, 5


def loss_curves(
    path: str | Path,
    histories: Mapping[str, History],
    series: str = "loss",
    baselines: Mapping[str, tuple[str, float]] | None = None,
) -> None:
    """Draw one series of each run over its steps, a panel a run, with a running mean of 2 % of the steps.

    Args:
        path: where to; the suffix says which format.
        histories: the runs by title.
        series: which of their series.
        baselines: a labelled level to beat, by title.

    Raises:
        ValueError: no histories, one without the series, or a baseline of no history.
        ImportError: matplotlib is missing; it comes with the extra ``tubelet[demo]``.

    Example:
        >>> import tempfile
        >>> history = History()
        >>> history.add(0, {"loss": 2.0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loss_curves(Path(folder) / "curves.png", {"denoiser": history})
        ...     (Path(folder) / "curves.png").is_file()
        True
    """
    _check(histories, series, baselines or {})
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("loss curves are drawn by matplotlib: pip install 'tubelet[demo]'") from error
    figure = Figure(figsize=(5 * len(histories), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for panel, (title, history) in zip(panels, histories.items(), strict=True):
        steps, values = history.steps[series], history[series]
        panel.plot(steps, values, color="0.8", linewidth=0.8)
        panel.plot(steps, _smooth(values), color="tab:blue")
        if baselines and title in baselines:
            label, level = baselines[title]
            panel.axhline(level, color="tab:red", linestyle="--", linewidth=1, label=label)
            panel.legend(frameon=False)
        panel.set(title=title, xlabel="step", ylabel=series, yscale="log" if min(values) > 0 else "linear")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _check(histories: Mapping[str, History], series: str, baselines: Mapping[str, tuple[str, float]]) -> None:
    if not histories:
        raise ValueError(f"histories must hold at least one run, got {len(histories)}")
    without = [title for title, history in histories.items() if series not in history.values]
    if without:
        raise ValueError(f"series must be in every history, but {series!r} is not in {without}")
    if unknown := sorted(set(baselines) - set(histories)):
        raise ValueError(f"baselines must belong to the histories {sorted(histories)}, got {unknown}")


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of the latest 2 % of the values, at each."""
    window = max(1, len(values) // 50)
    sums = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - window).clamp(min=0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def reconstruction_sheet(
    path: str | Path,
    originals: Sequence[Float[Tensor, "1 _ _ _"]],
    reconstructions: Sequence[Float[Tensor, "1 _ _ _"]],
    labels: Sequence[str] | None = None,
) -> None:
    """A sheet of two columns: each original, and beside it what is left of it.

    Raises:
        ValueError: none, or not as many of one as of the other.
        ImportError: Pillow is missing; it comes with the extra ``tubelet[video]``.

    Example:
        >>> import tempfile
        >>> clip = torch.ones(1, 5, 16, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     reconstruction_sheet(Path(folder) / "pairs.png", [clip], [0.5 * clip])
        ...     (Path(folder) / "pairs.png").is_file()
        True
    """
    names = labels if labels is not None else [str(number) for number in range(1, len(originals) + 1)]
    if not len(originals) == len(reconstructions) == len(names):
        raise ValueError(
            "originals, reconstructions and labels must be equally many, "
            f"got {len(originals)}, {len(reconstructions)} and {len(names)}"
        )
    pairs = [video for pair in zip(originals, reconstructions, strict=True) for video in pair]
    texts = [text for name in names for text in (name, f"{name}, reconstructed")]
    write_contact_sheet(path, pairs, columns=2, labels=texts, scale=_SCALE, frames=_FRAMES)


def sample_sheet(
    path: str | Path,
    videos: Sequence[Float[Tensor, "1 _ _ _"]],
    captions: Sequence[str],
    columns: int | None = None,
) -> None:
    """A sheet of videos, each over its caption.

    Raises:
        ValueError: no videos, or not one caption each.
        ImportError: Pillow is missing; it comes with the extra ``tubelet[video]``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sample_sheet(Path(folder) / "samples.png", [torch.ones(1, 5, 16, 24)], ["a two drifting left"])
        ...     (Path(folder) / "samples.png").is_file()
        True
    """
    write_contact_sheet(path, videos, columns=columns, labels=captions, scale=_SCALE, frames=_FRAMES)
