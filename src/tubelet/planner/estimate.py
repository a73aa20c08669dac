"""One model on one size of video, planned: parameters, tokens, multiply-accumulates and memory, without its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Final

import torch
from torch import nn

from tubelet.layout import Grid
from tubelet.planner.counting import Counts, Part, count, count_parameters
from tubelet.planner.formulas import sampling_flops, training_flops
from tubelet.planner.inputs import forward_inputs
from tubelet.planner.memory import peak_bytes, saved_bytes, training_state_bytes, weight_bytes
from tubelet.planner.presets import Preset, find_preset, preset_of, presets
from tubelet.planner.rates import hours

__all__ = ["Memory", "ModelPlan", "plan", "survey"]

IMAGE: Final = 32
"""Rows and columns of latents, of models without text: 256 pixels behind an autoencoder of 8×8, then patched."""
VIDEO: Final = Grid(21, 30, 52)
"""Of models with text: 81 frames of 480×832 behind an autoencoder of 4×8×8 and patches of 2×2."""
LATENTS: Final = Grid(5, 32, 32)
"""Of autoencoders: 17 frames of 256×256 where latents are 4×8×8."""
_FIXED: Final = ("grid", "learned", "extent")
"""What configs call the largest grid of their learned positions."""


@dataclass(frozen=True)
class Memory:
    """Bytes: the weights, AdamW's state around them, and what one forward needs beside the weights.

    ``forward`` is the most that lives at once without gradients, ``saved`` what the backward pass needs; None where it
    was not measured.

    Example:
        >>> Memory(weights=2, training=16, forward=None, saved=None).weights
        2
    """

    weights: int
    training: int
    forward: int | None
    saved: int | None


@dataclass(frozen=True)
class ModelPlan:
    """What :func:`plan` found; ``counts`` is None where the model does not take the grid, and ``reason`` says why.

    Example:
        >>> found = plan("dit_xl")
        >>> found.tokens, found.counts.macs
        (256, 118621421568)
    """

    preset: Preset
    config: Any
    grid: Grid
    text: int
    batch: int
    parameters: int
    counts: Counts | None
    memory: Memory
    reason: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one video, text aside."""
        return self.grid.tokens

    @property
    def flops(self) -> int:
        """Floating-point operations of one forward: two a multiply-accumulate.

        Raises:
            ValueError: they could not be counted.
        """
        if self.counts is None:
            raise ValueError(f"{self.preset.name} has no count: {self.reason}")
        return 2 * self.counts.macs

    def sampling_hours(
        self, steps: int, accelerator: str = "a100", *, guided: bool = True, mfu: int | float = 0.4
    ) -> float:
        """Hours of one device to sample once: a forward a step, two with guidance.

        Example:
            >>> 3600 * plan("dit_xl").sampling_hours(250) < 1
            True
        """
        return hours(sampling_flops(self.flops, steps, guided=guided), accelerator, mfu=mfu)

    def training_hours(
        self,
        samples: int | float,
        accelerator: str = "a100",
        *,
        recompute: bool = False,
        mfu: int | float = 0.4,
        devices: int = 1,
    ) -> float:
        """Hours to train on so many samples of this size.

        Example:
            >>> round(plan("dit_xl").training_hours(7e6 * 256))
            2839
        """
        flops = training_flops(self.flops / self.batch, recompute=recompute) * samples
        return hours(flops, accelerator, mfu=mfu, devices=devices)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values, under names that stay.

        Example:
            >>> sorted(plan("dit_s").as_json())[:4]
            ['architecture', 'attention_macs', 'batch', 'config']
        """
        counts = self.counts
        return {
            "name": self.preset.name,
            "architecture": self.preset.architecture,
            "kind": self.preset.kind,
            "config": _json(asdict(self.config) if is_dataclass(self.config) else vars(self.config)),  # type: ignore[arg-type]
            "grid": list(_sides(self.grid)),
            "tokens": self.tokens,
            "text_tokens": self.text,
            "batch": self.batch,
            "parameters": self.parameters,
            "macs": None if counts is None else counts.macs,
            "attention_macs": None if counts is None else counts.attention,
            "parts": None if counts is None else [_part(part) for part in counts.parts],
            "reason": self.reason,
            "memory_bytes": asdict(self.memory),
        }


def plan(
    model: Any,
    grid: Grid | None = None,
    *,
    text: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    measured: bool = False,
) -> ModelPlan:
    """Plan a published size on a grid of tokens (of an autoencoder: of latents), on ``meta``.

    Args:
        model: the name of a preset (``"dit_xl"``, ``"dit_xl(patch=4)"``, see :func:`find_preset`), a :class:`Preset`,
            or a config of any of the models (``dit_xl(4)``).
        grid: of each sample; None for that of the config, else for an image where the model reads no text, else for 81
            frames of 480×832.
        text: tokens of a prompt, where the model reads one; None for the number that the model fixes, else 256.
        batch: samples together.
        dtype: of weights and activations.
        measured: measure the memory of a forward, too, which takes a second or two.

    Raises:
        ValueError: no preset has the name, nothing is planned by such a value, or the model takes no such grid or text.

    Example:
        >>> found = plan("wan_14b", Grid(21, 45, 80), text=512)
        >>> found.tokens, round(found.flops / 1e15, 2), found.memory.weights
        (75600, 6.52, 28576983168)
    """
    preset = find_preset(model) if isinstance(model, str) else model if isinstance(model, Preset) else preset_of(model)
    built = preset.build(dtype=dtype)
    config: Any = built.config
    parameters = count_parameters(built)
    grid = _checked(grid, config) if grid else _own_grid(preset, config)
    text = _text(preset.name, config, text)
    kept = weight_bytes(parameters, dtype.itemsize), training_state_bytes(parameters)
    if preset.kind == "autoencoder":
        counts, lived = _autoencoder(built, grid, batch, dtype, measured)
    else:
        counts, lived = _forward(built, grid, text, batch, dtype, measured)
    return ModelPlan(preset, config, grid, text, batch, parameters, counts, Memory(*kept, *lived))


def survey(
    grid: Grid | None = None,
    *,
    names: Sequence[str] | None = None,
    text: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> list[ModelPlan]:
    """Every preset on one grid (None: each on its own); one that does not take it has parameters, and a ``reason``.

    ``names`` are of some presets, None for all. ``text`` is of the models that read prompts of any length; the others
    keep theirs.

    Raises:
        ValueError: there is no preset of a name.

    Example:
        >>> [each.reason for each in survey(Grid(1, 2, 2), names=["dit_s", "wan_1_3b"])]
        [None, None]
    """
    found = []
    for preset in presets().values() if names is None else map(find_preset, names):
        asked = text if _reads_any(preset.config()) else None
        try:
            found.append(plan(preset, grid, text=asked, batch=batch, dtype=dtype))
        except ValueError as error:
            found.append(_uncounted(preset, grid, batch, dtype, str(error)))
    return found


def _uncounted(preset: Preset, grid: Grid | None, batch: int, dtype: torch.dtype, reason: str) -> ModelPlan:
    config, parameters = preset.config(), count_parameters(preset.build())
    memory = Memory(weight_bytes(parameters, dtype.itemsize), training_state_bytes(parameters), None, None)
    return ModelPlan(preset, config, grid or _own_grid(preset, config), 0, batch, parameters, None, memory, reason)


def _reads_any(config: Any) -> bool:
    return bool(getattr(config, "text_dim", None)) and not hasattr(config, "text_tokens")


def _text(name: str, config: Any, text: int | None) -> int:
    """Tokens of the prompt: those asked for, where the model lets one choose."""
    if _reads_any(config):
        return 256 if text is None else text
    fixed: int = config.text_tokens if getattr(config, "text_dim", None) else 0
    if text is not None and text != fixed:
        raise ValueError(f"text of {name} must be {fixed}, the number of tokens that the model reads, got {text}")
    return fixed


def _checked(grid: Grid, config: Any) -> Grid:
    most = _fixed(config)
    if most is not None and any(side > limit for side, limit in zip(_sides(grid), _sides(most), strict=True)):
        raise ValueError(f"grid must lie inside the learned positions of {_sides(most)}, got {_sides(grid)}")
    return grid


def _fixed(config: Any) -> Grid | None:
    return next((Grid(*sides) for name in _FIXED if (sides := getattr(config, name, None))), None)


def _sides(grid: Grid) -> tuple[int, int, int]:
    return grid.t, grid.h, grid.w


def _own_grid(preset: Preset, config: Any) -> Grid:
    if preset.kind == "autoencoder":
        return LATENTS
    fixed = _fixed(config)
    if fixed is not None and fixed.tokens <= VIDEO.tokens:
        return fixed
    if getattr(config, "text_dim", None):
        return VIDEO
    _, height, width = getattr(config, "patch", (1, 2, 2))
    return Grid(1, max(IMAGE // height, 1), max(IMAGE // width, 1))


_Lived = tuple[int | None, int | None]


def _forward(
    model: nn.Module, grid: Grid, text: int, batch: int, dtype: torch.dtype, measured: bool
) -> tuple[Counts, _Lived]:
    inputs = forward_inputs(model, grid, batch=batch, text=text, dtype=dtype)
    counts = count(model, **inputs)
    return counts, (peak_bytes(model, **inputs), saved_bytes(model, **inputs)) if measured else (None, None)


def _autoencoder(model: Any, grid: Grid, batch: int, dtype: torch.dtype, measured: bool) -> tuple[Counts, _Lived]:
    """Encoding and decoding one after the other; the peak is the higher one."""
    video = torch.empty(
        batch, getattr(model.config, "in_channels", 3), *model.video_size(grid), dtype=dtype, device="meta"
    )
    z = torch.empty(batch, model.config.latent_channels, grid.t, grid.h, grid.w, dtype=dtype, device="meta")
    calls = {"encode": video, "decode": z}
    both = [count(model, x, call=call) for call, x in calls.items()]
    parts = (
        Part(a.name, a.parameters, a.dense + b.dense, a.attention + b.attention)
        for a, b in zip(*(counts.parts for counts in both), strict=True)
    )
    peak = max(peak_bytes(model, x, call=call) for call, x in calls.items()) if measured else None
    return Counts(tuple(parts)), (peak, None)


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.name or "(own)",
        "parameters": part.parameters,
        "macs": part.macs,
        "attention_macs": part.attention,
    }


def _json(value: Any) -> Any:
    """JSON has no tuples, and knows nothing of values that are no numbers or texts."""
    if isinstance(value, Mapping):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
