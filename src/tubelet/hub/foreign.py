"""Models of other projects: diffusers' folders of ``config.json`` and safetensors, and the files of a model's authors.

A form is whose names a checkpoint has, ``"diffusers"`` or ``"original"``. Both have the same four functions, to and
from files and to and from a config with a state dict. The file is compared with the model before any tensor is read,
in the file's own names; then each tensor is read, renamed and put on its device in its dtype, one at a time.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tubelet.files import parsing
from tubelet.hub.allegro import ALLEGRO, ALLEGRO_ORIGINAL
from tubelet.hub.allegro_vae import ALLEGRO_VAE
from tubelet.hub.cogvideox import COGVIDEOX
from tubelet.hub.cogvideox_original import COGVIDEOX_ORIGINAL
from tubelet.hub.cogvideox_vae import COGVIDEOX_VAE
from tubelet.hub.cosmos import COSMOS, COSMOS_ORIGINAL
from tubelet.hub.cosmos_vae import COSMOS_VAE
from tubelet.hub.dc_vae import DC_VAE
from tubelet.hub.dit import DIT
from tubelet.hub.dit_original import DIT_ORIGINAL
from tubelet.hub.hunyuan import HUNYUAN_VIDEO
from tubelet.hub.hunyuan_original import HUNYUAN_VIDEO_ORIGINAL
from tubelet.hub.hunyuan_vae import HUNYUAN_VAE
from tubelet.hub.keys import Family
from tubelet.hub.kl_vae import KL_VAE
from tubelet.hub.latte import LATTE
from tubelet.hub.latte_original import LATTE_CLASS_ORIGINAL
from tubelet.hub.ltx import LTX, LTX_ORIGINAL
from tubelet.hub.ltx_vae import LTX_VAE
from tubelet.hub.magvit_vae import MAGVIT_VAE
from tubelet.hub.mochi import MOCHI
from tubelet.hub.mochi_original import MOCHI_ORIGINAL
from tubelet.hub.mochi_vae import MOCHI_VAE
from tubelet.hub.open_sora import OPEN_SORA
from tubelet.hub.svd_vae import SVD_VAE
from tubelet.hub.tensors import SHARD_SIZE, Tensors, fetch, held, opened, weight_files, write, write_json
from tubelet.hub.tiny_vae import TINY_VAE
from tubelet.hub.translation import to_ours, to_theirs
from tubelet.hub.uvit import UVIT_ORIGINAL
from tubelet.hub.vit import VIT, VIT_MODEL
from tubelet.hub.vit_timm import VIT_TIMM
from tubelet.hub.vivit import VIVIT
from tubelet.hub.wan import WAN
from tubelet.hub.wan_original import WAN_ORIGINAL
from tubelet.hub.wan_vae import WAN_VAE
from tubelet.hub.weights import build, check_dtype, config_type, describe, gather

__all__ = [
    "from_diffusers",
    "from_original",
    "load_diffusers",
    "load_original",
    "save_diffusers",
    "save_original",
    "to_diffusers",
    "to_original",
]

_FAMILIES = (
    ALLEGRO,
    ALLEGRO_ORIGINAL,
    ALLEGRO_VAE,
    COGVIDEOX,
    COGVIDEOX_ORIGINAL,
    COGVIDEOX_VAE,
    COSMOS,
    COSMOS_ORIGINAL,
    COSMOS_VAE,
    DIT,
    DIT_ORIGINAL,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_ORIGINAL,
    HUNYUAN_VAE,
    KL_VAE,
    LATTE,
    LATTE_CLASS_ORIGINAL,
    LTX,
    LTX_ORIGINAL,
    LTX_VAE,
    MAGVIT_VAE,
    MOCHI,
    MOCHI_ORIGINAL,
    MOCHI_VAE,
    OPEN_SORA,
    SVD_VAE,
    UVIT_ORIGINAL,
    VIVIT,
    VIT,
    VIT_MODEL,
    VIT_TIMM,
    WAN,
    WAN_ORIGINAL,
    WAN_VAE,
    DC_VAE,
    TINY_VAE,
)
_STEM = "diffusion_pytorch_model"
_STEMS = {"diffusers": (_STEM,), "original": (_STEM, "model")}


def load_diffusers(
    source: str | os.PathLike[str],
    *,
    family: str | None = None,
    subfolder: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Read a model of diffusers' as ours.

    Args:
        source: a folder, or else a repository ``"owner/name"``, of which only the subfolder's safetensors and JSON
            files are fetched.
        family: the architecture, such as ``"wan"``, where the config names no class.
        subfolder: where in ``source`` the model lies, such as ``"transformer"``.
        device: where the weights go; the CPU by default.
        dtype: of floating-point weights, float32 islands aside; None keeps the file's.
        revision: branch, tag or commit of a repository.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: no such folder or no model in it.
        ValueError: a class that has no adapter, a config that makes another model, or tensors that do not fit: one
            error lists all that are missing, unexpected or of another shape.

    Example:
        >>> import tempfile
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8))
        >>> folder = save_diffusers(model, Path(tempfile.mkdtemp()) / "transformer")
        >>> type(load_diffusers(folder.parent, subfolder="transformer", dtype=torch.bfloat16)).__name__
        'WanTransformer'
    """
    with opened_foreign("diffusers", source, family, subfolder, revision, device) as found:
        return _build(found, device, dtype)


