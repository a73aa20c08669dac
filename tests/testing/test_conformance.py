"""The conformance matrix: no row fails, blanks have reasons, and a backend with a fault of the field is caught."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tubelet import testing
from tubelet.attention import FrameCausal, HeadSplit, Joint, Neighborhood, backends
from tubelet.attention.backends.reference import ReferenceBackend, mask_of
from tubelet.cli import main
from tubelet.layout import Kind
from tubelet.protocols import Answer, AttentionRequest, Backend
from tubelet.testing import (
    ConformanceRow,
    conformance_document,
    conformance_rows,
    conformance_table,
    known_faults,
    matrix_packings,
    matrix_patterns,
)
from tubelet.testing import conformance as module
from tubelet.testing.conformance import BOUNDS

pytestmark = pytest.mark.graph  # thousands of calls: without the runtime shape checks

QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "flex" else name for name in backends()]
SPLIT = {"HeadSplit": matrix_patterns()["HeadSplit"]}


def assert_sound(rows: list[ConformanceRow]) -> None:
    failing = [row for row in rows if not row.ok]
    assert not failing, f"{len(failing)} rows fail, first {failing[0]}"
    for row in rows:
        assert (row.error is None) == bool(row.reason), row
        assert row.error is None or row.error <= row.bound, row
    blank = {row.backend for row in rows if row.error is None}
    assert not blank & {"sdpa", "reference"}, "these serve everything"


@pytest.mark.parametrize("name", QUICK)
def test_no_row_fails(name: str) -> None:
    """Every pattern and packing, forward and backward; the other dtypes on one pattern."""
    mine = {name: backends()[name]}
    rows = list(conformance_rows(mine, dtypes=[torch.float32], groups=[2], devices=["cpu"]))
    assert len(rows) == len(matrix_patterns()) * len(matrix_packings()) * 2
    others = [dtype for dtype in BOUNDS if dtype != torch.float32]
    others = list(conformance_rows(mine, patterns=SPLIT, dtypes=others, groups=[1], devices=["cpu"]))
    assert len(others) == len(matrix_packings()) * 3 * 2
    assert_sound(rows + others)


@pytest.mark.slow
def test_no_row_of_the_whole_matrix_fails() -> None:
    assert_sound(list(conformance_rows()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(backends()))
def test_no_row_fails_on_cuda(name: str) -> None:
    assert_sound(list(conformance_rows({name: backends()[name]}, devices=["cuda"])))


class Faulty(ReferenceBackend):
    """The definition with one fault."""

    name = "faulty"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        return FAULTY[self.fault](q, k, v, request)


def plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, request: AttentionRequest) -> Tensor:
    """Softmax with a mask ``(..., h, q, k)``, which gives NaN where there is no key."""
    k, v = (x.nan_to_num().repeat_interleave(request.groups, dim=-2) for x in (k, v))
    scores = torch.einsum("...qhd,...khd->...hqk", q.nan_to_num(), k) * request.scale
    return torch.einsum("...hqk,...khd->...qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)


def right(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    return ReferenceBackend().run(q, k, v, request)


def no_mask(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    return right(q, k, v, dataclasses.replace(request, pattern=Joint()))


def causal_needs_a_mask(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """``causal=True`` is only looked at where a mask was given."""
    is_causal = isinstance(request.pattern, FrameCausal | Neighborhood)
    return (no_mask if is_causal and not request.ragged else right)(q, k, v, request)


def mask_of_keys_as_pairs(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """A mask ``(b, n)`` of keys is taken for ``(q, k)`` where both fit."""
    index = request.index if request.kv_index is None else request.kv_index
    if index is None or index.kind.ndim != 2 or q.ndim != 4 or index.shape != (q.shape[1], k.shape[1]):
        return right(q, k, v, request)
    return plainly(q, k, v, index.valid.expand(q.shape[0], 1, -1, -1), request).nan_to_num()


def causal_over_the_batch(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """A mask ``(q, k)`` is taken for one of keys, ``(b, k)``, where both fit."""
    mask = mask_of(request)
    if mask.ndim != 4 or mask.shape[0] != mask.shape[2]:
        return right(q, k, v, request)
    return plainly(q, k, v, mask.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[:, :, None], request)


def no_padding(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """Padded keys count."""
    if request.index is None or request.index.kind.ndim != 2 or request.kv_index is not None:
        return right(q, k, v, request)
    return plainly(q, k, v, torch.ones((), dtype=torch.bool), request)


def gathered_from_the_left(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """What was packed from left-padded rows is read one token early."""
    return right(q.roll(-1, 0), k.roll(-1, 0), v.roll(-1, 0), request) if q.ndim == 3 else right(q, k, v, request)


def first_text_for_all(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """Every sample of a batch attends the text of the first."""
    if request.index is None or request.index.kind.ndim != 2 or request.kv_index is not None:
        return right(q, k, v, request)
    text = (request.index.kind == Kind.TEXT)[..., None, None]
    return right(q, torch.where(text, k[:1], k), torch.where(text, v[:1], v), request)


def text_sees_all(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """Text reads the future under a causal pattern, and leaks it."""

    class Leaking:
        def attends(self, q, k, head):
            return request.pattern.attends(q, k, head) | (q.kind == Kind.TEXT)

    return right(q, k, v, dataclasses.replace(request, pattern=Leaking()))


def no_keys_are_nan(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """A softmax over nothing."""
    return right(q, k, v, request) if q.ndim != k.ndim else plainly(q, k, v, mask_of(request), request)


def empty_texts_are_skipped(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """Whoever has no text is given the next sample's."""
    if request.index is None or request.kv_index is not None or request.index.kind.ndim != 1:
        return right(q, k, v, request)
    text = request.index.kind == Kind.TEXT
    order = torch.arange(len(text))
    order[text] = order[text].roll(1)
    return right(q, k[order], v[order], request)


