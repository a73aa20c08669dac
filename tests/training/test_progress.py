"""What the progress shows."""

import io
import re
import sys

import pytest

from tubelet.training import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_status_gives_loss_rate_and_time_left():
    progress = Progress(100, start=20, stream=io.StringIO())
    progress.update(21, {"loss": 2.0, "tokens": 300})
    progress.update(30, {"loss": 1.0, "tokens": 700})
    assert progress.status(30, progress.began + 10) == "loss 1.9500  100 tokens/s  1:10 left"


def test_plain_lines_come_at_intervals_and_at_the_end():
    stream = io.StringIO()
    with Progress(3, title="train", interval=1000.0, stream=stream) as progress:
        for step in range(3):
            progress.update(step + 1, {"loss": 0.5})
    assert stream.getvalue() == "train 3/3  loss 0.5000  0:00 left\n"
    with Progress(3, interval=0.0, stream=stream) as progress:
        for step in range(3):
            progress.update(step + 1, {})
    assert len(stream.getvalue().splitlines()) == 4


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress(4, title="train", stream=stream) as progress:
        for step in range(4):
            progress.update(step + 1, {"loss": 0.25, "tokens": 10})
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "train" in plain
    assert "4/4" in plain
    assert "loss 0.2500" in plain
    assert "0:00 left" in plain


def test_without_rich_a_terminal_gets_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = Terminal()
    with Progress(1, title="train", stream=stream) as progress:
        progress.update(1, {"loss": 0.25})
    assert stream.getvalue() == "train 1/1  loss 0.2500  0:00 left\n"


def test_the_bar_is_taken_down_after_an_error():
    stream = Terminal()
    with pytest.raises(RuntimeError, match="stop"), Progress(2, stream=stream) as progress:
        raise RuntimeError("stop")
    assert progress.bar.live.is_started is False
