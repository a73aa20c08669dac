"""Files: what is written is read again and follows the schema; what does not follow it is named."""

import contextlib
import copy
import csv
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.bench import SCHEMA, load, records, save, save_csv, save_plot, schema
from tubelet.bench.records import derived


def test_json_round_trip(small, tmp_path) -> None:
    save(tmp_path / "run.json", small)
    assert load(tmp_path / "run.json") == small
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_file_follows_the_schema_by_its_own_library(small) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(small)), schema())
    assert schema()["properties"]["schema"]["const"] == SCHEMA == small["schema"]
    assert set(small["rows"][0]) == set(schema()["properties"]["rows"]["items"]["properties"])


def places(value, path=()):
    """Every place inside a document."""
    yield path
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[name], (*path, name))


@given(data=st.data())
def test_both_validators_agree_on_damage(small, data) -> None:
    document = copy.deepcopy({**small, "rows": small["rows"][:1]})
    *path, last = data.draw(st.sampled_from([p for p in places(document) if p]))
    inside = document
    for name in path:
        inside = inside[name]
    if data.draw(st.booleans()) and isinstance(inside, dict):
        del inside[last]
    else:
        inside[last] = data.draw(st.sampled_from([None, 3, 2.5, "x", True, [], {}]))
    fine = not list(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match="no run of tubelet.bench/1"):
        records._check("run.json", document)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON"),
        ("[]", "the whole is no object"),
        ('{"schema": "tubelet.bench/2"}', "missing"),
        ("{}", "'kind' is missing"),
    ],
)
def test_what_is_no_run_is_named(text: str, says: str, tmp_path) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        load(file)


def test_another_version_is_refused(small, tmp_path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**small, "schema": "tubelet.bench/2"}))
    with pytest.raises(ValueError, match="'tubelet.bench/2', not 'tubelet.bench/1'"):
        load(tmp_path / "run.json")


def test_csv_holds_every_row_and_what_follows(small, tmp_path) -> None:
    save_csv(tmp_path / "run.csv", small)
    lines = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert [line["key"] for line in lines] == [row["key"] for row in small["rows"]]
    for line, row in zip(lines, small["rows"], strict=True):
        assert float(line["tflops"]) == pytest.approx(row["flops"] / (row["median_ms"] * 1e9))
        assert float(line["error_out"]) == row["errors"]["out"]
        assert int(line["samples"]) == len(row["seconds"])
        assert "seconds" not in line


def test_what_follows_from_a_row() -> None:
    row = {"median_ms": 2.0, "flops": 8 * 10**9, "bytes": 10**7, "dtype": "float32"}
    found = derived(row, {"matmul_tflops": {"float32": 16.0}, "copy_gbps": 50.0})
    assert found == {"tflops": 4.0, "tflops_part": 0.25, "gbps": 5.0, "gbps_part": 0.1}
    assert derived(row, {"matmul_tflops": {}, "copy_gbps": 50.0})["tflops_part"] is None
    assert set(derived({**row, "median_ms": None}, {}).values()) == {None}


def test_a_plot_is_a_picture_of_every_timed_row(small, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    save_plot(tmp_path / "run.png", small)
    with image.open(tmp_path / "run.png") as picture:
        assert picture.size[0] == 1080
        assert picture.size[1] > 400
        plain = picture.convert("RGB")
    colors = {plain.getpixel((x, y)) for x in range(0, 1080, 9) for y in range(0, plain.size[1], 9)}
    assert {(0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)} <= colors  # a bar of each backend
    untimed = [{**row, "median_ms": None} for row in small["rows"]]
    with pytest.raises(ValueError, match="no row has a time"):
        save_plot(tmp_path / "none.png", {**small, "rows": untimed})
