"""Every published size of the library, found by what the modules annotate: no list is kept.

A preset is a public function that needs no argument and returns a config; the model of a config is the module whose
``__init__`` takes it as ``config``. What lands in ``tubelet.models`` or ``tubelet.vae`` is found without an edit here.
"""

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tubelet.planner.arguments import Written, accepted, read_name

__all__ = ["Preset", "find_preset", "preset_of", "presets"]

_PACKAGES = ("tubelet.models", "tubelet.vae")


@dataclass(frozen=True)
class Preset:
    """A published size: its name, the function that makes its config, and the class of its model.

    Example:
        >>> preset = presets()["dit_xl"]
        >>> preset.architecture, preset.build().config.depth
        ('DiT', 28)
    """

    name: str
    config: Callable[[], Any]
    model: Callable[..., nn.Module]

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        return self.model.__name__

    @property
    def kind(self) -> str:
        """``"autoencoder"`` where the model encodes and decodes videos, ``"denoiser"`` where it takes a time ``t``.

        Any other is a ``"classifier"``.
        """
        if hasattr(self.model, "decode"):
            return "autoencoder"
        takes = inspect.signature(getattr(self.model, "forward", self.model)).parameters
        return "denoiser" if "t" in takes else "classifier"

    def build(self, device: torch.device | str = "meta", dtype: torch.dtype | None = None) -> nn.Module:
        """The model, by default without weights.

        Example:
            >>> next(presets()["wan_14b"].build().parameters()).device
            device(type='meta')
        """
        with _Unfilled():
            return self.model(self.config(), device=device, dtype=dtype)


class _Unfilled(TorchFunctionMode):
    """Numbers that are written over those of a tensor on ``meta`` are not; most of a model's making is that."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _FILLS or getattr(func, "__module__", None) == nn.init.__name__:
            tensor: torch.Tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


_FILLS = frozenset({torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.zero_, torch.Tensor.fill_})


@cache
def presets() -> MappingProxyType[str, Preset]:
    """Every preset by name, in the order of architectures and of their modules.

    Example:
        >>> sorted(name for name in presets() if name.startswith("dit_"))
        ['dit_b', 'dit_l', 'dit_s', 'dit_xl']
    """
    found = (
        Preset(name, make, model)
        for module in _all_modules()
        for name, make, config in _makers(module)
        if (model := _model_of(config, _all_models())) is not None
    )
    return MappingProxyType({preset.name: preset for preset in found})


def find_preset(name: str) -> Preset:
    """The preset of a name; letters may be small or large, and dashes stand for underscores.

    Arguments of the preset's function, integers and words, may follow: ``dit_xl(patch=4)``, or as papers write patches,
    ``DiT-XL/4`` and ``ViViT-B/16x2`` (rows and columns, then frames).

    Raises:
        ValueError: there is none (the error has names that are near), or not with such arguments.

    Example:
        >>> find_preset("Wan-14B").name, find_preset("DiT-XL/2").name
        ('wan_14b', 'dit_xl')
        >>> find_preset("vivit_b(factorised_encoder)").name
        "vivit_b(variant='factorised_encoder')"
    """
    written = read_name(name)
    key = written.stem.lower().replace("-", "_").replace(".", "_")
    if key in presets():
        preset = presets()[key]
        return _with_arguments(preset, accepted(key, preset.config, _less_own_patch(preset, written)))
    near = [*(each for each in presets() if key and key in each), *difflib.get_close_matches(key, presets(), 5, 0.5)]
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "tubelet info lists them"
    raise ValueError(f"no preset is called {name!r}: {hint}")


def preset_of(config: Any) -> Preset:
    """A preset around a config of one's own, under the name of its class.

    Raises:
        ValueError: no model is made of such a value.

    Example:
        >>> from tubelet.models import dit_xl
        >>> preset_of(dit_xl(4)).architecture
        'DiT'
    """
    model = _model_of(type(config), _all_models())
    if model is None:
        what = config.__name__ if isinstance(config, type) else type(config).__name__
        raise ValueError(f"model must be the name of a preset, a Preset or the config of a model, got {what}")
    return Preset(type(config).__name__, lambda: config, model)


def _less_own_patch(preset: Preset, written: Written) -> Written:
    """Without the patch where the function takes none and its config has just that one, as of ``Latte-XL/2``."""
    sides, takes = getattr(preset.config(), "patch", None), inspect.signature(preset.config).parameters
    own = {("frames", sides[0]), ("patch", sides[-1])} if isinstance(sides, tuple) else set()
    named = {key: value for key, value in written.named.items() if key in takes or (key, value) not in own}
    return replace(written, named=named)


def _with_arguments(preset: Preset, arguments: Mapping[str, Any]) -> Preset:
    if not arguments:
        return preset
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return Preset(f"{preset.name}({listed})", partial(preset.config, **arguments), preset.model)


@cache
def _all_modules() -> tuple[ModuleType, ...]:
    return tuple(module for package in _PACKAGES for module in _modules(package))


@cache
def _all_models() -> tuple[tuple[type, Callable[..., nn.Module]], ...]:
    return tuple(pair for module in _all_modules() for pair in _models(module))


def _modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(package)
    names = (info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))
    yield from map(importlib.import_module, sorted(names))


def _makers(module: ModuleType) -> Iterator[tuple[str, Callable[[], Any], type]]:
    """Public functions of no required argument that return a config."""
    for name in getattr(module, "__all__", ()):
        function = getattr(module, name)
        if not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        config = _hints(function).get("return")
        free = not any(map(_required, inspect.signature(function).parameters.values()))
        if free and isinstance(config, type) and config.__name__.endswith("Config"):
            yield name, function, config


def _required(parameter: inspect.Parameter) -> bool:
    gathers = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not gathers


def _models(module: ModuleType) -> Iterator[tuple[type, Callable[..., nn.Module]]]:
    """Public modules made of a config."""
    for name in getattr(module, "__all__", ()):
        kind = getattr(module, name)
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__:
            config = _hints(kind.__init__).get("config")
            if isinstance(config, type):
                yield config, kind


def _model_of(config: type, models: Sequence[tuple[type, Callable[..., nn.Module]]]) -> Callable[..., nn.Module] | None:
    """Of those that take the config the one that has its name; a part of the model may take it, too."""
    stem = config.__name__.removesuffix("Config")
    named = [model for kind, model in models if kind is config and model.__name__.startswith(stem)]
    return min(named, key=lambda model: len(model.__name__), default=None)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name that only the type checker imports
        return {}
