"""What backbones share around their wiring: checks of inputs, layouts on their device, parameters anew.

The checks come before shapes that happen to broadcast give a wrong answer.
"""

import math
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.layout import JointIndex, JointLayout, LayoutIndex, Rows, TokenLayout

__all__: list[str] = []

_COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def index_time(level: Tensor, scale: float, shift: float = 0.0) -> Tensor:
    """Noise levels in [0, 1] as the times a network was trained on, ``scale·level + shift``, not below 0.

    Networks of a discrete path count from 0, where level ``(i + 1)/N`` is index ``i``: scale N, shift -1. Half
    precision would round times of hundreds to whole steps and worse: they are made in float32 or better.
    """
    return (level.to(torch.promote_types(level.dtype, torch.float32)) * scale + shift).clamp(min=0)


def check_fields(config: Any) -> None:
    """Refuse values of other types than their annotations, numbers that are not finite, scales that are not positive.

    A text ``"2"``, a NaN or two axes of three would pass many comparisons, and fail far from here or not at all.
    """
    hints = typing.get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        union = typing.get_origin(hints[name]) in (typing.Union, types.UnionType)
        kinds = list(typing.get_args(hints[name]) if union else [hints[name]])
        value = getattr(config, name)
        wanted = [_wanted(kind, value) for kind in kinds]
        if None not in wanted:
            raise ValueError(f"{name} must be {wanted[0]}, got {value!r}")
        if value is not None and name.endswith(("eps", "time_scale")) and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _wanted(kind: Any, value: Any) -> str | None:
    """What a value must be by its annotation; None where it is, or the annotation is of a kind not looked at."""
    if kind in _KINDS:
        fits, words = _KINDS[kind]
        return None if fits(value) else words
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return None if value in arguments else f"one of {arguments}"
    if typing.get_origin(kind) is tuple:
        if type(value) is tuple and len(value) == len(arguments) and not any(map(_wanted, arguments, value)):
            return None
        number = "whole numbers" if int in arguments else "finite numbers"
        return f"{len(arguments)} {number} in a tuple"
    return None


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: type(value) is bool, "True or False"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (lambda value: type(value) in (int, float) and math.isfinite(value), "a finite number"),
    str: (lambda value: type(value) is str, "a text"),
    type(None): (lambda value: value is None, "None"),
}


def check_patch(patch: tuple[int, ...]) -> None:
    """Refuse what is no ``(t, h, w)`` of positive whole numbers."""
    if type(patch) is not tuple or len(patch) != 3 or not all(type(n) is int and n > 0 for n in patch):
        raise ValueError(f"patch must be three positive whole numbers (t, h, w) in a tuple, got {patch!r}")


def check_axes(rope_axes: tuple[int, int, int], dim: int, heads: int) -> None:
    """Refuse what does not share the width of a head among three axes, in pairs."""
    if dim % heads or sum(rope_axes) != dim // heads:
        raise ValueError(f"dim={dim} does not make heads={heads} of rope_axes={rope_axes}")
    if any(width < 0 or width % 2 for width in rope_axes):
        raise ValueError(f"rope_axes must be even widths, got {rope_axes}")


def check_hidden(dim: int, mlp_ratio: float) -> None:
    """Refuse an MLP without hidden features."""
    if int(dim * mlp_ratio) < 1:
        raise ValueError(f"mlp_ratio={mlp_ratio} leaves dim={dim} no hidden width")


def real_levels(t: Rows, layout: LayoutIndex, name: str = "t") -> Rows:
    """Noise levels of a layout's tokens, with zeros in rows that no real token uses.

    NaN there would be none in the prediction, but in the gradient of every weight that conditions make.

    Raises:
        ValueError: indices of a discrete path, levels outside [0, 1], or rows of another layout, which would broadcast
            or be the wrong ones. Numbers are looked at on the CPU only, where nothing waits.
    """
    _check_rows(t, layout.shape, name)
    used = _used(t, layout)
    levels = t if used is None else Rows(torch.where(used, t.values, 0), t.index, t.owner)
    _check_range(levels.values, name)
    return levels


def _used(rows: Rows, layout: LayoutIndex) -> Tensor | None:
    """Which rows a real token uses, as flags; None where all are used."""
    if rows.index is not None:
        uses = torch.zeros(rows.values.shape[0], dtype=torch.int, device=rows.values.device)
        return uses.index_add(0, rows.index.flatten(), layout.valid.flatten().int()) > 0
    if len(layout.shape) == 2 and not layout.dense and rows.values.shape[0] == layout.shape[0]:
        return layout.valid.any(dim=-1)
    return None