def from_diffusers(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    family: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Our model from a config and a state dict of diffusers'; arguments and errors as in :func:`load_diffusers`.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8))
        >>> torch.equal(from_diffusers(*to_diffusers(model)).embed.weight, model.embed.weight)
        True
    """
    return _build(_in_memory("diffusers", config, state, family, device), device, dtype)


def to_diffusers(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model of ours as the config and the state dict of diffusers' class.

    Raises:
        ValueError: the model's class has no adapter, or its config is one that their class cannot have.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> config, state = to_diffusers(WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8)))
        >>> config["_class_name"], state["patch_embedding.weight"].shape
        ('WanTransformer3DModel', torch.Size([24, 16, 1, 2, 2]))
    """
    return _whole(*_theirs("diffusers", model))


def save_diffusers(
    model: nn.Module, directory: str | os.PathLike[str], *, max_shard_size: int | str = SHARD_SIZE
) -> Path:
    """Write a model of ours as a folder that diffusers' ``from_pretrained`` reads.

    Args:
        model: one whose class has an adapter.
        directory: made if need be; it must hold no weights.
        max_shard_size: bytes, or a text such as ``"500MB"``.

    Returns:
        ``directory``.

    Raises:
        ValueError: as :func:`to_diffusers`, or there are weights in the folder.

    Example:
        >>> import tempfile
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8))
        >>> sorted(file.name for file in save_diffusers(model, tempfile.mkdtemp()).iterdir())
        ['config.json', 'diffusion_pytorch_model.safetensors']
    """
    return _save("diffusers", model, directory, max_shard_size)


def load_original(
    source: str | os.PathLike[str],
    *,
    family: str | None = None,
    config: Any = None,
    subfolder: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Read a model as its authors publish it.

    Args:
        source: a folder with or without a ``config.json``; or one file of weights, ``.safetensors``, or ``.pt``,
            ``.pth``, ``.bin`` or ``.ckpt`` of which only tensors are read, never code; or else a repository
            ``"owner/name"``, of which only the subfolder's safetensors and JSON files are fetched.
        family: the architecture, such as ``"wan"``, where no config names a class. What a config would say is then
            taken from the tensors' shapes, where they say enough.
        config: one of ours, such as ``cosmos_1_7b()``, instead of what the file says; it makes ``family`` needless.
        subfolder: where in ``source`` the model lies, such as ``"high_noise_model"``.
        device: where the weights go; the CPU by default.
        dtype: of floating-point weights, float32 islands aside; None keeps the file's.
        revision: branch, tag or commit of a repository.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: no such folder or file, or no model in it.
        ValueError: nothing says which model it is, a class that has no adapter, a config that makes another model, or
            tensors that do not fit: one error lists all that are missing, unexpected or of another shape.

    Example:
        >>> import tempfile
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=128, depth=1, heads=1, mlp_dim=32))
        >>> folder = save_original(model, Path(tempfile.mkdtemp()) / "wan")
        >>> type(load_original(folder / "diffusion_pytorch_model.safetensors", family="wan")).__name__
        'WanTransformer'
    """
    with opened_foreign("original", source, family, subfolder, revision, device, config) as found:
        return _build(found, device, dtype)


def from_original(
    config: Any,
    state: Mapping[str, Tensor],
    *,
    family: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Our model from a state dict of its authors' and a config: theirs, which may be empty, or ours.

    The rest is as in :func:`load_original`.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> config, state = to_original(WanTransformer(WanConfig(dim=128, depth=1, heads=1, mlp_dim=32)))
        >>> from_original({}, state, family="wan").config == from_original(config, state).config
        True
    """
    theirs, ours = (config, None) if isinstance(config, Mapping) else ({}, config)
    return _build(_in_memory("original", theirs, state, family, device, ours), device, dtype)


