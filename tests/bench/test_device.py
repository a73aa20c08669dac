"""The machine as it says itself, and ceilings that no product or copy can pass by much."""

import json
import time

import torch

from tubelet.bench import device

CPU = torch.device("cpu")


def test_the_environment_is_json() -> None:
    found = device.environment(CPU)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["hardware"]["name"]
    assert {"mhz_min", "mhz_max"} <= set(found["clocks"]) or found["clocks"]["reason"]


def test_ceilings_are_of_this_machine(monkeypatch) -> None:
    monkeypatch.setattr(device, "_STEP_SECONDS", 0.002)
    found = device.ceilings(CPU, [torch.float32, torch.float64])
    a = torch.randn(512, 512)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    speed = 2 * 512**3 / min(seconds) / 1e12
    assert 0.2 < found["matmul_tflops"]["float32"] / speed < 5
    assert found["matmul_tflops"]["float64"] > 0
    assert 0.1 < found["copy_gbps"] < 2000
    assert set(found["matmul_n"]) == {"float32", "float64"}


def test_without_nvidia_smi_there_is_a_reason(monkeypatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert device.clocks(torch.device("cuda")) == {"reason": "nvidia-smi is not installed"}


def test_the_answer_of_nvidia_smi_is_read(monkeypatch, tmp_path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "550.90, 1980, 2619, 1980, 320.55, [N/A], 41"\n')
    program.chmod(0o755)
    monkeypatch.setattr(device.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(device.torch.cuda, "get_device_properties", lambda device: object())
    found = device.clocks(torch.device("cuda", 0))
    assert (found["driver"], found["clocks.sm"], found["power.draw"]) == ("550.90", 1980.0, 320.55)
    assert found["power.limit"] is None
