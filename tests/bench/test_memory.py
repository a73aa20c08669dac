"""The peak is that of live tensors, the result included, and nothing that was freed or there before."""

import pytest
import torch

from tubelet.bench.memory import peak_bytes

CPU = torch.device("cpu")


def test_the_highest_point_counts() -> None:
    def call() -> torch.Tensor:
        a = torch.zeros(1000, dtype=torch.float64)  # 8,000
        b = torch.zeros(2000, dtype=torch.float64)  # 24,000: the peak
        del a, b
        return torch.zeros(500, dtype=torch.float64)

    assert peak_bytes(call, CPU) == (24_000, None)
    assert peak_bytes(call, CPU) == (24_000, None)


def test_releasing_what_was_there_before_is_no_gain() -> None:
    kept = [torch.zeros(1000)]

    def call() -> torch.Tensor:
        return torch.zeros(100)

    assert peak_bytes(call, CPU)[0] == 400
    assert len(kept) == 1


def test_backward_counts_too() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    forward, _ = peak_bytes(lambda: (x @ x).sum(), CPU)
    both, _ = peak_bytes(lambda: torch.autograd.grad((x @ x).sum(), x), CPU)
    assert forward is not None
    assert both is not None
    assert both >= forward + x.nbytes


def test_another_device_says_why_not(capfd) -> None:
    size, reason = peak_bytes(lambda: None, torch.device("meta"))
    assert size is None
    assert reason is not None
    assert "meta" in reason
    peak_bytes(lambda: None, CPU)
    assert capfd.readouterr().err == ""


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    size, _ = peak_bytes(lambda: torch.zeros(1 << 20, device="cuda"), torch.device("cuda"))
    assert size == 1 << 22
