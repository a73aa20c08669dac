"""Two experts in one folder: a sub-folder each, in any form, and their boundary beside them.

Diffusers keeps Wan 2.2's A14B so: ``transformer`` for high noise, ``transformer_2`` for low noise, and
``boundary_ratio`` in the pipeline's ``model_index.json``. Their authors call the folders ``high_noise_model`` and
``low_noise_model`` and keep the boundary in code.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tubelet.files import parsing
from tubelet.hub.files import load, save
from tubelet.hub.foreign import load_diffusers, load_original, save_diffusers, save_original
from tubelet.hub.tensors import SHARD_SIZE, fetch, new_folder, write_json
from tubelet.models import NoiseExperts

__all__ = ["load_experts", "save_experts"]

_INDEX, _BOUNDARY = "model_index.json", "boundary_ratio"
_FOLDERS = {
    "tubelet": ("transformer", "transformer_2"),
    "diffusers": ("transformer", "transformer_2"),
    "original": ("high_noise_model", "low_noise_model"),
}
_LOADERS: dict[str, Callable[..., nn.Module]] = {
    "tubelet": load,
    "diffusers": load_diffusers,
    "original": load_original,
}
_SAVERS: dict[str, Callable[..., Path]] = {"tubelet": save, "diffusers": save_diffusers, "original": save_original}


def save_experts(
    experts: NoiseExperts,
    directory: str | os.PathLike[str],
    *,
    form: str = "tubelet",
    max_shard_size: int | str = SHARD_SIZE,
) -> Path:
    """Write both experts and their boundary to a new folder.

    Args:
        experts: both of a class that the form can hold.
        directory: must not exist; it appears when it is complete.
        form: ``"tubelet"``, ``"diffusers"`` or ``"original"``.
        max_shard_size: bytes, or a text such as ``"500MB"``.

    Returns:
        ``directory``.

    Raises:
        FileExistsError: there is something at ``directory``.
        ValueError: no such form, or an expert that it cannot hold.

    Example:
        >>> import tempfile
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> config = WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8)
        >>> experts = NoiseExperts(WanTransformer(config), WanTransformer(config), boundary=0.875)
        >>> folder = save_experts(experts, Path(tempfile.mkdtemp()) / "both")
        >>> sorted(file.name for file in folder.iterdir()), load_experts(folder).boundary
        (['model_index.json', 'transformer', 'transformer_2'], 0.875)
    """
    _check_form(form)
    with new_folder(directory) as folder:
        for name, expert in zip(_FOLDERS[form], (experts.high, experts.low), strict=True):
            _SAVERS[form](expert, folder / name, max_shard_size=max_shard_size)
        write_json(folder / _INDEX, {_BOUNDARY: experts.boundary})
    return Path(directory)


def load_experts(
    source: str | os.PathLike[str],
    *,
    form: str = "tubelet",
    boundary: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> NoiseExperts:
    """Read two experts as one denoiser.

    Args:
        source: a folder of :func:`save_experts` or of a pipeline of diffusers', or a repository ``"owner/name"`` such
            as ``"Wan-AI/Wan2.2-T2V-A14B-Diffusers"``.
        form: ``"tubelet"``, ``"diffusers"`` or ``"original"``.
        boundary: the noise level between them; None: what ``model_index.json`` says.
        device, dtype, revision: as for :func:`tubelet.hub.load`.

    Returns:
        The experts, in eval mode.

    Raises:
        FileNotFoundError: no such folder, or no experts in it.
        ValueError: no such form, no boundary, or as for the form's own function of one model.

    Example:
        See :func:`save_experts`.

        >>> callable(load_experts)
        True
    """
    _check_form(form)
    if boundary is None:
        boundary = _noted(fetch(source, "", revision, (_INDEX,)) / _INDEX)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
    high, low = (_LOADERS[form](source, subfolder=name, **options) for name in _FOLDERS[form])
    return NoiseExperts(high, low, boundary).eval()


def _noted(file: Path) -> float:
    """The boundary that a pipeline's index notes."""
    index: Any = {}
    if file.is_file():
        with parsing(file):
            index = {**json.loads(file.read_text(encoding="utf-8"))}
    if type(found := index.get(_BOUNDARY)) not in (int, float):
        raise ValueError(f"{file} notes no {_BOUNDARY}, got {found!r}: give boundary=, such as 0.875")
    return float(found)


def _check_form(form: str) -> None:
    if form not in _FOLDERS:
        raise ValueError(f"form must be one of {', '.join(_FOLDERS)}, got {form!r}")
