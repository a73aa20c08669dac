"""Writes one page per public module from its `__all__`, and fails the build for a public symbol without a docstring.

A symbol is documented where it is exported first: a package's page holds what its `__all__` names, and a module below
it has a page only for names that the package does not export. Constants are shown with the comment above them.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PACKAGE = "tubelet"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write `api/<module>.rst` for every public module; pages of modules that are gone are removed."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    modules = public_modules()
    missing = [f"{m.__name__}.{n}" for m in modules for n in own_names(m) if not documented(m, n)]
    if missing:
        raise ExtensionError(f"public symbols without a docstring: {', '.join(missing)}")
    pages = {f"{module.__name__}.rst": page(module) for module in modules if own_names(module)}
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # an unchanged page is not read again
            path.write_text(text)


def public_modules() -> list[ModuleType]:
    """The modules below the package; one whose name has an underscore is private."""
    root = importlib.import_module(PACKAGE)
    names = [info.name for info in pkgutil.walk_packages(root.__path__, f"{PACKAGE}.")]
    return [importlib.import_module(name) for name in names if "._" not in name]


def own_names(module: ModuleType) -> list[str]:
    """The names of a module's `__all__` that the package above does not export already; modules aside."""
    above = importlib.import_module(module.__name__.rpartition(".")[0])
    shared = set() if above.__name__ == PACKAGE else set(getattr(above, "__all__", ()))
    names = [name for name in getattr(module, "__all__", ()) if name not in shared]
    return sorted(name for name in names if not inspect.ismodule(getattr(module, name)))


def documented(module: ModuleType, name: str) -> bool:
    """Whether the symbol has a docstring of its own; a constant needs none."""
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return True
    doc = value.__doc__ or ""
    return bool(doc.strip()) and not doc.startswith(f"{name}(")


def page(module: ModuleType) -> str:
    """The reStructuredText of one module's page."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    for name in own_names(module):
        value = getattr(module, name)
        if inspect.isclass(value):
            lines += [
                f".. autoclass:: {title}.{name}",
                "   :members:",
                "   :exclude-members: forward, reset_parameters",
            ]
        else:
            lines += [f".. auto{'function' if inspect.isroutine(value) else 'data'}:: {title}.{name}"]
        lines += [""]
    return "\n".join(lines)
