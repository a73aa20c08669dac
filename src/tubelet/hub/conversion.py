"""A checkpoint of one form written in another, tensor by tensor: no model is built and no more than a shard is held.

The forms are ``"tubelet"`` (what :func:`tubelet.hub.save` writes), ``"diffusers"`` and ``"original"``. Everything is
compared on the meta device before the first tensor is read.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tubelet.hub import files, foreign
from tubelet.hub.tensors import SHARD_SIZE, Tensors, fetch, new_folder, opened, weight_files, write, write_json
from tubelet.hub.translation import recast, to_ours, to_theirs
from tubelet.hub.weights import blueprint, check_dtype, describe, gather, resolve

__all__ = ["convert"]

FORMS = ("tubelet", "diffusers", "original")
"""Whose names a checkpoint can have."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_form: str,
    target_form: str,
    family: str | None = None,
    config: Any = None,
    subfolder: str = "",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = SHARD_SIZE,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the checkpoint ``source`` in another form, in other shards or in another dtype.

    Args:
        source: a folder, a file of weights in the original form, or a repository ``"owner/name"``.
        target: a folder that does not exist. It is filled under another name beside its place and then renamed.
        source_form: ``"tubelet"``, ``"diffusers"`` or ``"original"``.
        target_form: the same.
        family: the architecture, such as ``"wan"``, where the source's config names no class.
        config: one of ours, such as ``cosmos_1_7b()``, where a source in the original form says too little.
        subfolder: where in ``source`` the model lies.
        dtype: of floating-point weights, float32 islands aside; None keeps each tensor's own.
        max_shard_size: bytes, or a text such as ``"500MB"``; so much memory is used.
        on_tensor: called with how many tensors are done, and of how many.

    Returns:
        ``target``.

    Raises:
        FileExistsError: there is something at ``target``.
        FileNotFoundError: no such source, or no model in it.
        ValueError: no such form; no adapter between the two for this model; a ``dtype`` that is not floating-point; a
            config that the other form cannot have; tensors that do not fit, in one error.

    Example:
        >>> import tempfile
        >>> from tubelet.hub import load, save
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> folder = Path(tempfile.mkdtemp())
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8))
        >>> ours, theirs = save(model, folder / "ours"), folder / "theirs"
        >>> file = convert(ours, theirs, source_form="tubelet", target_form="diffusers") / "config.json"
        >>> file.read_text().split()[2]
        '"WanTransformer3DModel",'
    """
    for name, form in (("source_form", source_form), ("target_form", target_form)):
        if form not in FORMS:
            raise ValueError(f"{name} must be one of {', '.join(FORMS)}, got {form!r}")
    check_dtype(dtype)
    if config is not None and source_form != "original":
        raise ValueError(f"config is for sources in the original form, got {config} with {source_form=}")
    with _opened(source, source_form, family, config, subfolder, dtype) as found:
        stem = files.STEM
        written, tensors = dict(found.description), found.tensors
        if target_form != "tubelet":
            adapter = foreign.adapter(target_form, type(found.model))
            stem = adapter.stem
            written, tensors = to_theirs(adapter, found.model.config, found.tensors)
        with new_folder(target) as folder:
            write(folder, tensors, stem, max_shard_size, on_tensor)
            write_json(folder / "config.json", written)
    return Path(target)


class _Ours(NamedTuple):
    """A model on the meta device, the tensors that belong into it, and what a folder of ours says about it."""

    model: nn.Module
    tensors: Tensors
    description: dict[str, Any]


@contextmanager
def _opened(
    source: str | os.PathLike[str],
    form: str,
    family: str | None,
    config: Any,
    subfolder: str,
    dtype: torch.dtype | None,
) -> Iterator[_Ours]:
    """A checkpoint of any form as ours."""
    if form != "tubelet":
        with foreign.opened_foreign(form, source, family, subfolder, None, ours=config) as found:
            model, tensors = to_ours(found.family, found.where, found.config, found.tensors, dtype, config)
            yield _Ours(model, tensors, {**describe(model), "metadata": {}})
        return
    folder = fetch(source, subfolder, None)
    description = files.read_description(folder)
    if family is not None and family != (found_family := resolve(description["_class"]).__module__.rpartition(".")[2]):
        raise ValueError(f"family={family!r}, but {folder} holds a model of family {found_family!r}")
    with opened(*weight_files(folder, (files.STEM,))) as tensors:
        model = blueprint(resolve(description["_class"]), str(folder), description, tensors.shapes)
        ordered = Tensors({name: tensors.like[name] for name in gather(model)}, tensors.read)
        yield _Ours(model, recast(ordered, dtype, foreign.islands(type(model))), description)
