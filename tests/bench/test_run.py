"""Rows: what passes the gate has a time and an error, what does not has a reason and neither time nor memory."""

import io
from dataclasses import dataclass

import pytest
import torch

from tubelet import attention
from tubelet.attention import Joint
from tubelet.bench import Plan, available, backend, parse_shape, problems, run_plan
from tubelet.bench.problems import Refused, make_problem, make_way
from tubelet.bench.run import measure
from tubelet.protocols import Answer

TIMED = ("seconds", "calls", "median_ms", "low_ms", "high_ms", "peak_bytes")


@dataclass
class Own:
    """A pattern that is no hashable value."""

    modulus: int = 2

    def attends(self, q, k, head):
        return (q.coords * k.coords).sum(-1) % self.modulus == 0


def reference(q, k, v, request):
    return attention.backends()["reference"].run(q, k, v, request)


def rows(*backends: str, **changes) -> list[dict]:
    values = {"shapes": ("2x3x3/2x8",), "patterns": ("joint",), "rounds": 3, "budget": 2.0, **changes}
    return [row for group in measure(Plan(backends=backends, **values)) for row in group]


def test_right_rows_have_everything(small) -> None:
    assert [row["status"] for row in small["rows"]] == ["ok"] * 8
    for row in small["rows"]:
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert len(row["seconds"]) >= 3
        assert row["peak_bytes"] >= row["tokens"] * row["heads"] * row["head_dim"] * 4
        parts = {"out", "row"} if row["direction"] == "forward" else {"out", "row", "dq", "dk", "dv"}
        assert set(row["errors"]) == parts
        assert 0 < max(row["errors"].values()) < 4e-6


def test_pairs_operations_and_bytes_of_a_row(small) -> None:
    dense, packed = small["rows"][0], small["rows"][4]
    assert dense["pairs"] == 2 * 20 * 20
    assert packed["pairs"] == 2 * (16 + 16 + 144)
    assert dense["flops"] == 4 * 8 * dense["pairs"]
    assert small["rows"][2]["flops"] == 3.5 * dense["flops"]
    assert dense["bytes"] == 4 * 20 * 2 * 8 * 4
    assert dense["density"] == packed["density"] == 1.0


def test_auto_goes_through_the_dispatcher() -> None:
    auto, named = rows("auto", "sdpa")
    assert auto["status"] == "ok"
    assert auto["errors"] == named["errors"]


def wrong_value(q, k, v, request):
    return reference(q, k, v, request) * 1.001


def not_finite(q, k, v, request):
    return reference(q, k, v, request) * float("nan")


def wrong_shape(q, k, v, request):
    return reference(q, k, v, request)[..., :-1]


def wrong_dtype(q, k, v, request):
    return reference(q, k, v, request).double()


def raises(q, k, v, request):
    raise RuntimeError("no\nroom")


@pytest.mark.parametrize(
    ("function", "status", "says"),
    [
        (wrong_value, "wrong", "out has a relative error of 1.0e-03, above 1e-05"),
        (not_finite, "wrong", "relative error of nan"),
        (wrong_shape, "wrong", "of shape (1, 18, 2, 7), not torch.float32 of (1, 18, 2, 8)"),
        (wrong_dtype, "wrong", "out is torch.float64"),
        (raises, "failed", "RuntimeError: no room"),
    ],
)
def test_what_fails_has_no_time(function, status: str, says: str) -> None:
    backend("theirs")(function)
    bad, good = rows("theirs", "sdpa")
    assert bad["status"] == status
    assert says in bad["reason"]
    assert all(bad[name] is None for name in TIMED)
    assert good["status"] == "ok"


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, part):
        ctx.part = part
        return out.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001, None


@pytest.mark.parametrize("check_rows", [5, 100])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_wrong_gradient_of_either_input_is_seen(part: int, check_rows: int) -> None:
    @backend("theirs")
    def theirs(q, k, v, request):
        qkv = [WrongBackward.apply(x, i) if i == part else x for i, x in enumerate((q, k, v))]
        return reference(*qkv, request)

    forward, both = rows("theirs", directions=("forward", "forward+backward"), check_rows=check_rows)
    assert forward["status"] == "ok"
    assert both["status"] == "wrong"
    assert f"d{'qkv'[part]} has a relative error" in both["reason"]


