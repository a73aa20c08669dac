"""The conformance matrix: every backend on every pattern, packing, dtype and head grouping, forward and backward.

Each row is a number, the error against the float64 definition of each sample alone, or a blank with the backend's own
reason. Errors are Frobenius norms relative to the expected: of the output, as inference computes it, for a forward
row; for a backward row the worst of the output in training and the gradients of q, k and v, these relative to the
largest of the three (a softmax over one key has no gradient but rounding).
"""

import itertools
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tubelet._version import __version__
from tubelet.attention import backends as installed
from tubelet.attention import heads
from tubelet.protocols import AttentionRequest, Backend, Pattern
from tubelet.testing.cases import HEADS, Packing, matrix_packings, matrix_patterns

__all__ = ["ConformanceRow", "conformance_document", "conformance_rows", "conformance_table"]

BOUNDS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2**-7, 2 * 2**-7),
    torch.float16: (2**-10, 2 * 2**-10),
}
"""How large errors may be, forward and backward: in half precisions 1 and 2 units in the last place of 1."""

Pass = Literal["forward", "backward"]


class ConformanceRow(NamedTuple):
    """One cell of the matrix.

    ``gqa`` is the number of query heads per key head. ``error`` is None where the backend refuses, with its ``reason``,
    or fails; ``ok`` is False for an error above ``bound``, for an exception and for results that are not finite.

    Example:
        >>> row = next(conformance_rows(dtypes=[torch.float64]))
        >>> row.backend, row.pattern, row.packing, row.dtype, row.gqa, row.direction, row.ok
        ('sdpa', 'Joint', 'plain rows', 'float64', 1, 'forward', True)
    """

    backend: str
    pattern: str
    packing: str
    device: str
    dtype: str
    gqa: int
    direction: Pass
    error: float | None
    reason: str
    bound: float
    ok: bool

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """The row as plain values; the direction is called ``pass``."""
        return {"pass" if key == "direction" else key: value for key, value in self._asdict().items()}


