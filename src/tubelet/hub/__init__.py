"""Models in files: safetensors weights beside a strict JSON config, never pickle.

Any ``nn.Module`` takes part that has a frozen dataclass as its ``config`` and is built by
``Cls(config, device=..., dtype=...)``; there is no base class.

- :func:`save` and :func:`load` keep one model in one folder, sharded, or read it from a Hugging Face repository;
- :func:`save_bundle` and :func:`load_bundle` keep several models in one file;
- :func:`load_diffusers`, :func:`save_diffusers`, :func:`from_diffusers` and :func:`to_diffusers` are the adapters to
  diffusers' checkpoints; a :class:`Family` is one more;
- :func:`read_metadata` reads what was noted beside either;
- :func:`to_dict` and :func:`from_dict` are the configs' own two ways.
"""

from tubelet.hub.bundles import load_bundle, save_bundle
from tubelet.hub.configs import from_dict, to_dict
from tubelet.hub.files import load, read_metadata, save
from tubelet.hub.foreign import from_diffusers, load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.keys import Entry, Family, KeyMap, renamed

__all__ = [
    "Entry",
    "Family",
    "KeyMap",
    "from_dict",
    "from_diffusers",
    "load",
    "load_bundle",
    "load_diffusers",
    "read_metadata",
    "renamed",
    "save",
    "save_bundle",
    "save_diffusers",
    "to_dict",
    "to_diffusers",
]
