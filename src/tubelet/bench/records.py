"""The files of a run: JSON with a versioned schema, CSV, and the numbers that follow from both.

``schema.json`` beside this module is the JSON Schema of a file; ``tubelet.bench/1`` changes its number when a field
changes its meaning or goes. Files are replaced whole, so that a stopped run leaves the last complete state.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tubelet.files import replacing

__all__ = ["SCHEMA", "derived", "load", "save", "save_csv", "schema"]

SCHEMA = "tubelet.bench/1"
"""The version that files name."""

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a file.

    Example:
        >>> schema()["properties"]["schema"]["const"]
        'tubelet.bench/1'
    """
    found: dict[str, Any] = json.loads(resources.files("tubelet.bench").joinpath("schema.json").read_text())
    return found


def save(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a run as JSON, whole or not at all.

    Raises:
        ValueError: the run does not follow the schema.

    Example:
        >>> save("run.json", {"schema": "tubelet.bench/1"})
        Traceback (most recent call last):
        ...
        ValueError: run.json is no run of tubelet.bench/1: 'kind' is missing
    """
    _check(path, document)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a run.

    Raises:
        ValueError: the file is no JSON, has another schema, or does not follow it.
        OSError: there is no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run.json"
        >>> _ = file.write_text("[]")
        >>> load(file)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: ...run.json is no run of tubelet.bench/1: the whole is no object
    """
    try:
        document: dict[str, Any] = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    _check(path, document)
    return document


def derived(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> dict[str, float | None]:
    """TFLOP/s and GB/s of a row, and their parts of the ceilings; None where there is no time.

    Example:
        >>> row = {"median_ms": 2.0, "flops": 4 * 10**9, "bytes": 10**6, "dtype": "float32"}
        >>> derived(row, {"matmul_tflops": {"float32": 4.0}, "copy_gbps": 5.0})["tflops_part"]
        0.5
    """
    if row["median_ms"] is None:
        return dict.fromkeys(("tflops", "tflops_part", "gbps", "gbps_part"))
    seconds = row["median_ms"] / 1000
    tflops, gbps = row["flops"] / seconds / 1e12, row["bytes"] / seconds / 1e9
    product, copy = ceilings.get("matmul_tflops", {}).get(row["dtype"]), ceilings.get("copy_gbps")
    parts = {"tflops_part": tflops / product if product else None, "gbps_part": gbps / copy if copy else None}
    return {"tflops": tflops, "gbps": gbps, **parts}


def save_csv(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write one line a row, without the single samples; errors are columns of their own.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run.csv"
        >>> save_csv(file, {"rows": [], "ceilings": {}})
        >>> file.read_text().strip()
        ''
    """
    lines = [_line(row, document["ceilings"]) for row in document["rows"]]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _line(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> dict[str, Any]:
    errors = row["errors"] or {}
    plain = {name: value for name, value in row.items() if name not in ("seconds", "errors")}
    more = {
        "samples": len(row["seconds"] or ()),
        **{f"error_{p}": errors.get(p) for p in ("out", "row", "dq", "dk", "dv")},
    }
    return {**plain, **more, **derived(row, ceilings)}


def _check(path: str | os.PathLike[str], document: Any) -> None:
    for problem in _problems(document, schema(), "the whole"):
        raise ValueError(f"{path} is no run of {SCHEMA}: {problem}")


def _problems(value: Any, rule: Mapping[str, Any], where: str) -> Sequence[str]:
    """What violates the part of JSON Schema that ``schema.json`` uses; the first few at most."""
    if "const" in rule and value != rule["const"]:
        return [f"{where} is {value!r}, not {rule['const']!r}"]
    if "enum" in rule and value not in rule["enum"]:
        return [f"{where} is {value!r}, none of {rule['enum']}"]
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return [f"{where} is no {' or '.join(kinds)}"]
    if isinstance(value, dict):
        missing = [f"{name!r} is missing" for name in rule.get("required", []) if name not in value]
        rules = {name: rule["properties"][name] for name in value if name in rule.get("properties", {})}
        return missing or [p for name, inner in rules.items() for p in _problems(value[name], inner, repr(name))][:3]
    if isinstance(value, list):
        return [p for i, each in enumerate(value) for p in _problems(each, rule.get("items", {}), f"{where}[{i}]")][:3]
    return []


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
