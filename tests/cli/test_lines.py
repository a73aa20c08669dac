"""Errors and warnings as a user reads them: one line, no error numbers, no temporary names, nothing lost."""

import errno
import warnings

import pytest
from safetensors import SafetensorError

from tubelet.cli import main
from tubelet.cli.lines import plain, warnings_as_lines
from tubelet.demo import command

MEMORY = "that needs more memory than this machine has"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError("there is no file a b.mp4"), "there is no file a b.mp4"),
        (PermissionError(errno.EACCES, "Permission denied", "a b/c"), "a b/c: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "x/.tmp-0123abcd-a.gif"), "x/a.gif: Permission denied"),
        (SafetensorError("No space left on device (os error 28)"), "No space left on device"),
        (ValueError("bad: [Errno 1094995529] Invalid data: 'x/.tmp-0123abcd-a.gif'"), "bad: Invalid data: 'x/a.gif'"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (MemoryError(), MEMORY),
    ],
)  # fmt: skip
def test_an_error_is_one_plain_line(error: Exception, says: str) -> None:
    assert plain(error) == says


def test_each_warning_is_a_line_and_filters_come_back(capsys) -> None:
    before, shown = list(warnings.filters), warnings.showwarning
    with warnings_as_lines():
        for text in ("skipped a.mp4: empty", "skipped b.mp4: empty", "skipped a.mp4: empty"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == "tubelet: skipped a.mp4: empty\ntubelet: skipped b.mp4: empty\n"
    assert (warnings.filters, warnings.showwarning) == (before, shown)


@pytest.mark.parametrize(
    "error",
    [FloatingPointError("the loss of step 3 is nan"), SafetensorError("No space left"), MemoryError(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_what_no_user_can_help_is_still_one_line(monkeypatch, capsys, error: Exception) -> None:
    def fail(*rest: object) -> None:
        raise error

    monkeypatch.setattr(command, "live_and_shipped", fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == f"tubelet: {plain(error)}\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def fail(*rest: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command, "live_and_shipped", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["demo"])
