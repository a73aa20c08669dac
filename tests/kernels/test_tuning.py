"""Launch sizes: what is measured is kept and read, what is not falls back, and nothing is measured in a call."""

from functools import partial
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from tubelet.attention.boxes import window_tiles
from tubelet.kernels import TileSizes, tiled_sizes
from tubelet.kernels import _measuring as measuring
from tubelet.kernels import _tuning as tuning
from tubelet.kernels._grouped import launches as grouped
from tubelet.kernels._grouped.places import Axes, Pair
from tubelet.kernels._launching import Sizes
from tubelet.kernels._tiled.table import FIELDS
from tubelet.layout import Grid


def test_the_fastest_right_candidate_wins() -> None:
    seconds = dict.fromkeys(measuring.neighbours(Sizes(8, 4)), 1.0) | {Sizes(8, 4): 2.0, Sizes(16, 2): 0.5}

    def run(sizes: Sizes) -> list[torch.Tensor]:
        return [torch.tensor([1.0])]

    candidates = measuring.neighbours(Sizes(8, 4))
    assert measuring.fastest(Sizes(8, 4), run, lambda call: seconds[call.args[0]], candidates) == Sizes(16, 2)


def test_a_wrong_candidate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Sizes\(tokens=4, warps=2\) gives another result than Sizes\(tokens=8"):
        measuring.fastest(
            Sizes(8, 4),
            lambda sizes: [torch.tensor([float(sizes.tokens)])],
            lambda call: 1.0,
            measuring.neighbours(Sizes(8, 4)),
        )


def test_tiles_of_each_kernel_are_chosen_in_turn_and_what_does_not_fit_is_passed_over() -> None:
    fixed, timed = TileSizes(128, 64, 64, 32, 64, 32), []

    def run(sizes: TileSizes) -> list[torch.Tensor]:
        if sizes.rows == 256:
            raise OutOfResources(2, 1, "shared memory")
        return [torch.tensor([1.0])]

    def milliseconds(call: Any) -> float:
        timed.append(call.args[0])
        wanted = fixed._replace(rows=256, back_keys=16, few_rows=64)
        return sum(abs(a - b) for a, b in zip(call.args[0], wanted, strict=True))

    runs = dict.fromkeys((("rows", "keys"), ("back_rows", "back_keys"), ("own_keys", "few_rows")), run)
    assert measuring.fastest_tiles(fixed, runs, milliseconds) == TileSizes(128, 64, 64, 16, 64, 64)
    assert all(16 <= side <= 128 for sizes in timed for side in sizes)
    assert {sizes.keys for sizes in timed} == {32, 64, 128}
    with pytest.raises(ValueError, match="another result"):
        measuring.fastest_tiles(fixed, {("rows", "keys"): lambda sizes: [torch.tensor(sizes.keys)]}, milliseconds)


def test_jobs_of_tiles_have_tables_of_their_sizes() -> None:
    boxes = partial(window_tiles, grid=Grid(2, 4, 8), sides=(1, 3, 3), device="cpu")
    found = list(measuring.tiles([24], torch.float32, 64, "cpu", boxes))
    assert [(name, width) for name, width, *_ in found] == [("tiled_lines", 24), ("tiled_boxes", 24)]
    for name, _, fixed, runs in found:
        given = next(iter(runs.values())).__self__._given(fixed._replace(rows=32))
        assert given.tiles.sizes.rows == 32
        assert (given.tiles.boxes is None) == (name == "tiled_lines")
        assert 0 < given.tiles.queries[:, FIELDS.index("here_w")].max() <= 32


def test_measured_sizes_replace_the_fixed_ones_on_their_device_only(monkeypatch, tmp_path) -> None:
    name = tuning.key("rotation_forward", 128, torch.bfloat16)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: device.type + " 9")
    tuning.write(tuning.tuned_file("cuda 9"), {name: Sizes(2, 1)})
    tuning.write(tuning.tuned_file("cuda 9"), {"other": Sizes(4, 4)})  # joins, does not replace
    fixed, device = Sizes(16, 4), torch.device("cuda")
    tuning._measured.cache_clear()
    assert tuning.choose("rotation_forward", device, 128, torch.bfloat16, fixed) == Sizes(2, 1)
    assert tuning.choose("rotation_forward", device, 128, torch.float16, fixed) == fixed
    assert tuning.choose("rotation_forward", torch.device("cpu"), 128, torch.bfloat16, fixed) == fixed
    sides = TileSizes(64, 32, 64, 32, 64, 16)
    tuning.write(tuning.tuned_file("cuda 9"), {tuning.key("tiled_lines", 64, torch.bfloat16): sides})
    tuning._measured.cache_clear()
    assert tiled_sizes(torch.bfloat16, 64, False, "cuda:0") == sides
    assert tiled_sizes(torch.bfloat16, 64, True, "cuda:0") == tiled_sizes(torch.bfloat16, 64, True) != sides
    tuning._measured.cache_clear()


def test_a_file_of_another_version_is_not_read(tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"schema": 99, "sizes": {"x": [1, 1]}}')
    assert tuning.read(tmp_path / "a.json") == {}


def test_measuring_needs_a_device() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device"):
            measuring.tune([8], [8])


def test_every_job_runs_without_data() -> None:
    found = [(name, width) for name, width, *_ in measuring.jobs([8], [16], [24], torch.float32, 512, "meta")]
    assert found == [
        ("modulation_forward", 8), ("modulation_backward", 8), ("residual_forward", 8), ("residual_backward", 8),
        ("gate_forward", 8), ("gate_backward", 8), ("rotation_forward", 16), ("rotation_backward", 16),
        *((f"grouped_{direction}_{kind}", 16) for kind in ("short", "long") for direction in ("forward", "backward")),
        *((f"padded_{norm}_{memory}_{direction}", 24)
          for memory in ("first", "last") for norm in ("rms", "group") for direction in ("forward", "backward")),
    ]  # fmt: skip


def test_measured_tiles_of_groups_are_taken_where_they_fit(monkeypatch) -> None:
    """Fewer short groups a tile, longer parts of long ones; groups that do not fit keep the fixed tile."""
    axes = {length: Axes(0, (1, 1, 1, 9), (0, 0, 0, 1), (1, 1, length), (0, 0, 9)) for length in (21, 40, 90)}
    measured = {"short": Sizes(32, 2), "long": Sizes(128, 4)}
    monkeypatch.setattr(grouped, "choose", lambda name, *rest: measured[name.rpartition("_")[2]])
    found = {}
    for length, each in axes.items():
        q = torch.empty(9 * length, 1, 128, dtype=torch.bfloat16, device="meta")
        given = grouped.Given(q, q, q, 1.0, [Pair(each, each, False)], descriptors=False)
        launched: list[tuple[int, int, int]] = []

        def note(kernel: Any, grid: Any, arguments: Any, warps: int, launched: Any = launched) -> None:
            launched.append((arguments["ROWS"], arguments["together"], warps))

        grouped.backward(q, given, *grouped.forward(given, note), note)
        found[length] = launched
    assert found[21] == [(32, 1, 2)] * 2  # one group a tile where the fixed one holds three
    assert found[40] == [(64, 1, 4), (64, 1, 8)]
    assert found[90] == [(128, 0, 4)] * 2 + [(64, 0, 4)]  # half the rows for the gradients of keys
