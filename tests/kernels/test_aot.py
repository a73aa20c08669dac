"""The gate that compiles without a GPU: it reads real machine code, catches a spill, and says so in every output."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tubelet.cli import main
from tubelet.kernels import aot
from tubelet.kernels._grouped import cases as grouped
from tubelet.kernels._machine_code import MachineCode, read
from tubelet.kernels._modulation.cases import WIDTHS
from tubelet.kernels._rotation.cases import HEAD_DIMS
from tubelet.kernels._tiled import cases as tiled

GOOD = aot.Resources("modulation.forward", "layer bfloat16 384", 90, 4, 40, 0, 0, 64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    """Compile for real, whatever this machine has compiled before."""
    monkeypatch.setattr("triton.knobs.cache.dir", str(tmp_path))


@pytest.mark.parametrize(
    "word",
    [
        "grouped.forward time bfloat16 64",
        "grouped.forward descriptors bfloat16 72",
        "tiled.forward boxes bfloat16 128",
        "modulation.forward layer bfloat16 1536",
        "rotation.forward half float16 128",
    ],
)
def test_a_kernel_compiles_for_both_architectures(word: str) -> None:
    found = list(aot.check(word=word))
    by_descriptor = "descriptors" in word
    assert [each.arch for each in found] == ([90] if by_descriptor else [80, 90])
    for each in found:
        assert each.passes, each.fault
        assert 16 <= each.registers <= 255
        assert (each.tiles or 0) >= 2 * by_descriptor  # of keys and of values
        assert (each.products is not None) == word.startswith(("grouped", "tiled"))


@pytest.mark.parametrize("case", ["grouped.forward frame bfloat16 72", "tiled.forward lines bfloat16 72"])
def test_heads_that_are_no_multiple_of_16_are_loaded_16_bytes_at_a_time(case: str, monkeypatch) -> None:
    codes: list[MachineCode] = []
    monkeypatch.setattr(aot, "read", lambda *arguments: codes.extend(read(*arguments)) or codes)
    assert len(list(aot.check(archs=[90], word=case))) == 1
    assert codes[0].count("LDGSTS.E.BYPASS.128") >= 8
    assert codes[0].count("LDG.E.U16") == 0


def test_kernels_that_are_read_at_once_are_told_apart(monkeypatch) -> None:
    """The same readings as one by one, of what needs tensor cores and of what does not."""
    words = ("tiled.forward lines bfloat16 64", "rotation.forward half float16 128", "tiled.forward lines float32 64")
    known = [launch for launch in aot.launches() if f"{launch[0]} {launch[1]}" in words]
    monkeypatch.setattr(aot, "launches", lambda: known)
    together = list(aot.check([80]))
    assert len(together) == 3
    monkeypatch.setattr(aot, "_TOGETHER", 1)
    assert list(aot.check([80])) == together
    assert len({each.registers for each in together}) == 3


def test_real_spills_are_read_from_the_machine_code() -> None:
    """A row of 8,192 numbers with three sums in 1,024 threads of 64 registers: more than fits."""
    (launch,) = [
        described
        for name, case, described in aot.launches()
        if (name, case) == ("modulation.backward", "layer bfloat16 5120")
    ]
    kernel, arguments, _ = launch
    compiled = aot._compiled("modulation.backward", "too many warps", 90, kernel, arguments, 32)
    (found,) = aot._resources([compiled], 90)
    assert found.spills > 0
    assert not found.passes
    assert "spills" in str(found.fault)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ({"spills": 1}, "1 spills"),
        ({"stack_bytes": 8}, "0 spills, 8 bytes of stack"),
        ({"registers": 129}, "129 registers a thread"),
        ({"products": 0}, "no HGMMA instruction"),
        ({"tiles": 0}, "no UTMALDG instruction"),
        ({"shared_bytes": 300_000}, "300000 bytes of shared memory"),
    ],
)
def test_each_cap_is_a_fault(bad, fault, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(aot, "check", lambda archs, word: iter([GOOD, replace(GOOD, **bad)]))
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "check", "--json", str(tmp_path / "found.json")])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert f"FAULT layer bfloat16 384: {fault}" in out
    assert "2 kernels compiled, 1 beyond a cap" in out
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["schema"], written["passes"]) == (3, False)
    assert [each["fault"] is None for each in written["kernels"]] == [True, False]


def test_what_passes_has_status_0_and_a_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(aot, "check", lambda archs, word: iter([GOOD]))
    assert main(["kernels", "check"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["modulation.forward", "sm_90", "1", "40", "0", "0", "64"]
    assert out[2] == "1 kernels compiled, none beyond a cap"


def test_every_case_is_launched_once() -> None:
    names = [f"{name} {case}" for name, case, _ in aot.launches()]
    once = [name for name in names if not name.startswith("grouped.forward text")]  # two runs, the second one merges
    assert len(set(once)) == len(once)
    for width in WIDTHS:
        assert f"modulation.backward layer bfloat16 {width}" in names
        assert f"modulation.forward layer bfloat16 {width}" in names
    for head_dim in HEAD_DIMS:
        for layout in ("interleaved", "half"):
            assert f"rotation.forward {layout} bfloat16 {head_dim}" in names
            assert f"rotation.backward {layout} bfloat16 {head_dim}" in names
    for head_dim in grouped.HEAD_DIMS:
        for kernel in ("forward time", "forward frame", "backward_together time", "backward_keys frame"):
            assert f"grouped.{kernel} bfloat16 {head_dim}" in names
        for kernel in ("forward", "backward_queries", "backward_keys"):
            assert f"grouped.{kernel} descriptors bfloat16 {head_dim}" in names
    assert "grouped.backward_together clip float32 128" in names
    for head_dim in tiled.HEAD_DIMS:
        for kernel in ("forward lines", "forward boxes", "backward_queries boxes", "backward_keys lines"):
            assert f"tiled.{kernel} bfloat16 {head_dim}" in names
        for kernel in ("forward", "backward_queries", "backward_keys"):
            assert f"tiled.{kernel} descriptors bfloat16 {head_dim}" in names
    assert "grouped.forward text bfloat16 128, launch 2" in names  # the text joins the result of the groups
    assert {"float16", "float32", "bfloat16"} == {word for name in names for word in name.split() if "float" in word}


def test_mistakes_are_one_line(capsys) -> None:
    for argv, says in [(["--arch", "70"], "80, 90, got 70"), (["--only", "nothing"], "'nothing'")]:
        assert main(["kernels", "check", *argv]) == 2
        assert says in capsys.readouterr().err
    code = "from tubelet.cli import main; raise SystemExit(main(['kernels', 'check', '--only', 'combine']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET=1 is set" in done.stderr
