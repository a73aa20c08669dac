"""Applies the seeded bugs of `mutations.toml` to a copy of the tree, one at a time, and counts those that tests notice.

``python scripts/mutate.py [WORD ...]`` runs the mutations whose name or file holds a word, or all of them. It fails
where fewer than nine tenths are caught, where a mutation's old text does not occur exactly once, or where the tests
fail, or cannot be collected, for another reason than the bug. ``--narrow`` prints each mutation's first failing test,
which is the one that `mutations.toml` should name: a whole file of tests takes many times as long.

Each run of tests is a forked copy of this process, which has imported PyTorch and the other large packages before, but
nothing of the library: importing them anew took longer than most tests.
"""

import argparse
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = 0.9
SECONDS = 300
LARGE = ("torch", "numpy", "hypothesis", "einops", "jaxtyping", "beartype", "pytest", "safetensors.torch", "diffusers")
FORK = multiprocessing.get_context("fork")


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


@dataclass
class Verdict:
    """What became of a run of tests: pytest's exit status, the first test that failed, the end of what was printed."""

    code: int
    failed: str = ""
    printed: str = ""


@dataclass
class Run:
    """Tests under way in a process of their own, on a tree that nobody else works on."""

    tree: Path
    process: BaseProcess
    answer: Connection
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def verdict(self) -> Verdict:
        """Its verdict; a process that died without one is broken, and one that never ends has failed its tests."""
        verdict = Verdict(1, "(no end)") if self.process.is_alive() else Verdict(-1)
        with suppress(EOFError):
            if self.answer.poll():
                verdict = self.answer.recv()
        self.process.kill()
        self.process.join()
        return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="run the mutations whose name or file holds it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trees to work on; default one a core")
    parser.add_argument("--narrow", action="store_true", help="print the first failing test of each mutation")
    arguments = parser.parse_args()
    words = arguments.words
    mutations = [m for m in read() if not words or any(w in m.name or w in m.file for w in words)]
    if stale := [m for m in mutations if m.path(ROOT).read_text().count(m.old) != 1]:
        print(*(f"{m.name}: `old` must occur exactly once in {m.file}" for m in stale), sep="\n")
        return 1
    for package in LARGE:
        importlib.import_module(package)
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_tree(Path(folder) / str(job)) for job in range(arguments.jobs)]
        if not arguments.narrow and not pass_unmutated(mutations, trees):
            print("the tests fail without any mutation: nothing can be learnt from them")
            return 1
        caught = 0
        for mutation, verdict, seconds in verdicts(mutations, trees):
            word = {0: "SURVIVED", 1: "caught"}.get(verdict.code, f"BROKEN (pytest exit status {verdict.code})")
            shown = verdict.failed if arguments.narrow else f"({mutation.file})"
            print(f"{word:9} {seconds:5.1f} s  {mutation.name} {shown}", flush=True)
            if verdict.code not in (0, 1):
                print(verdict.printed)
            caught += verdict.code == 1
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


def pass_unmutated(mutations: Sequence[Mutation], trees: Sequence[Path]) -> bool:
    """Whether all tests that the mutations name pass as things are: each tree runs its share, file by file."""
    every = sorted({test for mutation in mutations for test in mutation.tests})
    files = sorted({test.split("::")[0] for test in every})
    shares = [[test for test in every if files.index(test.split("::")[0]) % len(trees) == n] for n in range(len(trees))]
    runs = [start(tree, share) for tree, share in zip(trees, shares, strict=True) if share]
    deadline = time.perf_counter() + SECONDS * 10
    found = []
    for run in runs:
        run.process.join(max(0.0, deadline - time.perf_counter()))
        found.append(run.verdict())
    print(*(verdict.printed for verdict in found if verdict.code != 0), sep="\n", end="")
    return all(verdict.code == 0 for verdict in found)


def verdicts(mutations: Sequence[Mutation], trees: Sequence[Path]) -> Iterator[tuple[Mutation, Verdict, float]]:
    """Run each mutation's tests on a tree of its own, mutated, as many at once as there are trees; then undo it."""
    waiting, free, under_way = list(reversed(mutations)), list(trees), list[tuple[Mutation, str, Run]]()
    while waiting or under_way:
        while waiting and free:
            mutation, tree = waiting.pop(), free.pop()
            path = mutation.path(tree)
            original = path.read_text()
            path.write_text(original.replace(mutation.old, mutation.new))
            under_way.append((mutation, original, start(tree, mutation.tests)))
        wait([run.process.sentinel for _, _, run in under_way], timeout=1.0)
        for entry in [e for e in under_way if not e[2].process.is_alive() or e[2].seconds() > SECONDS]:
            under_way.remove(entry)
            mutation, original, run = entry
            verdict = run.verdict()
            mutation.path(run.tree).write_text(original)
            free.append(run.tree)
            yield mutation, verdict, run.seconds()


def start(tree: Path, tests: Sequence[str]) -> Run:
    """Begin the tests in a forked process."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run_tests, args=(tree, tests, theirs))
    process.start()
    theirs.close()
    return Run(tree, process, ours)


def run_tests(tree: Path, tests: Sequence[str], answer: Connection) -> None:
    """In the new process: run the tests against the library of this tree, and send the verdict."""
    import pytest

    os.chdir(tree)
    source = str(tree / "src")
    sys.path.insert(0, source)
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=source, PYTHONDONTWRITEBYTECODE="1", HYPOTHESIS_PROFILE="dev")
    failures = Failures()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", "--assert=plain"]
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[failures]))
    answer.send(Verdict(code, failures.first, printed.getvalue()[-2000:]))


class Failures:
    """A plugin of pytest that remembers the first test that failed."""

    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.failed and not self.first:
            self.first = report.nodeid.removeprefix("tests/")


if __name__ == "__main__":
    sys.exit(main())