def test_a_result_that_changes_while_it_is_timed_is_wrong() -> None:
    calls = iter(range(1000))

    @backend("tired")
    def tired(q, k, v, request):
        return reference(q, k, v, request) * (1.0 if next(calls) < 5 else 0.0)

    [row] = rows("tired")
    assert (row["status"], row["median_ms"], row["seconds"]) == ("wrong", None, None)


def test_a_last_row_that_is_wrong_is_always_checked() -> None:
    @backend("off-by-one")
    def theirs(q, k, v, request):
        out = reference(q, k, v, request)
        out[:, -1] = 0
        return out

    [row] = rows("off-by-one", shapes=("4x20x20/1x8",), check_rows=4)
    assert row["status"] == "wrong"
    assert row["checked_rows"] == 4


def test_one_broken_row_is_wrong_however_many_are_right() -> None:
    @backend("hidden")
    def hidden(q, k, v, request):
        out = reference(q, k, v, request)
        out[:, 100, 1] *= 1.3
        return out

    [row] = rows("hidden", shapes=("8x8x16/2x8",), dtypes=("bfloat16",), check_rows=2000)
    assert row["errors"]["out"] < 2e-2
    assert "a row of out has a relative error" in row["reason"]
    assert (row["status"], row["seconds"]) == ("wrong", None)


def test_the_definition_is_not_run_where_its_scores_do_not_fit(monkeypatch) -> None:
    monkeypatch.setattr(problems, "_free_memory", lambda device: 1 << 30)
    [row] = rows("reference", shapes=("8x40x40/1x8",), check_rows=2)
    assert row["status"] == "skipped"
    assert "GiB" in row["reason"]


def test_a_refusal_carries_the_backend_s_reason() -> None:
    backend("never", lambda request: Answer("it is a test"))(reference)
    problem = make_problem(parse_shape("1x2x2/1x8"), Joint(), torch.float32, torch.device("cpu"))
    with pytest.raises(Refused, match="it is a test") as refused:
        make_way(problem, available()["never"], backward=False, graph=False)
    assert refused.value.status == "unsupported"


def test_what_attend_refuses_is_unsupported_with_its_reason() -> None:
    problem = make_problem(parse_shape("1x2x2/1x8"), Own(), torch.float32, torch.device("cpu"))
    with pytest.raises(Refused) as refused:
        make_way(problem, available()["sdpa"], backward=False, graph=False)
    assert refused.value.status == "unsupported"
    assert str(refused.value).startswith("a pattern must be a hashable value")
    assert make_way(problem, available()["auto"], backward=False, graph=False).errors["out"] < 1e-6


def test_the_same_seed_gives_the_same_inputs() -> None:
    shape = parse_shape("1x2x2/1x8")
    a, b, c = (make_problem(shape, Joint(), torch.float32, torch.device("cpu"), seed=s).qkv[0] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype: str) -> None:
    found = rows("sdpa", "reference", dtypes=(dtype,), directions=("forward+backward",))
    assert [row["status"] for row in found] == ["ok", "ok"]
    assert found[0]["bytes"] == 12 * 18 * 2 * 8 * (8 if dtype == "float64" else 2)


def test_a_cold_cache_is_flushed_before_every_sample() -> None:
    [cold] = rows("sdpa", caches=("cold",))
    assert (cold["status"], cold["calls"], cold["cache"]) == ("ok", 1, "cold")


def test_short_calls_share_a_span_where_the_cache_is_warm() -> None:
    [row] = measure(Plan(shapes=("1x2x2/1x8",), patterns=("joint",), backends=("sdpa",), rounds=3),
                    watch=lambda call: (call(), 0.0005)[1])  # fmt: skip
    assert row[0]["calls"] == 4
    assert row[0]["seconds"] == [0.0005 / 4] * 3


def test_batches_of_rows() -> None:
    one, two = rows("sdpa", batches=(1, 2))
    assert (one["tokens"], two["tokens"], two["batch"]) == (18, 36, 2)
    assert two["pairs"] == 2 * one["pairs"]


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_gpu_runs_every_mode(direction) -> None:
    plan = Plan(
        shapes=("4x8x8/4x64",),
        patterns=("joint",),
        backends=("sdpa", "auto"),
        dtypes=("bfloat16",),
        directions=(direction,),
        caches=("warm", "cold"),
        modes=("eager", "graph"),
        device="cuda",
        rounds=5,
    )
    document = run_plan(plan, progress=io.StringIO())
    assert [row["status"] for row in document["rows"]] == ["ok"] * 8
    assert document["ceilings"]["copy_gbps"] > 100
