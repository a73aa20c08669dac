"""Runs `interpreted/` in a process of its own: the interpreter is chosen when triton is first imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("interpreted")


def run(profile: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--no-cov", f"--hypothesis-profile={profile}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_kernels_in_tritons_interpreter() -> None:
    run("few")


@pytest.mark.slow
def test_kernels_in_tritons_interpreter_on_many_shapes() -> None:
    run("many")
