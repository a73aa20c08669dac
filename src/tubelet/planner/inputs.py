"""Inputs for any of the models, on ``meta``: what its forward takes by name, as wide as its config says."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from tubelet.layout import Grid, LayoutIndex, TokenLayout

__all__ = ["forward_inputs"]

_ASKED: Final = {
    "estimate": ("self_conditioning",),
    "given": ("given_channels",),
    "guidance": ("guidance",),
    "image": ("image_dim",),
    "image_layout": ("image_dim",),
    "known": ("known_channel", "frame_prediction"),
    "labels": ("classes",),
    "low": ("super_resolution",),
    "noise": ("super_resolution",),
    "ofs": ("ofs",),
    "text": ("text_dim",),
    "text_layout": ("text_dim",),
}
"""Inputs that a forward may leave out, and what in a config says that it does not."""


def forward_inputs(
    model: nn.Module, grid: Grid, *, batch: int = 1, text: int = 256, image: int = 257, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The named inputs of one forward of ``model`` on ``batch`` samples of a token grid, on the device ``meta``.

    Args:
        model: of :mod:`tubelet.models`, or any whose ``forward`` takes some of their inputs and has a ``config``.
        grid: of the tokens of each sample.
        batch: how many samples.
        text: tokens of each prompt; a model that fixes their number (``config.text_tokens``) has that.
        image: tokens of each conditioning image.
        dtype: of the inputs; None for that of the parameters.

    Raises:
        ValueError: the forward needs an input of another name.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8), device="meta")
        >>> inputs = forward_inputs(model, Grid(2, 3, 4), text=5)
        >>> list(inputs), inputs["x"].shape, inputs["text"].shape
        (['x', 't', 'text', 'layout', 'text_layout'], torch.Size([1, 24, 64]), torch.Size([1, 5, 8]))
    """
    config: Any = model.config
    kind = next(model.parameters()).dtype if dtype is None else dtype
    text = getattr(config, "text_tokens", text)
    made = _Made(config, TokenLayout.dense(batch, grid).on("meta"), batch, text, image, kind)
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(model).forward).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        asked = any(getattr(config, field, None) for field in _ASKED.get(name, ()))
        if name == "self" or not (required or asked):
            continue
        make = made.makers.get(name)
        if make is None:
            raise ValueError(
                f"{type(model).__name__} takes {name}, an input that is not among {', '.join(made.makers)}"
            )
        found[name] = make()
    return found


class _Made:
    """Each input by name, made when asked for."""

    def __init__(self, config: Any, layout: LayoutIndex, batch: int, text: int, image: int, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype

        def rows(tokens: int) -> LayoutIndex:
            return TokenLayout.padded([tokens] * batch, tokens).on("meta")

        self.makers: Mapping[str, Callable[[], Any]] = {
            "x": lambda: self.numbers(*layout.shape, getattr(config, "patch_dim", None) or config.latent_channels),
            "t": lambda: layout.rows(self.numbers(batch), "sample"),
            "layout": lambda: layout,
            "text": lambda: self.numbers(batch, text, config.text_dim),
            "text_layout": lambda: rows(text),
            "labels": lambda: torch.empty(batch, dtype=torch.long, device="meta"),
            "given": lambda: self.numbers(*layout.shape, config.given_dim),
            "known": lambda: self.numbers(*layout.shape, getattr(config, "known_dim", None) or config.cells),
            "estimate": lambda: self.numbers(*layout.shape, config.patch_dim),
            "low": lambda: self.numbers(*layout.shape, config.patch_dim),
            "noise": lambda: self.numbers(batch),
            "guidance": lambda: self.numbers(batch),
            "ofs": lambda: self.numbers(batch),
            "pooled": lambda: self.numbers(batch, config.pooled_dim),
            "places": lambda: torch.empty(*layout.shape, 3, device="meta"),
            "image": lambda: self.numbers(batch, image, config.image_dim),
            "image_layout": lambda: rows(image),
        }

    def numbers(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")
