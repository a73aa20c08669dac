"""The loop: saves, Ctrl-C, history."""

import io
import signal
import threading

import pytest
import torch
from torch import nn

from tubelet.training import Checkpoint, History, Interrupted, Progress, fit


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c():
    """A shell's background job begins with SIGINT ignored; Python then installs no handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def quiet(steps, start=0):
    return Progress(steps, start=start, stream=io.StringIO())


def run(step_fn, steps, start=0, **options):
    return fit(step_fn, steps, start=start, progress=quiet(steps, start), **options)


def test_history_counts_from_the_start_and_takes_tensors():
    history = History()
    history.add(2, {"loss": 9.0})
    result = run(lambda step: {"loss": torch.tensor(float(step)), "tokens": 3}, 6, 3, history=history)
    assert result is history
    assert history.steps["loss"] == [2, 3, 4, 5]
    assert history["loss"] == [9.0, 3.0, 4.0, 5.0]
    assert history["tokens"] == [3.0] * 3
    copy = History()
    copy.load_state_dict(history.state_dict())
    copy.add(6, {"loss": 0.0})
    assert len(copy["loss"]) == 5
    assert len(history["loss"]) == 4


@pytest.mark.parametrize(
    ("start", "every", "expected"), [(0, 3, [3, 6, 7]), (4, 3, [6, 7]), (0, None, [7]), (7, 2, [])]
)
def test_saves_at_absolute_steps_and_at_the_end(start, every, expected):
    saved = []
    run(lambda step: {}, 7, start, save=saved.append, save_every=every)
    assert saved == expected


def test_default_progress_prints_lines(capsys):
    fit(lambda step: {"loss": 0.5}, 2)
    assert capsys.readouterr().out == "train 2/2  loss 0.5000  0:00 left\n"


def test_ctrl_c_finishes_the_step_saves_and_raises():
    saved, finished = [], []

    def step(number):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        finished.append(number)
        return {}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        run(step, 9, save=saved.append, save_every=100)
    assert caught.value.step == 3
    assert finished == [0, 1, 2]
    assert saved == [3]
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_aborts_at_once():
    saved, finished = [], []

    def step(number):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished.append(number)
        return {}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(step, 9, save=saved.append)
    assert not isinstance(caught.value, Interrupted)
    assert finished == []
    assert saved == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path):
    def train(seed, interrupt_at=None):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        history = History()
        checkpoint = Checkpoint(tmp_path / f"{interrupt_at}", model=model, optimizer=optimizer, history=history)

        def step(number):
            loss = model(torch.full((5, 4), float(number))).square().mean()
            if number == interrupt_at and checkpoint.path.exists() is False:
                signal.raise_signal(signal.SIGINT)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        run(step, 8, checkpoint.restore(), save=checkpoint.save, history=history)
        return model, history

    whole, history = train(0)
    with pytest.raises(Interrupted):
        train(0, interrupt_at=3)
    resumed, resumed_history = train(123, interrupt_at=3)
    assert resumed_history.values == history.values
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_save():
    saved = []
    with pytest.raises(FloatingPointError, match="the loss of step 2 is nan"):
        run(lambda step: {"loss": float("nan") if step == 2 else 1.0}, 5, save=saved.append, save_every=1)
    assert saved == [1, 2]


def test_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(lambda step: {"loss": 1.0}, 2)["loss"]))
    thread.start()
    thread.join()
    assert results == [[1.0, 1.0]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="start=3 must be between 0 and steps=2"):
        run(lambda step: {}, 2, 3)
    with pytest.raises(ValueError, match="save_every must be at least 1, got 0"):
        run(lambda step: {}, 2, save_every=0)
