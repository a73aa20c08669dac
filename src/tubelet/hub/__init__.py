"""Models in files: safetensors weights beside a strict JSON config, never pickle.

Any ``nn.Module`` takes part that has a frozen dataclass as its ``config`` and is built by
``Cls(config, device=..., dtype=...)``; there is no base class.

- :func:`save` and :func:`load` keep one model in one folder, sharded, or read it from a Hugging Face repository;
- :func:`save_experts` and :func:`load_experts` keep the two experts of a denoiser in sub-folders of one, in any form;
- :func:`save_bundle` and :func:`load_bundle` keep several models in one file;
- :func:`load_diffusers`, :func:`save_diffusers`, :func:`from_diffusers` and :func:`to_diffusers` are the adapters to
  diffusers' checkpoints, and the same four with ``original`` those to the files of a model's authors; a
  :class:`Family` is one more;
- :func:`convert` turns a checkpoint of one form into another without building a model;
- :func:`use_attend` makes a model of diffusers' attend by :func:`tubelet.attend`;
- :func:`read_metadata` reads what was noted beside either;
- :func:`to_dict` and :func:`from_dict` are the configs' own two ways.
"""

from tubelet.hub.attention import Attending, use_attend
from tubelet.hub.bundles import load_bundle, save_bundle
from tubelet.hub.configs import from_dict, to_dict
from tubelet.hub.conversion import convert
from tubelet.hub.experts import load_experts, save_experts
from tubelet.hub.files import load, read_metadata, save
from tubelet.hub.foreign import (
    from_diffusers,
    from_original,
    load_diffusers,
    load_original,
    save_diffusers,
    save_original,
    to_diffusers,
    to_original,
)
from tubelet.hub.keys import Entry, Family, KeyMap, fused, renamed

__all__ = [
    "Attending",
    "Entry",
    "Family",
    "KeyMap",
    "convert",
    "from_dict",
    "from_diffusers",
    "from_original",
    "fused",
    "load",
    "load_bundle",
    "load_diffusers",
    "load_experts",
    "load_original",
    "read_metadata",
    "renamed",
    "save",
    "save_bundle",
    "save_diffusers",
    "save_experts",
    "save_original",
    "to_dict",
    "to_diffusers",
    "to_original",
    "use_attend",
]
