"""Reading compiled kernels: what they need, and their instructions, with the tools that come with triton.

A disassembler takes a third of a second to begin, however short its input is; so the code of many kernels, laid end to
end, is disassembled at once. An instruction has 16 bytes and a line of the result.
"""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

__all__ = ["MachineCode", "read"]

_BYTES = 16
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_CODE = b".text."


class MachineCode(NamedTuple):
    """What a kernel needs, and its instructions as text.

    ``stack_bytes`` are those of stack and local memory.

    Example:
        >>> MachineCode(40, 0, ["LDL R1, [R2]", "@P0 STL [R2], R1"]).count("STL", "LDL")
        2
    """

    registers: int
    stack_bytes: int
    instructions: list[str]

    def count(self, *names: str) -> int:
        """How many instructions have one of the names, whatever is behind its first dot."""
        name = re.compile(rf"\b(?:{'|'.join(names)})\b")
        return sum(1 for instruction in self.instructions if name.search(instruction))


def read(cubins: Sequence[bytes], arch: int) -> list[MachineCode]:
    """The machine code of compiled kernels, all for one architecture.

    Raises:
        RuntimeError: a kernel's file has not one section of code, or the disassembler lists another number of
            instructions than there are.

    Example:
        >>> read([], 90)
        []
    """
    if not cubins:
        return []
    codes = [_code(cubin) for cubin in cubins]
    lines = iter(_disassembled(b"".join(codes), arch))
    found = [
        MachineCode(*_needs(cubin), list(islice(lines, len(code) // _BYTES)))
        for cubin, code in zip(cubins, codes, strict=True)
    ]
    there, listed = sum(map(len, codes)) // _BYTES, sum(len(each.instructions) for each in found) + len(list(lines))
    if listed != there:
        raise RuntimeError(f"nvdisasm listed {listed} instructions of {there}")
    return found


def _code(elf: bytes) -> bytes:
    """The instructions in a 64-bit ELF file: its one section of code."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<3H", elf, 58)
    sections = [struct.unpack_from("<I4xQQQQ", elf, table + i * size) for i in range(count)]
    texts = [
        elf[begin : begin + length]
        for name, _, _, begin, length in sections
        if elf.startswith(_CODE, sections[names][3] + name)
    ]
    if len(texts) != 1 or len(texts[0]) % _BYTES:
        raise RuntimeError(f"a kernel's file has sections of {[len(text) for text in texts]} bytes of code")
    return texts[0]


def _disassembled(code: bytes, arch: int) -> Iterator[str]:
    name = f"SM{arch}{'a' if arch >= 90 else ''}"
    for line in _printed("nvdisasm", code, "--binary", name, "--no-dataflow").splitlines():
        if found := _LINE.match(line):
            yield found[1]


def _needs(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory."""
    printed = _printed("cuobjdump", cubin, "--dump-resource-usage")
    sizes = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}
    return sizes["REG"], sizes["STACK"] + sizes["LOCAL"]


def _printed(tool: str, content: bytes, *options: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        return subprocess.run([str(path), *options, file.name], check=True, capture_output=True, text=True).stdout
