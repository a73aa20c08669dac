"""Runs tests of `kernels/interpreted/` in a process of their own: Triton chooses its interpreter on import."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "kernels" / "interpreted"


def run(profile: str, *operations: str) -> None:
    """The tests of some operations with a few drawn shapes, or many."""
    options = ["-q", "-p", "no:cacheprovider", "--no-cov", f"--hypothesis-profile={profile}"]
    files = [str(FOLDER / f"test_{operation}.py") for operation in operations]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=900,
    )
    print(done.stdout[-6000:], done.stderr[-2000:])  # shown with a failure, and not in the summary's one line
    assert done.returncode == 0, f"tests of {', '.join(operations)} failed"
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
