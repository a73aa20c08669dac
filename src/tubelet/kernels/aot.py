"""Compiling every shipped kernel for GPUs that are not here, and reading what the machine code needs.

The launches are those that run: each operation's host code runs on tensors without data, and what it would start is
compiled instead. ``ptxas`` and ``cuobjdump`` come with triton. A kernel passes when nothing is spilt to local memory
(no stack, no ``STL`` or ``LDL`` instruction), when registers and shared memory stay below the caps, and, where half
precisions are multiplied, when tensor cores do it (``HMMA`` on sm_80, ``HGMMA`` on sm_90). What loads by descriptors is
for sm_90 alone, and must hold its loads of whole tiles (TMA: ``UTMALDG``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tubelet.kernels._grouped import cases as grouped
from tubelet.kernels._launching import Launcher
from tubelet.kernels._machine_code import read
from tubelet.kernels._modulation import cases as modulation
from tubelet.kernels._padded import cases as padded
from tubelet.kernels._residual import cases as residual
from tubelet.kernels._rotation import cases as rotation
from tubelet.kernels._tiled import cases as tiled

__all__ = ["SHARED_BYTES", "Resources", "as_json", "check", "from_json", "launches", "table"]

VERSION = 3
"""Of the JSON's schema."""
SHARED_BYTES = {80: 166_912, 90: 232_448}
"""Shared memory that a program may have, by compute capability."""
REGISTERS = 128
"""That a thread may have: half of what it could, so that a multiprocessor holds at least 512 threads."""
MULTIPLYING_REGISTERS = 255
"""The same where matrices are multiplied, whose tiles live in registers: all that a thread can have."""
_MULTIPLY = ("grouped", "tiled")
_TOGETHER = 64
"""Kernels whose machine code is read at once."""


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one architecture, and why it fails, where it does.

    ``products``: instructions of tensor cores, ``tiles``: loads of whole tiles; None where none are meant.

    Example:
        >>> Resources("forward", "bfloat16 128", 90, 4, 40, 0, 0, 0).passes
        True
    """

    kernel: str
    case: str
    arch: int
    warps: int
    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int
    products: int | None = None
    tiles: int | None = None

    @property
    def fault(self) -> str | None:
        """What exceeds its cap."""
        if self.spills or self.stack_bytes:
            return f"{self.spills} spills, {self.stack_bytes} bytes of stack"
        most = MULTIPLYING_REGISTERS if self.kernel.startswith(_MULTIPLY) else REGISTERS
        if self.registers > most:
            return f"{self.registers} registers a thread, more than {most}"
        if self.products == 0:
            return f"no {_PRODUCTS[self.arch]} instruction, where tensor cores are meant"
        if self.tiles == 0:
            return f"no {_TILES} instruction, where descriptors are meant"
        if self.shared_bytes > SHARED_BYTES[self.arch]:
            return f"{self.shared_bytes} bytes of shared memory, more than {SHARED_BYTES[self.arch]}"
        return None

    @property
    def passes(self) -> bool:
        """Whether nothing exceeds its cap."""
        return self.fault is None


def check(archs: Iterable[int] = (80, 90), word: str = "") -> Iterator[Resources]:
    """Compile the shipped launches whose name holds ``word``, each for every architecture.

    Raises:
        ImportError: triton is not installed.
        ValueError: kernels run in the interpreter, or an architecture is unknown.

    Example:
        >>> next(check([70]), None)
        Traceback (most recent call last):
        ValueError: arch must be one of 80, 90, got 70
    """
    from tubelet.kernels._choice import installed, interpreted

    archs = tuple(archs)
    if unknown := [arch for arch in archs if arch not in SHARED_BYTES]:
        raise ValueError(f"arch must be one of {', '.join(map(str, SHARED_BYTES))}, got {unknown[0]}")
    if not installed():
        raise ImportError("checking the kernels needs triton: pip install 'tubelet[triton]'")
    if interpreted():
        raise ValueError("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    chosen = [launch for launch in launches() if word in f"{launch[0]} {launch[1]}"]
    for arch in archs:
        there = (launch for launch in chosen if arch >= 90 or not _by_descriptor(launch[2][1]))
        while some := [_compiled(name, case, arch, *described) for name, case, described in islice(there, _TOGETHER)]:
            yield from _resources(some, arch)


def launches() -> Iterator[tuple[str, str, tuple[Any, Mapping[str, Any], int]]]:
    """The different launches of all cases: kernel's name, case, and (kernel, arguments, warps).

    Example:
        >>> sorted({name for name, _, _ in launches()})
        ['grouped.backward_keys', 'grouped.backward_queries', 'grouped.backward_together', 'grouped.forward',
         'modulation.backward', 'modulation.combine', 'modulation.forward', 'padded.backward', 'padded.forward',
         'padded.merge', 'padded.statistics', 'residual.backward', 'residual.combine', 'residual.forward',
         'rotation.backward', 'rotation.backward_across', 'rotation.forward', 'rotation.forward_across',
         'tiled.backward_keys', 'tiled.backward_queries', 'tiled.forward']
    """
    seen = set()
    for operation in (grouped, modulation, padded, residual, rotation, tiled):
        folder = operation.__name__.split(".")[-2].removeprefix("_")
        for case, run in operation.cases():
            found: list[tuple[Any, Mapping[str, Any], int]] = []
            run(_noting(found))
            times: Counter[str] = Counter()
            for kernel, arguments, warps in found:
                name = f"{folder}.{kernel.__name__}"
                identity = f"{name} {_described(kernel, arguments)} {warps}"
                if identity not in seen:  # what adds float32 sums serves every precision
                    seen.add(identity)
                    times[name] += 1
                    which = case if times[name] == 1 else f"{case}, launch {times[name]}"
                    yield name, which, (kernel, arguments, warps)


def as_json(found: Iterable[Resources]) -> dict[str, Any]:
    """The readings as JSON values, with the versions they belong to.

    Example:
        >>> as_json([Resources("forward", "bfloat16 128", 90, 4, 40, 0, 0, 0)])["schema"]
        3
    """
    kernels = [{**asdict(each), "fault": each.fault} for each in found]
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    return {"schema": VERSION, "versions": versions, "passes": all(not k["fault"] for k in kernels), "kernels": kernels}


def from_json(content: Mapping[str, Any]) -> list[Resources]:
    """The readings that :func:`as_json` wrote.

    Raises:
        ValueError: the content has another schema.

    Example:
        >>> found = [Resources("forward", "bfloat16 128", 90, 4, 40, 0, 0, 0)]
        >>> from_json(as_json(found)) == found
        True
    """
    if content["schema"] != VERSION:
        raise ValueError(f"schema must be {VERSION}, got {content['schema']}")
    names = [field.name for field in fields(Resources)]
    return [Resources(**{name: kernel[name] for name in names}) for kernel in content["kernels"]]


def table(found: Iterable[Resources]) -> str:
    """The readings as aligned text: of each kernel and architecture the largest of every column, then every fault.

    Example:
        >>> print(table([Resources("forward", "bfloat16 128", 90, 4, 40, 0, 0, 0)]))
        kernel                    arch   cases  registers  spills  stack B  shared B
        forward                   sm_90      1         40       0        0         0
    """
    groups: dict[tuple[str, int], list[Resources]] = {}
    for each in found:
        groups.setdefault((each.kernel, each.arch), []).append(each)
    lines = [f"{'kernel':<26}{'arch':<7}{'cases':>5}{'registers':>11}{'spills':>8}{'stack B':>9}{'shared B':>10}"]
    for (kernel, arch), group in sorted(groups.items()):
        most = [max(getattr(e, name) for e in group) for name in ("registers", "spills", "stack_bytes", "shared_bytes")]
        lines.append(f"{kernel:<26}sm_{arch:<4}{len(group):>5}{most[0]:>11}{most[1]:>8}{most[2]:>9}{most[3]:>10}")
        lines += [f"  FAULT {each.case}: {each.fault}" for each in group if not each.passes]
    return "\n".join(lines)


def _noting(found: list[tuple[Any, Mapping[str, Any], int]]) -> Launcher:
    """A launcher that only writes down what it should start."""

    def note(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], warps: int) -> None:
        found.append((kernel, arguments, warps))

    return note


class _Compiled(NamedTuple):
    """A kernel in machine code, and the names of the instructions that are meant to be in it."""

    kernel: str
    case: str
    warps: int
    shared_bytes: int
    cubin: bytes
    product: str | None
    tiles: str | None


def _compiled(name: str, case: str, arch: int, kernel: Any, arguments: Mapping[str, Any], warps: int) -> _Compiled:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _described(kernel, arguments)
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = compile_kernel(source, target=GPUTarget("cuda", arch, 32), options=options)
    product = None
    if name.startswith(_MULTIPLY) and arguments["Q"].dtype != torch.float32:
        whole = max(arguments["ROWS"], arguments["KEYS"]) >= 64  # else no whole warp group's: as on sm_80
        product = _PRODUCTS[arch if whole else 80]
    tiles = _TILES if _by_descriptor(arguments) else None
    return _Compiled(name, case, warps, compiled.metadata.shared, compiled.asm["cubin"], product, tiles)


def _resources(compiled: Iterable[_Compiled], arch: int) -> Iterator[Resources]:
    """What kernels for one architecture need, by their machine code."""
    compiled = list(compiled)
    for each, code in zip(compiled, read([each.cubin for each in compiled], arch), strict=True):
        meant = [None if name is None else code.count(name) for name in (each.product, each.tiles)]
        sizes = code.registers, code.count("STL", "LDL"), code.stack_bytes, each.shared_bytes
        yield Resources(each.kernel, each.case, arch, each.warps, *sizes, *meant)


def _described(kernel: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and divisibility of the arguments, as a launch would find them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        free = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not free):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif _is_descriptor(value):
            block = ",".join(map(str, value.block_shape))
            signature[parameter.name] = f"tensordesc<{_SHORT[str(value.base.dtype)]}[{block}]>"
        else:
            pointer = isinstance(value, Tensor)
            signature[parameter.name] = f"*{_SHORT[str(value.dtype)]}" if pointer else "i32"
            if pointer or (value % 16 == 0 and not free):
                attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _is_descriptor(value: Any) -> bool:
    return hasattr(value, "block_shape")


def _by_descriptor(arguments: Mapping[str, Any]) -> bool:
    return any(map(_is_descriptor, arguments.values()))


_PRODUCTS = {80: "HMMA", 90: "HGMMA"}
_TILES = "UTMALDG"
_SHORT = {
    "torch.float32": "fp32",
    "torch.float16": "fp16",
    "torch.bfloat16": "bf16",
    "torch.int32": "i32",
    "torch.int64": "i64",
}
