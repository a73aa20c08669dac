"""Models in files: safetensors weights beside a strict JSON config, never pickle.

Any ``nn.Module`` takes part that has a frozen dataclass as its ``config`` and is built by
``Cls(config, device=..., dtype=...)``; there is no base class.

- :func:`save` and :func:`load` keep one model in one folder, sharded, or read it from a Hugging Face repository;
- :func:`save_bundle` and :func:`load_bundle` keep several models in one file;
- :func:`read_metadata` reads what was noted beside either;
- :func:`to_dict` and :func:`from_dict` are the configs' own two ways.
"""

from tubelet.hub.bundles import load_bundle, save_bundle
from tubelet.hub.configs import from_dict, to_dict
from tubelet.hub.files import load, read_metadata, save

__all__ = ["from_dict", "load", "load_bundle", "read_metadata", "save", "save_bundle", "to_dict"]
