"""Applies the seeded bugs of `mutations.toml` to a copy of the tree, one at a time, and counts those that tests notice.

``python scripts/mutate.py [WORD ...]`` runs the mutations whose name or file holds a word, or all of them. It fails
where fewer than nine tenths are caught, where a mutation's old text does not occur exactly once, or where the tests
fail, or cannot be collected, for another reason than the bug.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = 0.9
SECONDS = 300


@dataclass(frozen=True)
class Mutation:
    """One bug: ``old`` becomes ``new`` in ``src/tubelet/<file>``; ``tests`` (below ``tests/``) should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def path(self, tree: Path) -> Path:
        return tree / "src" / "tubelet" / self.file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="run the mutations whose name or file holds it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trees to work on; default one a core")
    arguments = parser.parse_args()
    words, jobs = arguments.words, arguments.jobs
    mutations = [m for m in read() if not words or any(w in m.name or w in m.file for w in words)]
    if stale := [m for m in mutations if m.path(ROOT).read_text().count(m.old) != 1]:
        print(*(f"{m.name}: `old` must occur exactly once in {m.file}" for m in stale), sep="\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(jobs):
            trees.put(copy_tree(Path(folder) / str(job)))
        every = sorted({test for mutation in mutations for test in mutation.tests})
        if run_tests(trees.queue[0], every, jobs) != 0:
            print("the tests fail without any mutation: nothing can be learnt from them")
            return 1
        with ThreadPoolExecutor(jobs) as pool:
            caught = sum(pool.map(lambda mutation: is_caught(mutation, trees), mutations))
    print(f"{caught} of {len(mutations)} mutations caught")
    return 0 if caught >= NEEDED * len(mutations) else 1


def read() -> list[Mutation]:
    """The mutations of the list beside this script."""
    entries = tomllib.loads(Path(__file__).with_name("mutations.toml").read_text())["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copy_tree(folder: Path) -> Path:
    """A copy of what the tests need; the repository itself is never touched."""
    tree = folder / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def is_caught(mutation: Mutation, trees: "queue.Queue[Path]") -> bool:
    """Run the mutation's tests on a copy that nobody works on, mutated; then undo it."""
    tree = trees.get()
    path, start = mutation.path(tree), time.perf_counter()
    original = path.read_text()
    path.write_text(original.replace(mutation.old, mutation.new))
    try:
        code = run_tests(tree, mutation.tests)
    finally:
        path.write_text(original)
        trees.put(tree)
    verdict = {0: "SURVIVED", 1: "caught"}.get(code, f"BROKEN (pytest exit status {code})")
    print(f"{verdict:9} {time.perf_counter() - start:5.1f} s  {mutation.name} ({mutation.file})", flush=True)
    return code == 1


def run_tests(tree: Path, tests: Sequence[str], jobs: int = 1) -> int:
    """Pytest's exit status on the copy; a run that never ends counts as a failure of its tests."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "dev",
    }
    if jobs > 1:
        command += ["-n", str(jobs), "--dist", "loadfile"]
    command += [f"tests/{test}" for test in tests]
    seconds = SECONDS * (len(tests) if len(tests) > 3 else 1)
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return 1
    if done.returncode not in (0, 1):
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
