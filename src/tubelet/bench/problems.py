"""One problem and the ways to compute it: inputs, exact rows, and a call for each backend that passes the gate.

A call is gated before it is timed: the backend says whether it serves the request, the call must not raise, and its
results must be near the exact ones. What stops at the gate is a reason, and gets no time.

Shapes: q, k, v and the cotangent are ``(b, n, heads, head_dim)``, or ``(n, heads, head_dim)`` packed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet.bench.exact import TOLERANCES, WORST, Exact, choose_rows, exact_rows
from tubelet.bench.harness import as_graph
from tubelet.bench.pairs import count_pairs
from tubelet.bench.shapes import Shape
from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.protocols import AttentionRequest, Backend, Pattern

__all__ = ["Problem", "Refused", "Way", "make_problem", "make_way"]

_REFUSES = " cannot serve this request: "
"""What ``attend`` says between a backend's name and its reason."""

Status = Literal["ok", "unsupported", "skipped", "failed", "wrong"]


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A row that gets no time: its status, and why.

    Example:
        >>> str(Refused("unsupported", "needs CUDA"))
        'needs CUDA'
    """

    def __init__(self, status: Status, reason: str, errors: dict[str, float] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.errors = status, reason, errors


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of one shape, pattern and dtype, with what they should give; made by :func:`make_problem`.

    Example:
        >>> from tubelet.bench.shapes import parse_shape
        >>> from tubelet.attention import Joint
        >>> make_problem(parse_shape("1x2x2/2x8"), Joint(), torch.float32, torch.device("cpu")).pairs
        32
    """

    pattern: Pattern
    layout: TokenLayout
    index: LayoutIndex
    qkv: tuple[Tensor, Tensor, Tensor]
    cotangent: Tensor
    exact: Exact
    pairs: int

    @property
    def request(self) -> AttentionRequest:
        """The question to the backends."""
        q = self.qkv[0]
        shape = tuple(q.shape)
        scale = q.shape[-1] ** -0.5
        return AttentionRequest(self.pattern, self.index, None, shape, shape, q.dtype, str(q.device), scale, None)

    @property
    def all_rows(self) -> bool:
        """Whether every query row is checked."""
        return len(self.exact.rows) == sum(self.layout.lengths)


@dataclass(eq=False)
class Way:
    """A call that passed the gate; ``last`` holds the results of its newest run, which are checked once more.

    Example:
        >>> way = Way("one", lambda: (torch.ones(1),))
        >>> way(), way.last
        (None, (tensor([1.]),))
    """

    name: str
    call: Callable[[], tuple[Tensor, ...]]
    last: tuple[Tensor, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)

    def __call__(self) -> None:
        self.last = self.call()


def make_problem(
    shape: Shape,
    pattern: Pattern,
    dtype: torch.dtype,
    device: torch.device,
    *,
    backward: bool = False,
    seed: int = 0,
    check_rows: int = 256,
) -> Problem:
    """Draw inputs (standard normal), count the attended pairs, and compute the exact rows.

    Args:
        shape: of the call.
        pattern: which keys a query attends.
        dtype: of q, k and v.
        device: of everything.
        backward: also compute exact gradients.
        seed: of the inputs and of the choice of rows.
        check_rows: how many query rows are checked at most.

    Example:
        >>> from tubelet.bench.shapes import parse_shape
        >>> from tubelet.attention import Joint
        >>> problem = make_problem(parse_shape("1x2x2/2x8"), Joint(), torch.float32, torch.device("cpu"), check_rows=3)
        >>> problem.all_rows, problem.exact.out.shape
        (False, torch.Size([3, 2, 8]))
    """
    layout = shape.layout()
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (*layout.shape, shape.heads, shape.head_dim)
    q, k, v, cotangent = (torch.randn(sizes, generator=generator, device=device).to(dtype) for _ in range(4))
    rows = choose_rows(layout, check_rows, seed)
    exact = exact_rows(q, k, v, cotangent if backward else None, pattern, layout, rows)
    pairs = count_pairs(pattern, layout, shape.heads, str(device))
    return Problem(pattern, layout, layout.on(device), (q, k, v), cotangent, exact, pairs)