def check_rates(name: str, rates: Rows, layout: LayoutIndex) -> None:
    """Refuse rates of another layout, and those that are not positive numbers; these are looked at on the CPU only."""
    if rates.index is not None and rates.index.shape != layout.shape:
        raise ValueError(f"{name} has an index of shape {tuple(rates.index.shape)}, but layout has {layout.shape}")
    if not host_readable(rates.values):
        return
    used = _used(rates, layout)
    real = (rates.values if used is None else rates.values[used]).detach()
    if real.numel() and not (float(real.min()) > 0 and float(real.max()) < math.inf):
        raise ValueError(f"{name} must be positive numbers, got {real.tolist()}")


def _check_rows(t: Rows, lead: tuple[int, ...], name: str) -> None:
    if not isinstance(t, Rows):
        raise ValueError(
            f"{name} must be Rows of levels, such as layout.rows(levels, 'sample'), got {type(t).__name__}"
        )
    values, index = t.values, t.index
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(f"{name} must hold scalars (r,), got {values.dtype} of shape {tuple(values.shape)}")
    if index is None:
        if values.shape[0] not in ((1, lead[0]) if len(lead) > 1 else (1,)):
            raise ValueError(
                f"{name} has {values.shape[0]} values without an index, but layout has {lead}: use layout.rows"
            )
        return
    if tuple(index.shape) != lead:
        raise ValueError(f"{name} has an index of shape {tuple(index.shape)}, but layout has {lead}")
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must have an index of row numbers, int32 or int64, got {index.dtype}")
    if index.numel() and host_readable(index):
        least, most = (int(bound) for bound in index.aminmax())
        if least < 0 or most >= values.shape[0]:
            raise ValueError(f"{name} has an index of {least} to {most}, but {values.shape[0]} rows")


def readable(values: Tensor) -> bool:
    """Whether the numbers of a tensor can be read here: not while a graph is made or a function transformed."""
    if torch.compiler.is_compiling() or type(values) is not Tensor or values.device.type == "meta":
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def host_readable(values: Tensor) -> bool:
    """Whether they can be read without waiting for a device."""
    return values.device.type == "cpu" and readable(values)


def _check_range(levels: Tensor, name: str) -> None:
    """Refuse times of a schedule (500 of 1000) where levels belong, and NaN; a step's rounding is let pass."""
    if levels.numel() and host_readable(levels):
        least, most = (float(bound) for bound in levels.detach().aminmax())
        if not (least >= -1e-3 and most <= 1 + 1e-3):  # NaN is neither
            found = f"got {least} to {most}" if least < most else f"got {least}"
            raise ValueError(f"{name} holds noise levels in [0, 1], {found}: divide times of a schedule by its steps")


def check_dtypes(linear: nn.Module, **tokens: Any) -> None:
    """Refuse tokens of another dtype than the weights that multiply them, where no autocast makes them one.

    Weights that are stored as something else than they are computed in, such as float8, are not looked at.
    """
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in _COMPUTED or weight.is_meta:
        return
    if torch.is_autocast_enabled(weight.device.type):
        return
    for name, x in tokens.items():
        if isinstance(x, Tensor) and x.dtype != weight.dtype:
            raise ValueError(
                f"{name} is {x.dtype}, but the model's weights are {weight.dtype}: cast one, or use torch.autocast"
            )


def check_tokens(name: str, x: Any, width: int, layout: LayoutIndex, samples: LayoutIndex) -> None:
    """Refuse tokens of another width or of another layout, and layouts of other samples."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor of tokens ({', '.join(map(str, layout.shape))}, {width}), got {x!r}")
    if x.shape[-1] != width:
        raise ValueError(f"{name} is {x.shape[-1]} wide, but the model takes {width}")
    if tuple(x.shape[:-1]) != layout.shape:
        raise ValueError(f"{name} has tokens {tuple(x.shape[:-1])}, but its layout has {layout.shape}")
    if not samples.same_samples(layout):
        raise ValueError(f"layout has {samples.samples} samples, but that of {name} has {layout.samples}")


def check_no_text(name: str, layout: LayoutIndex) -> None:
    """Refuse samples with text on the axis of their video, which a model would take for patches; not in graphs."""
    if not torch.compiler.is_compiling() and bool(layout.table[:, 2].any()):
        found = layout.table[: layout.samples, 2].tolist()
        raise ValueError(f"{name} has samples with text of {found} tokens, but {name} is of patches alone")


def check_whole(name: str, layout: LayoutIndex) -> None:
    """Refuse samples of which tokens were dropped."""
    if layout.kept is not None:
        raise ValueError(f"{name} of {layout.shape} has dropped tokens, but the model takes whole samples")


def check_longest(name: str, layout: LayoutIndex, most: int, config: str) -> None:
    """Refuse samples of more tokens than a table of learned positions has; looked at on the host, not in graphs."""
    if not torch.compiler.is_compiling() and (longest := int(layout.table[:, 1].max())) > most:
        raise ValueError(f"{name} has {longest} tokens, but the model has {config}={most}")


def check_per_sample(name: str, values: Any, shape: tuple[int, ...], layout: LayoutIndex) -> None:
    """Refuse values of other samples; a full table's number of real samples is not read, so graphs hold no guard on it.

    ``shape`` is that of one sample's value.
    """
    if not isinstance(values, Tensor):
        wanted = f"torch.full(({layout.samples},), {values})" if isinstance(values, int | float) else "one row a sample"
        raise ValueError(f"{name} must be a tensor of values of samples, {wanted}, got {values!r}")
    real, capacity = layout.row_counts("sample")
    found = tuple(values.shape)
    if found[1:] != shape or len(found) != 1 + len(shape) or (found[0] != capacity and found[0] != real):
        raise ValueError(f"{name} has shape {found}, but layout has {real} samples of {shape}")


def check_asked(name: str, value: Any, asked: bool, why: str) -> None:
    """Refuse an input that a model does not take, and its lack in one that does; ``why`` is what its config says."""
    if (value is None) == asked:
        found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} is {found}, but the model has {why}")


def per_sample(name: str, values: Tensor, shape: tuple[int, ...], layout: LayoutIndex) -> Tensor:
    """Values of the layout's samples, with zeros for those that it only has room for."""
    check_per_sample(name, values, shape, layout)
    if layout.dense or values.shape[0] != layout.seqlens.shape[0]:
        return values
    return torch.where((layout.seqlens > 0).view(-1, *(1 for _ in shape)), values, 0)