FAULTY: dict[str, Callable[[Tensor, Tensor, Tensor, AttentionRequest], Tensor]] = {
    "causal, without a mask": causal_needs_a_mask,
    "causal, without a mask or a layout": causal_needs_a_mask,
    "a two-dimensional mask at batch = length": mask_of_keys_as_pairs,
    "a two-dimensional mask of text at batch = length": mask_of_keys_as_pairs,
    "a causal mask at batch = length": causal_over_the_batch,
    "key padding on the right": no_padding,
    "key padding on the left": gathered_from_the_left,
    "key padding under a causal pattern": no_mask,
    "text at batch > 1": first_text_for_all,
    "text under a causal pattern": text_sees_all,
    "an empty text beside others": empty_texts_are_skipped,
    "an empty text in cross-attention": no_keys_are_nan,
}


def matrix_of(backend: Backend, pattern: str, packing: str) -> list[ConformanceRow]:
    return list(
        conformance_rows(
            {backend.name: backend},
            dtypes=[torch.float32],
            patterns={pattern: matrix_patterns()[pattern]},
            packings={packing: matrix_packings()[packing]},
            devices=["cpu"],
        )
    )


@pytest.mark.parametrize("fault", known_faults())
def test_each_known_fault_shows_in_its_case(fault: str) -> None:
    assert all(row.ok for row in matrix_of(ReferenceBackend(), *known_faults()[fault]))
    rows = matrix_of(Faulty(fault), *known_faults()[fault])
    assert not any(row.ok for row in rows if row.direction == "forward"), rows


def test_the_faults_hide_elsewhere() -> None:
    """The case is needed: dense rows without padding do not show these."""
    for fault in ("a two-dimensional mask at batch = length", "text at batch > 1", "an empty text in cross-attention"):
        assert all(row.ok for row in matrix_of(Faulty(fault), "Joint", "dense")), fault


class Odd(ReferenceBackend):
    """A backend that is wrong in another way than by its numbers."""

    name = "odd"

    def __init__(self, fault: str) -> None:
        self.fault, self.runs = fault, 0

    def supports(self, request: AttentionRequest) -> Answer:
        return Answer("never mind" if self.fault == "refuses" else "")

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        self.runs += 1
        if self.fault == "raises":
            raise RuntimeError("out\nof order")
        out = super().run(q, k, v, request)
        if self.fault == "no gradient":
            return out.detach()
        if self.fault == "wrong gradient":
            return out + (q - q.detach()).nan_to_num()
        if self.fault == "inference":
            return out if torch.is_grad_enabled() else out * 1.1
        return out.double() if self.fault == "dtype" else out * torch.nan if self.fault == "nan" else out


@pytest.mark.parametrize(
    ("fault", "forward", "backward", "says"),
    [
        ("refuses", True, True, "never mind"),
        ("raises", False, False, "RuntimeError: out of order"),
        ("no gradient", True, False, "does not require grad"),
        ("wrong gradient", True, False, ""),
        ("inference", False, True, ""),
        ("dtype", False, False, "torch.float64, not torch.float32"),
        ("nan", False, False, "not finite"),
    ],
)
def test_what_is_not_a_number_is_told(fault: str, forward: bool, backward: bool, says: str) -> None:
    odd = Odd(fault)
    rows = matrix_of(odd, "Joint", "packed")
    for row, ok in zip(rows, (forward, backward) * 2, strict=True):
        assert row.ok == ok and ((row.ok and row.error is not None) or says in row.reason), row
    assert fault != "refuses" or odd.runs == 0


def test_the_answer_is_known_by_hand() -> None:
    """Left padding: each sample is the right end of its row, and nothing else."""
    packing = matrix_packings()["padded left"]
    q, k, v, _ = packing.inputs(kv_heads=4)
    assert [int(row.isnan().any(-1).any(-1).sum()) for row in q] == [3, 0, 5]
    got = packing.answer(Joint(), q, k, v)
    for row, length in enumerate(packing.layout.lengths):
        one = slice(8 - length, 8)
        scores = torch.einsum("qhd,khd->hqk", q[row, one], k[row, one]) / 4
        assert torch.allclose(got[row, one], torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[row, one]), atol=1e-14)
        assert not got[row, : 8 - length].any()


