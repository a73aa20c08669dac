"""Imports only point up the tree, and `import tubelet` is inert and light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tubelet

# Each entry imports from earlier entries only; entries of one line are one level and may import each other.
ORDER = """
_version
files
hooks
layout
protocols
patchify
packing
positions
norms
mlp
kernels
attention
pooling
conditioning
blocks
streams
diffusion
vae metrics
fused
models
text
data
training
distributed
hub
pipeline
completion
recipe vae_recipe
bench
planner
testing
demo cli
__main__
"""
LEVELS = {name: level for level, line in enumerate(ORDER.split("\n")) for name in line.split()}
ROOT = Path(str(tubelet.__file__)).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
HEAVY = """
IPython PIL av beartype diffusers flash_attn matplotlib natten pandas rich scipy sklearn torchvision transformers triton
xformers
"""
IMPORT_SHARE = 0.18


def imported_entries(source: str) -> set[str]:
    """The entries of the tree that a module's source imports, at any depth of its functions.

    Example:
        >>> sorted(imported_entries("from tubelet import hub; import tubelet.vae.blocks; from tubelet.mlp import MLP"))
        ['hub', 'mlp', 'vae']
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("tubelet.")}


def importable(entry: str) -> bool:
    return (ROOT / entry).is_dir() or (ROOT / f"{entry}.py").is_file()


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import tubelet.vae\nfrom tubelet import hub\ndef f():\n    from tubelet.mlp import MLP\nimport torch.nn"
    assert imported_entries(source) == {"vae", "hub", "mlp"}


def test_every_entry_has_its_place() -> None:
    here = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert here <= LEVELS.keys(), f"give {sorted(here - LEVELS.keys())} a place in ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_up(path: Path) -> None:
    entry = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported_entries(path.read_text()) - {entry}:
        # `from tubelet import attend` would import the package's front door, which stands below everything
        assert importable(other), f"{path.name} imports tubelet.{other}: import it from the module that defines it"
        assert LEVELS[other] <= LEVELS[entry], f"tubelet.{entry} imports tubelet.{other}, which stands below it"


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def test_import_is_inert() -> None:
    code = f"""
import json, sys, torch
before = set(sys.modules)
import tubelet
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([sorted(new & set({HEAVY.split()})), torch.cuda.is_initialized(), torch.is_grad_enabled()]))
"""
    heavy, cuda, grad = json.loads(run_fresh(code))
    assert heavy == []
    assert not cuda
    assert grad


def test_import_is_light() -> None:
    """What tubelet adds to torch: the share of torch's own import, both in this process's own time.

    A share is the same on a slow or a busy machine, where seconds are not. The collection of torch's objects, which
    falls within this import or after it by chance, is not counted.
    """
    code = (
        "import gc, time; gc.disable(); times = [time.process_time()]\n"
        "import torch; times.append(time.process_time())\n"
        "import tubelet; times.append(time.process_time())\n"
        "print((times[2] - times[1]) / (times[1] - times[0]))"
    )
    shares: list[float] = []
    while len(shares) < 4 and min(shares, default=1.0) > IMPORT_SHARE:
        shares.append(float(run_fresh(code)))
    assert min(shares) <= IMPORT_SHARE, shares


def test_python_m_tubelet_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tubelet", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"tubelet {tubelet.__version__}\n")