def conformance_rows(
    backends: Mapping[str, Backend] | None = None,
    *,
    devices: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    groups: Sequence[int] = (1, 2),
    patterns: Mapping[str, Pattern] | None = None,
    packings: Mapping[str, Packing] | None = None,
) -> Iterator[ConformanceRow]:
    """The rows of the matrix, one after another.

    Args:
        backends: by name; None for every one that is installed, of which one that is slow on a device (FlexAttention
            on the CPU, which traces every shape anew) is measured on four packings, in float32 with two heads per key
            head.
        devices: None for "cpu", and "cuda" where there is one.
        dtypes: of q, k and v; None for the four floating-point ones.
        groups: query heads per key head.
        patterns: by name; None for all of :func:`matrix_patterns`.
        packings: by name; None for all of :func:`matrix_packings`.

    Example:
        >>> from tubelet.attention import Joint
        >>> rows = list(conformance_rows(patterns={"Joint": Joint()}, dtypes=[torch.float32], groups=[2]))
        >>> {row.backend for row in rows if row.error is not None} >= {"sdpa", "reference"}
        True
    """
    patterns = matrix_patterns() if patterns is None else patterns
    packings = matrix_packings() if packings is None else packings
    complete = backends is None
    backends = installed() if backends is None else backends
    devices = (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]) if devices is None else devices
    dtypes = list(BOUNDS) if dtypes is None else dtypes
    cases = itertools.product(patterns.items(), packings.items(), groups)
    for (pattern_name, pattern), (packing_name, packing), gqa in cases:
        case = _Case(pattern, packing, HEADS // gqa)
        for device, dtype, (name, backend) in itertools.product(devices, dtypes, backends.items()):
            skipped = _SPARSE.get((name, device)) if complete and (dtype, gqa, packing_name) not in _FEW else None
            found = ((None, skipped),) * 2 if skipped else case.measure(backend, dtype, device)
            for direction, bound, (error, reason) in zip(("forward", "backward"), BOUNDS[dtype], found, strict=True):
                yield ConformanceRow(
                    backend=name,
                    pattern=pattern_name,
                    packing=packing_name,
                    device=device,
                    dtype=str(dtype).removeprefix("torch."),
                    gqa=gqa,
                    direction=direction,  # type: ignore[arg-type]
                    error=error,
                    reason=reason.removeprefix(_FAILED),
                    bound=bound,
                    ok=not reason.startswith(_FAILED) if error is None else error <= bound,
                )


def conformance_document(rows: Iterable[ConformanceRow]) -> dict[str, object]:
    """The matrix as one JSON value, with the versions and devices that it was measured on.

    Example:
        >>> conformance_document([])["schema"]
        'tubelet.conformance/1'
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "schema": "tubelet.conformance/1",
        "tubelet": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cuda": device,
        "rows": [row.to_dict() for row in rows],
    }


def conformance_table(rows: Iterable[ConformanceRow]) -> str:
    """The worst error of each backend on each pattern, dtype by dtype, in Markdown; blanks have numbered reasons.

    Example:
        >>> from tubelet.attention import Joint
        >>> print(conformance_table(conformance_rows(patterns={"Joint": Joint()}, dtypes=[torch.float64])))
        **cpu, float64**
        ...
    """
    rows, notes, parts = list(rows), dict[str, int](), []
    names = list(dict.fromkeys(row.backend for row in rows))
    for device, dtype in dict.fromkeys((row.device, row.dtype) for row in rows):
        table = [["", *names]]
        mine = [row for row in rows if (row.device, row.dtype) == (device, dtype)]
        for pattern in dict.fromkeys(row.pattern for row in mine):
            cells = ([row for row in mine if (row.pattern, row.backend) == (pattern, name)] for name in names)
            table.append([pattern, *(_cell(cell, notes) for cell in cells)])
        parts.append(f"**{device}, {dtype}**\n\n{_markdown(table)}")
    numbered = [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n\n".join([*parts, *(["\n".join(numbered)] if numbered else [])])


_FAILED = "failed: "
_FEW = {(torch.float32, 2, name) for name in ("dense", "padded right", "packed + text", "cross, packed text")}
_SPARSE = {("flex", "cpu"): "not measured: flex traces every shape anew on the CPU; name it to measure it"}
"""Backends of which the whole matrix measures a few packings in one dtype, and what the other rows say."""
_Measure = Callable[[Backend, AttentionRequest], float]


class _Case:
    """One pattern on one packing: its inputs and the float64 answer, made once for all backends and dtypes."""

    def __init__(self, pattern: Pattern, packing: Packing, kv_heads: int) -> None:
        self.pattern, self.packing, self.kv_heads = pattern, packing, kv_heads
        *self.qkv, self.cotangent = packing.inputs(kv_heads)
        leaves = [x.clone().requires_grad_() for x in self.qkv]
        self.output = packing.answer(pattern, *leaves)
        grads = [torch.zeros_like(x) for x in leaves]
        if self.output.requires_grad:
            grads = list(torch.autograd.grad(self.output, leaves, self.cotangent))
        self.gradients = grads

    def measure(
        self, backend: Backend, dtype: torch.dtype, device: str
    ) -> tuple[tuple[float | None, str], tuple[float | None, str]]:
        """Error and reason, forward and backward."""
        found = []
        for what, grad in ((self._forward, False), (self._backward, True)):
            request = self.packing.request(self.pattern, self.kv_heads, dtype, device, grad)
            answer = heads.answer(backend, request)
            found.append(self._tried(what, backend, request) if answer else (None, answer.reason))
        return found[0], found[1]

    def _tried(self, what: _Measure, backend: Backend, request: AttentionRequest) -> tuple[float | None, str]:
        try:
            error = what(backend, request)
        except Exception as raised:
            return None, f"{_FAILED}{type(raised).__name__}: {' '.join(str(raised).split())}"
        return (error, "") if math.isfinite(error) else (None, f"{_FAILED}the result is not finite")

    def _forward(self, backend: Backend, request: AttentionRequest) -> float:
        with torch.no_grad():
            out = self._call(backend, request, self._inputs(request))
        return _error([out], [self.output])

    def _backward(self, backend: Backend, request: AttentionRequest) -> float:
        leaves = [x.requires_grad_() for x in self._inputs(request)]
        out = self._call(backend, request, leaves)
        got = torch.autograd.grad(out, leaves, self.cotangent.to(out))
        return max(_error([out], [self.output]), _error(got, self.gradients))

    def _inputs(self, request: AttentionRequest) -> list[Tensor]:
        return [x.to(request.device, request.dtype, copy=True) for x in self.qkv]

    def _call(self, backend: Backend, request: AttentionRequest, tensors: list[Tensor]) -> Tensor:
        def call(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
            return heads.run(backend, q, k, v, request)

        q, k, v = tensors
        out = self.packing.run(call, q, k, v, request)
        if out.dtype != request.dtype:
            raise TypeError(f"the output is {out.dtype}, not {request.dtype}")
        return out


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest error, relative to the largest norm that is expected (to 1 where nothing is)."""
    scale = max(float(w.detach().norm()) for w in want) or 1.0
    return max(float((g.detach().cpu().double() - w.detach()).norm()) for g, w in zip(got, want, strict=True)) / scale


def _cell(rows: list[ConformanceRow], notes: dict[str, int]) -> str:
    """The worst error of the rows that have one, and the numbers of the reasons of those that have none."""
    failed = any(not row.ok for row in rows)
    worst = max((row.error for row in rows if row.error is not None), default=None)
    reasons = dict.fromkeys(row.reason for row in rows if row.error is None)
    marks = [f"[{notes.setdefault(reason, len(notes) + 1)}]" for reason in reasons]
    return " ".join([*(["FAILS"] if failed else []), *([] if worst is None else [f"{worst:.0e}"]), *marks])


def _markdown(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