def to_original(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model of ours as the config and the state dict of its authors' class.

    Raises:
        ValueError: the model's class has no adapter, or its config is one that their class cannot have.

    Example:
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> config, state = to_original(WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32)))
        >>> config["_class_name"], state["head.modulation"].shape
        ('WanModel', torch.Size([1, 2, 24]))
    """
    return _whole(*_theirs("original", model))


def save_original(
    model: nn.Module, directory: str | os.PathLike[str], *, max_shard_size: int | str = SHARD_SIZE
) -> Path:
    """Write a model of ours as a folder in its authors' names; arguments and errors as in :func:`save_diffusers`.

    Wan's own code reads such a folder. NVIDIA's reads ``torch.save`` of the state dict of :func:`to_original`.

    Example:
        >>> import tempfile
        >>> from tubelet.models import WanConfig, WanTransformer
        >>> model = WanTransformer(WanConfig(dim=24, depth=1, heads=2, mlp_dim=32))
        >>> sorted(file.name for file in save_original(model, tempfile.mkdtemp()).iterdir())
        ['config.json', 'diffusion_pytorch_model.safetensors']
    """
    return _save("original", model, directory, max_shard_size)


def _whole(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return config, {name: tensors.read(name) for name in tensors.like}


class Found(NamedTuple):
    """A checkpoint of another project's: what errors call it, its adapter, its config, its tensors and our config.

    The last is None where their config says enough.
    """

    where: str
    family: Family
    config: Mapping[str, Any]
    tensors: Tensors
    ours: Any = None


@contextmanager
def opened_foreign(
    form: str,
    source: str | os.PathLike[str],
    family: str | None,
    subfolder: str,
    revision: str | None,
    device: torch.device | str | None = None,
    ours: Any = None,
) -> Iterator[Found]:
    """A checkpoint in files, while they are open."""
    path = fetch(source, subfolder, revision)
    config: Mapping[str, Any] = {}
    if path.is_file() and form == "diffusers":
        raise FileNotFoundError(f"{path} is a file; a model of diffusers' is a folder")
    if (described := path / "config.json").is_file():
        with parsing(described):
            config = {**json.loads(described.read_text(encoding="utf-8"))}
    elif form == "diffusers":
        raise FileNotFoundError(f"{path} holds no config.json")
    if "_class" in config:
        raise ValueError(f"{path} is a folder of tubelet's own form, which hub.load reads")
    named = _named(form, config, family, ours)
    files, owners = ([path], {}) if path.is_file() else weight_files(path, _STEMS[form])
    with opened(files, owners, device) as tensors:
        yield Found(str(path), named, config, tensors, ours)


def adapter(form: str, cls: type[nn.Module]) -> Family:
    """The family that writes a class of ours in another form."""
    found = [family for family in _FAMILIES if family.form == form and family.model is cls]
    if not found:
        raise ValueError(f"{cls.__name__} has no adapter; {_known(form)}")
    return found[0]


def islands(cls: type[nn.Module]) -> Callable[[str], bool]:
    """Which tensors of a class of ours stay in float32; none of a class without an adapter."""
    found = [family for family in _FAMILIES if family.model is cls]
    return found[0].stays_wide if found else lambda name: False


def _named(form: str, config: Mapping[str, Any], name: str | None, ours: Any = None) -> Family:
    """The family of a config of ours, or else of the class that their config names, or else of that name."""
    peer = None if ours is not None else _peer(config)
    if peer is None and name is None and ours is None:
        raise ValueError(f"the config names no class (_class_name): give family=, such as 'wan'; {_known(form)}")
    found = [family for family in _FAMILIES if family.form == form and name in (None, family.name)]
    found = [family for family in found if peer in (None, family.peer)]
    if ours is not None:
        found = [family for family in found if config_type(family.model) is type(ours)]
    if not found:
        asked = type(ours).__name__ if ours is not None else peer or "a config without a class"
        raise ValueError(f"{asked}{f' as family {name!r}' if name else ''} has no adapter; {_known(form)}")
    return found[0]


def _peer(config: Mapping[str, Any]) -> Any:
    """The class that a config names: by diffusers' key, or by transformers', a list of one."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return config.get("_class_name", first)


def _known(form: str) -> str:
    families = [family for family in _FAMILIES if family.form == form]
    names = [f"{family.peer or 'files'} ({family.model.__name__}, family {family.name})" for family in families]
    return f"there is one for {', '.join(names)}"


def _in_memory(
    form: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    family: str | None,
    device: torch.device | str | None,
    ours: Any = None,
) -> Found:
    named = _named(form, config, family, ours)
    return Found("the state dict", named, config, held(state, device or "cpu"), ours)


def _build(found: Found, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    """Our model from their config and their tensors."""
    check_dtype(dtype)
    empty, tensors = to_ours(found.family, found.where, found.config, found.tensors, dtype, found.ours)
    return build(type(empty), found.where, describe(empty), tensors.shapes, tensors.read, device, None)


def _theirs(form: str, model: nn.Module) -> tuple[dict[str, Any], Tensors]:
    family = adapter(form, type(model))
    return to_theirs(family, model.config, held(gather(model)))


def _save(form: str, model: nn.Module, directory: str | os.PathLike[str], max_shard_size: int | str) -> Path:
    folder = Path(directory)
    if folder.is_dir() and (there := sorted(file.name for file in folder.glob("*.safetensors*"))):
        raise ValueError(f"directory {directory} already holds {there}")
    config, tensors = _theirs(form, model)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, tensors, adapter(form, type(model)).stem, max_shard_size)
    write_json(folder / "config.json", config)
    return folder
