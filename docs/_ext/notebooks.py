"""Copies the notebooks of `examples/` below the documentation, where the build executes and shows them."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", copy_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_notebooks(app: Sphinx) -> None:
    """Bring `docs/examples/` up to date; an unchanged notebook keeps its time stamp, so that it is not read again."""
    source, target = Path(app.srcdir).parent / "examples", Path(app.srcdir) / "examples"
    target.mkdir(exist_ok=True)
    here = {path.name: path for path in source.glob("*.ipynb")}
    for old in target.glob("*.ipynb"):
        if old.name not in here:
            old.unlink()
    for name, path in here.items():
        copy = target / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)