def test_inputs_are_exact_in_every_dtype() -> None:
    for name, packing in matrix_packings().items():
        for x in packing.inputs(kv_heads=2):
            for dtype in BOUNDS:
                assert torch.equal(x.to(dtype).double().nan_to_num(), x.nan_to_num()), (name, dtype)


def test_cases_are_what_they_are_called() -> None:
    found = matrix_packings()
    assert all(pattern in matrix_patterns() and packing in found for pattern, packing in known_faults().values())
    assert 0 in found["packed + text"].layout.text_lengths and None in found["packed + text"].layout.grids
    assert all(p.q_lead[0] == p.q_lead[1] for name, p in found.items() if "batch = length" in name)
    assert found["dropped tokens"].layout.kept is not None
    widths = {name: found[name].layout.width - sum(found[name].layout.lengths) for name in ("packed", "capacity")}
    assert widths["packed"] == 0 and widths["capacity"] > 0 and math.isnan(found["capacity"].padding)
    kinds = {type(pattern) for pattern in matrix_patterns().values()}
    assert len(kinds) == 13 and HeadSplit in kinds  # ten of ours, unions, intersections, a split and a user's


def test_table_and_document() -> None:
    rows = [
        *matrix_of(ReferenceBackend(), "Joint", "packed"),
        *matrix_of(Odd("refuses"), "Joint", "packed"),
        *matrix_of(Odd("raises"), "Temporal", "packed"),
    ]
    table = conformance_table(rows).splitlines()
    assert table[0] == "**cpu, float32**" and [c.strip() for c in table[2].split("|")[1:-1]] == ["", "reference", "odd"]
    assert table[4].split("|")[3].strip() == "[1]" and "e-0" in table[4].split("|")[2]
    assert table[5].split("|")[3].strip() == "FAILS [2]"
    assert table[-2:] == ["1. never mind", "2. RuntimeError: out of order"]
    document = json.loads(json.dumps(conformance_document(rows), allow_nan=False))
    assert document["schema"] == "tubelet.conformance/1" and document["torch"] == torch.__version__
    assert len(document["rows"]) == len(rows)
    assert set(document["rows"][0]) == {
        "backend", "pattern", "packing", "device", "dtype", "gqa", "pass", "error", "reason", "bound", "ok",
    }  # fmt: skip


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    chosen = {"reference": ReferenceBackend()}
    monkeypatch.setattr(module, "installed", lambda: chosen)
    packed = {name: matrix_packings()[name] for name in ("packed", "padded right")}
    monkeypatch.setattr(testing, "matrix_patterns", lambda: {"Joint": Joint()})
    monkeypatch.setattr(testing, "matrix_packings", lambda: packed)
    file = tmp_path / "new" / "conformance.json"
    assert main(["conformance", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert {row["backend"] for row in document["rows"]} == {"reference"}
    assert "| Joint" in capsys.readouterr().out
    assert main(["conformance", "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    chosen["faulty"] = Faulty("key padding on the right")
    with pytest.raises(SystemExit) as stop:
        main(["conformance"])
    assert stop.value.code == 1
    assert "faulty, Joint, padded right, cpu, float64, 1:1, forward: error" in capsys.readouterr().err


def test_the_command_measures_what_is_named_and_tells_a_terminal(tmp_path, monkeypatch, capsys) -> None:
    few = {name: matrix_packings()[name] for name in ("packed", "dense")}
    monkeypatch.setattr(testing, "matrix_patterns", lambda: {"Joint": Joint()})
    monkeypatch.setattr(testing, "matrix_packings", lambda: few)
    monkeypatch.setitem(module._SPARSE, ("reference", "cpu"), "not measured")
    file = tmp_path / "conformance.json"

    def measured(*argv: str) -> set[tuple[str, bool]]:
        assert main(["conformance", "--json", str(file), *argv]) == 0
        return {(row["backend"], row["error"] is None) for row in json.loads(file.read_text())["rows"]}

    assert {("reference", True), ("reference", False), ("sdpa", False)} <= measured()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert measured("--backends", "reference,sdpa") == {("reference", False), ("sdpa", False)}
    assert "cases" in capsys.readouterr().err


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["conformance", "--help"])
    assert "  tubelet conformance --json" in capsys.readouterr().out


def test_a_slow_backend_is_measured_in_part_unless_it_is_named(monkeypatch) -> None:
    chosen = {"flex": ReferenceBackend()}
    monkeypatch.setattr(module, "installed", lambda: chosen)
    how = {"patterns": {"Joint": Joint()}, "devices": ["cpu"]}
    few = {name: matrix_packings()[name] for name in ("packed", "packed + text")}
    how["packings"] = few
    rows = list(conformance_rows(**how))
    measured = {(row.dtype, row.gqa, row.packing) for row in rows if row.error is not None}
    assert measured == {("float32", 2, "packed + text")}
    assert all(row.ok and (row.error is None) == row.reason.startswith("not measured: flex") for row in rows)
    assert all(row.error is not None for row in conformance_rows(chosen, **how))