def checked_guidance(guidance: Tensor | None, told: bool, layout: LayoutIndex) -> Tensor | None:
    """Strengths per sample, refused where a model is not told them, lacks them, or they are negative.

    Numbers are looked at on the CPU only.
    """
    check_asked("guidance", guidance, told, f"guidance={told}")
    if guidance is None:
        return None
    guidance = per_sample("guidance", guidance, (), layout)
    if host_readable(guidance) and not bool((guidance >= 0).all()):
        raise ValueError(f"guidance must be 0 or more, got {guidance.tolist()}")
    return guidance


def check_given(given: Tensor | None, channels: int, width: int, layout: LayoutIndex) -> None:
    """Refuse given patches that a model does not read, their lack in one that does, and those of another width."""
    check_asked("given", given, channels > 0, f"given_channels={channels}")
    if given is not None:
        check_tokens("given", given, width, layout, layout)


def on(layout: TokenLayout | LayoutIndex, x: Tensor, name: str = "layout") -> LayoutIndex:
    """The layout's index where ``x`` lies."""
    if not isinstance(layout, TokenLayout | LayoutIndex):
        raise ValueError(f"{name} must be a TokenLayout or the index of one, got {layout!r}")
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor of tokens {layout.shape}, got {x!r}")
    return layout.on(x.device) if isinstance(layout, TokenLayout) else layout


def reset_children(model: nn.Module) -> None:
    """Every descendant anew (after meta construction, say), the deepest first: parents have the last word."""
    for child in reversed(list(model.modules())[1:]):
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()


def joined(
    text_layout: TokenLayout | LayoutIndex, layout: TokenLayout | LayoutIndex, joint: JointIndex | None, x: Tensor
) -> JointIndex:
    """The index of the merged axis, text first, made here where none is given; it must be of these very layouts."""
    if joint is None:
        if isinstance(text_layout, TokenLayout) and isinstance(layout, TokenLayout):
            return JointLayout((text_layout, layout)).on(x.device)
        return JointIndex.of(on(text_layout, x), on(layout, x))
    found, asked = [tuple(places.shape) for places in joint.places], [text_layout.shape, layout.shape]
    if found != asked:
        raise ValueError(f"joint merges tokens of {found}, but text_layout and layout have {asked}")
    if not torch.compiler.is_compiling():  # graphs serve any layouts of a capacity, and look at none
        layouts = {"text_layout": text_layout, "layout": layout}
        for (name, each), stream in zip(layouts.items(), joint.streams, strict=True):
            if (difference := stream.difference(each.host)) is not None:
                raise ValueError(f"joint was made of another {name}: {difference}")
    return joint


def highest_levels(t: Rows, layout: LayoutIndex, text_layout: LayoutIndex) -> Rows:
    """Noise levels for the text of each sample: its highest. Rows by view, one per batch element, serve as they are."""
    if t.index is None:
        return t
    levels = torch.where(layout.valid, t.expand(), 0).flatten()
    owner = layout.sample.flatten().clamp(min=0)
    highest = levels.new_zeros(layout.seqlens.shape[0]).scatter_reduce(0, owner, levels, "amax")
    return text_layout.add_per_sample(Rows(highest.new_zeros(1)), highest)
