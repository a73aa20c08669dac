"""The public names, each on its shortest path, are those of `public_names.txt`.

``python tests/test_public.py`` rewrites the snapshot (``make names``); a change of it belongs into the changelog.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import tubelet

SNAPSHOT = Path(__file__).with_name("public_names.txt")


def modules() -> list[ModuleType]:
    """Every module of the package, the shallow ones first; a name with an underscore is private."""
    found = [info.name for info in pkgutil.walk_packages(tubelet.__path__, "tubelet.")]
    public = [name for name in found if not any(part.startswith("_") for part in name.split("."))]
    return [tubelet, *map(importlib.import_module, sorted(public, key=lambda name: (name.count("."), name)))]


def public_names() -> list[str]:
    """Every name in an `__all__`, except where the package above exports the same object by the same name."""
    names = []
    for module in modules():
        above = importlib.import_module(module.__name__.rpartition(".")[0] or "tubelet")
        shared = () if above in (module, tubelet) else getattr(above, "__all__", ())
        listed = getattr(module, "__all__", ())
        own = [n for n in listed if not (n in shared and getattr(above, n) is getattr(module, n))]
        names += [f"{module.__name__}.{name}" for name in own]
    return sorted(names)


def test_public_names_match_the_snapshot() -> None:
    expected = SNAPSHOT.read_text().split()
    found = public_names()
    new, gone = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    assert found == expected, f"new: {new}, gone: {gone}; `make names` rewrites the snapshot"


def test_every_listed_name_exists_once_and_every_module_lists_its_names() -> None:
    for module in modules():
        listed = getattr(module, "__all__", [])
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        assert hasattr(module, "__all__") or not own, f"{module.__name__} has no __all__ and defines {own}"
        assert len(set(listed)) == len(listed), module.__name__
        missing = [name for name in listed if not hasattr(module, name)]
        assert not missing, f"{module.__name__}.__all__ names {missing}"


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_names()) + "\n")