def make_way(problem: Problem, backend: Backend, *, backward: bool, graph: bool) -> Way:
    """The call of a backend, once it has passed the gate.

    Args:
        problem: what is computed.
        backend: whose ``run`` is called.
        backward: forward and backward in one call.
        graph: replay a CUDA graph of the call.

    Raises:
        Refused: the backend does not serve the request, raises, needs more memory than there is, or is wrong.

    Example:
        >>> from tubelet.bench.shapes import parse_shape
        >>> from tubelet.attention import Joint, backends
        >>> problem = make_problem(parse_shape("1x2x2/2x8"), Joint(), torch.float32, torch.device("cpu"))
        >>> way = make_way(problem, backends()["sdpa"], backward=False, graph=False)
        >>> way.name, way.errors["out"] < 1e-6
        ('sdpa', True)
    """
    _ask(problem, backend)
    way = Way(backend.name, _call(problem, backend, problem.cotangent if backward else None))
    _run(way)
    masked = None
    if backward:
        masked = way.last if problem.all_rows else _masked(problem, backend)
    if graph:
        _capture(way)
    way.errors = check(problem, way.last, masked)
    return way


def check(problem: Problem, results: tuple[Tensor, ...], masked: tuple[Tensor, ...] | None) -> dict[str, float]:
    """The errors of a call's results.

    Raises:
        Refused: one is above the tolerance of the dtype, is not finite, or has another shape or dtype than it should.
    """
    q = problem.qkv[0]
    for part, result in zip(("out", "dq", "dk", "dv"), results, strict=False):
        if result.shape != q.shape or result.dtype != q.dtype:
            shape, dtype = tuple(result.shape), result.dtype
            raise Refused("wrong", f"{part} is {dtype} of shape {shape}, not {q.dtype} of {tuple(q.shape)}")
    errors = problem.exact.errors(results, masked)
    for part, error in errors.items():
        allowed = TOLERANCES[q.dtype] * {"out": 1, "row": WORST}.get(part, 2)
        if not error <= allowed:
            what = "a row of out" if part == "row" else part
            raise Refused("wrong", f"{what} has a relative error of {error:.1e}, above {allowed:.0e}", errors)
    return errors


def _ask(problem: Problem, backend: Backend) -> None:
    answer = backend.supports(problem.request)
    if not answer:
        raise Refused("unsupported", answer.reason)
    if backend.name == "reference":
        q = problem.qkv[0]
        rows = problem.layout.width
        needed = 4 * (q.numel() // (rows * q.shape[-1])) * rows**2 * max(4, q.element_size())
        free = _free_memory(q.device)
        if free is not None and needed > free:
            raise Refused("skipped", f"the scores need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")


def _call(problem: Problem, backend: Backend, cotangent: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, or forward and backward, of one way to compute the problem."""
    request = problem.request
    q, k, v = (x.detach().requires_grad_(cotangent is not None) for x in problem.qkv)

    def without_gradients() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (backend.run(q, k, v, request),)

    def with_gradients() -> tuple[Tensor, ...]:
        out = backend.run(q, k, v, request)
        return (out.detach(), *torch.autograd.grad(out, (q, k, v), cotangent))

    return without_gradients if cotangent is None else with_gradients


def _masked(problem: Problem, backend: Backend) -> tuple[Tensor, ...]:
    """The results with a cotangent that is zero outside the checked rows: exact gradients of every key are known."""
    flat = torch.zeros_like(problem.cotangent).flatten(0, -3)
    rows = problem.exact.rows
    flat[rows] = problem.cotangent.flatten(0, -3)[rows]
    way = Way("masked", _call(problem, backend, flat.view_as(problem.cotangent)))
    _run(way)
    return way.last


def _run(way: Way) -> None:
    try:
        way()
    except Exception as error:  # whatever a backend raises is this row's reason, and never stops the other rows
        _, refused, reason = str(error).partition(_REFUSES)
        raise (Refused("unsupported", reason) if refused else Refused("failed", _line(error))) from None


def _capture(way: Way) -> None:
    try:
        replay, results = as_graph(way.call)
    except Exception as error:
        raise Refused("failed", f"no CUDA graph of it: {_line(error)}") from None

    def replayed() -> Any:
        replay()
        return results

    way.call = replayed
    way()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    fields = dict(line.split(":") for line in file.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
