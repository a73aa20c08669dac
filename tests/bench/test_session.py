"""A run keeps what is done: files are whole after every group, Ctrl-C loses one group at most, --resume goes on."""

import io
from dataclasses import replace

import pytest

from tubelet.bench import Plan, load, run_plan, save, session

PLAN = Plan(
    shapes=("1x2x2/1x8", "1x2x3/1x8", "1x3x3/1x8"), patterns=("joint",), backends=("sdpa", "reference"), rounds=3
)


@pytest.fixture(autouse=True)
def ceilings(monkeypatch) -> list[tuple[str, ...]]:
    """Ceilings without the seconds they take, and the dtypes that were asked for."""
    asked: list[tuple[str, ...]] = []

    def measured(plan: Plan):
        asked.append(plan.dtypes)
        names = dict.fromkeys(plan.dtypes, 1.0)
        return {"matmul_tflops": names, "matmul_n": dict.fromkeys(plan.dtypes, 8), "copy_gbps": 10.0}

    monkeypatch.setattr(session, "measure_ceilings", measured)
    return asked


def run(plan: Plan, file, **options):
    return run_plan(plan, file, progress=io.StringIO(), **options)


def test_the_file_is_the_document(tmp_path) -> None:
    file = tmp_path / "deep" / "run.json"
    document = run(PLAN, file)
    assert load(file) == document
    assert len(document["rows"]) == 6
    assert document["settings"] == PLAN.fixed()
    assert set(document["environment"]["versions"]) >= {"tubelet", "torch", "python"}
    assert document["environment"]["hardware"]["threads"] == 1
    assert "clocks_after" in document["environment"]


def test_control_c_keeps_finished_groups_and_resume_adds_the_rest(tmp_path, monkeypatch) -> None:
    file = tmp_path / "run.json"
    measure = session.measure

    def interrupted(plan, done, watch):
        for number, rows in enumerate(measure(plan, done, watch)):
            if number == 2:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(session, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped; 4 of 6 rows are in .*run\.json"):
        run(PLAN, file)
    kept = load(file)["rows"]
    assert len(kept) == 4
    monkeypatch.setattr(session, "measure", measure)
    resumed = run(PLAN, file, resume=True)
    assert resumed["rows"][:4] == kept
    assert [row["run"] for row in resumed["rows"]] == [shape for shape in PLAN.shapes for _ in range(2)]


def test_a_finished_run_measures_nothing_again(tmp_path, ceilings) -> None:
    file = tmp_path / "run.json"
    first = run(PLAN, file)
    assert run(PLAN, file, resume=True)["rows"] == first["rows"]
    assert ceilings == [("float32",)]


def test_a_resumed_run_may_add_backends_and_dtypes(tmp_path, ceilings) -> None:
    file = tmp_path / "run.json"
    run(replace(PLAN, backends=("sdpa",)), file)
    document = run(replace(PLAN, dtypes=("float32", "float64")), file, resume=True)
    assert len({row["key"] for row in document["rows"]}) == len(document["rows"]) == 12
    assert set(document["ceilings"]["matmul_tflops"]) == {"float32", "float64"}


def test_a_file_is_never_overwritten(tmp_path) -> None:
    file = tmp_path / "run.json"
    first = run(PLAN, file)
    with pytest.raises(ValueError, match="exists; --resume"):
        run(PLAN, file)
    assert load(file) == first
    with pytest.raises(ValueError, match="--resume needs --json"):
        run(PLAN, None, resume=True)


@pytest.mark.parametrize(("change", "says"), [({"seed": 7}, "seed=0"), ({"scale": 0.5}, "scale=None")])
def test_other_settings_are_not_mixed(tmp_path, change, says: str) -> None:
    file = tmp_path / "run.json"
    run(PLAN, file)
    with pytest.raises(ValueError, match=says):
        run(replace(PLAN, **change), file, resume=True)


def test_other_hardware_is_not_mixed(tmp_path) -> None:
    file = tmp_path / "run.json"
    document = run(PLAN, file)
    document["environment"]["hardware"]["name"] = "a faster one"
    save(file, document)
    with pytest.raises(ValueError, match="name='a faster one'"):
        run(PLAN, file, resume=True)


def test_progress_counts_rows() -> None:
    shown = io.StringIO()
    run_plan(PLAN, progress=shown)
    assert "bench rows 6/6" in shown.getvalue()
