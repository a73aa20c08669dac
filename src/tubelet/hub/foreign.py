"""Models of other projects in the Hugging Face layout: diffusers' folders of ``config.json`` and safetensors.

The file is compared with the model before any tensor is read, in the file's own names; then each tensor is read,
renamed and put on its device in its dtype, one at a time.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tubelet.files import parsing
from tubelet.hub.allegro import ALLEGRO
from tubelet.hub.cogvideox import COGVIDEOX
from tubelet.hub.configs import to_dict
from tubelet.hub.cosmos import COSMOS
from tubelet.hub.dit import DIT
from tubelet.hub.hunyuan import HUNYUAN_VIDEO
from tubelet.hub.keys import Family
from tubelet.hub.latte import LATTE
from tubelet.hub.ltx import LTX
from tubelet.hub.mochi import MOCHI
from tubelet.hub.wan import WAN
from tubelet.hub.weights import build, gather

__all__ = ["from_diffusers", "load_diffusers", "save_diffusers", "to_diffusers"]

_FAMILIES = (
    ALLEGRO,
    COGVIDEOX,
    COSMOS,
    DIT,
    HUNYUAN_VIDEO,
    LATTE,
    LTX,
    MOCHI,
    WAN,
)
_STEM = "diffusion_pytorch_model"
_FILE = re.compile(_STEM + r"(-\d+-of-\d+)?\.safetensors")


def load_diffusers(
    source: str | os.PathLike[str],
    *,
    subfolder: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Read a model of diffusers' as ours.

    Args:
        source: a folder, or else a repository ``"owner/name"``, of which only the subfolder's safetensors and JSON
            files are fetched.
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
    from safetensors import safe_open

    folder = _fetch(source, subfolder, revision)
    with parsing(folder / "config.json"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with ExitStack() as stack:
        files = []
        for path in _weight_files(folder):
            with parsing(path):
                files.append(stack.enter_context(safe_open(path, "pt", device=str(device or "cpu"))))
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in where.items()}
        return _build(str(folder), config, shapes, lambda name: where[name].get_tensor(name), device, dtype)


def from_diffusers(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
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
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def read(name: str) -> Tensor:
        return state[name].detach().to(device or "cpu")

    return _build("the state dict", config, shapes, read, device, dtype)


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
    family = _family(lambda family: type(model) is family.model, type(model).__name__)
    config: Any = model.config
    written = {"_class_name": family.peer, **family.write_config(config)}
    state = family.keys(config).to_theirs(gather(model))
    return written, {name: tensor.contiguous() for name, tensor in state.items()}


def save_diffusers(model: nn.Module, directory: str | os.PathLike[str], *, max_shard_size: int | str = "10GB") -> Path:
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
    from huggingface_hub import save_torch_state_dict

    folder = Path(directory)
    if folder.is_dir() and (there := sorted(file.name for file in folder.glob("*.safetensors*"))):
        raise ValueError(f"directory {directory} already holds {there}")
    config, state = to_diffusers(model)
    folder.mkdir(parents=True, exist_ok=True)
    pattern = _STEM + "{suffix}.safetensors"
    save_torch_state_dict(state, folder, filename_pattern=pattern, max_shard_size=max_shard_size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _build(
    where: str,
    theirs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Our model from their config and their tensors, of which ``read`` gives one by name."""
    family = _family(lambda family: family.peer == theirs.get("_class_name"), str(theirs.get("_class_name")))
    try:
        config = family.read_config(theirs)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    keys, make = family.keys(config), cast(Any, family.model)
    known = {name: shape for name, shape in shapes.items() if not keys.ignores(name)}
    empty: nn.Module = make(config, device="meta")
    _check(where, family, keys.to_theirs(gather(empty)), known)
    sources = {name: group for group in keys.groups(known, "theirs")[0] for name in group.ours}

    def read_ours(name: str) -> Tensor:
        group = sources[name]
        tensor = group.entry.to_ours(*map(read, group.theirs))[group.ours.index(name)]
        return tensor if dtype is None else tensor.to(_dtype(family, name, tensor, dtype))

    ours = {name: tuple(tensor.shape) for name, tensor in gather(empty).items()}
    return build(family.model, where, {"config": to_dict(config)}, ours, read_ours, device, None)


def _dtype(family: Family, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype asked for, float32 or better in the family's islands; integers keep theirs."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.promote_types(dtype, torch.float32) if family.stays_wide(name) else dtype


def _check(where: str, family: Family, expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One error in the file's names for all that does not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    faults = [f"missing {name} {wanted[name]}" for name in wanted if name not in shapes]
    faults += [f"unexpected {name} {shapes[name]}" for name in shapes if name not in wanted]
    both = [name for name in wanted if name in shapes]
    faults += [f"{name} is {shapes[name]}, expected {wanted[name]}" for name in both if shapes[name] != wanted[name]]
    if faults:
        lines = "\n  ".join(faults)
        raise ValueError(f"{where}: its tensors do not fit {family.peer} in {len(faults)} places:\n  {lines}")


def _family(fits: Callable[[Family], bool], name: str) -> Family:
    for family in _FAMILIES:
        if fits(family):
            return family
    known = [f"{family.peer} ({family.model.__name__})" for family in _FAMILIES]
    raise ValueError(f"{name} has no adapter; there is one for {', '.join(known)}")


def _fetch(source: str | os.PathLike[str], subfolder: str, revision: str | None) -> Path:
    """The local folder, downloaded if need be."""
    folder = Path(source) / subfolder
    if not Path(source).is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
            raise FileNotFoundError(f"{source} is neither a folder nor a repository's name 'owner/name'")
        from huggingface_hub import snapshot_download

        inside = f"{subfolder}/" if subfolder else ""
        patterns = [f"{inside}*.safetensors", f"{inside}*.json"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns)) / subfolder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """The one weights file, or the shards that the index names; names only, so they stay in the folder."""
    names, index = [f"{_STEM}.safetensors"], folder / f"{_STEM}.safetensors.index.json"
    if index.is_file():
        with parsing(index):
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in map(str, names):
        if not _FILE.fullmatch(name) or not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no weights file {name!r}")
    return [folder / name for name in names]
