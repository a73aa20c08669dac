"""The kit's check of backends: what conforms passes, what does not is named."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tubelet.attention import Joint, Window, backends
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.protocols import Answer, AttentionRequest, Pattern
from tubelet.testing import check_backend, matrix_patterns


@pytest.mark.parametrize("name", [name for name in backends() if name != "flex"])  # which is compiled, and slow: below
@pytest.mark.parametrize("pattern", ["Joint", "FrameCausal, sink", "HeadSplit"])
def test_our_backends_pass(name: str, pattern: str) -> None:
    assert_passes(name, matrix_patterns()[pattern], torch.float32)


@pytest.mark.slow
@pytest.mark.graph  # flex is compiled
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in backends()
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        if name != "flex" or dtype == torch.float32  # each shape and dtype of it is compiled
    ],
)
@pytest.mark.parametrize("pattern", matrix_patterns())
def test_our_backends_pass_with_every_pattern(name: str, pattern: str, dtype: torch.dtype) -> None:
    """Packed equals separate, and samples never meet, in every dtype."""
    assert_passes(name, matrix_patterns()[pattern], dtype)


def assert_passes(name: str, pattern: Pattern, dtype: torch.dtype) -> None:
    """The check passes; or it finds nothing that it could have run, and the backend is not one that serves it all."""
    try:
        check_backend(backends()[name], pattern, dtype=dtype)
    except AssertionError as error:
        if name in ("sdpa", "reference") or "supports none" not in str(error):
            raise


@pytest.mark.graph
@pytest.mark.parametrize("pattern", [Joint(), Window((2, 2, 2))], ids=str)
@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_our_backends_pass_compiled(name: str, pattern: Pattern) -> None:
    check_backend(backends()[name], pattern, compiled=True)


def test_a_pattern_of_ones_own_is_checked_against_the_definition() -> None:
    check_backend(ReferenceBackend(), matrix_patterns()["user's predicate"], dtype=torch.bfloat16)


class Broken(ReferenceBackend):
    """A backend with one fault."""

    name = "broken"

    def __init__(self, fault: str) -> None:
        self.fault, self.calls, self.runs = fault, 0, 0

    def supports(self, request: AttentionRequest) -> Answer:
        self.calls += 1
        if self.fault == "moods" and self.calls % 2:
            return Answer("not today")
        return Answer("never") if self.fault == "refuses" else Answer()

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        self.runs += 1
        if self.fault == "scale":
            request = dataclasses.replace(request, scale=request.scale * 1.001)
        if self.fault == "heads" and request.groups > 1:
            order = torch.arange(k.shape[-2]).flip(0)
            k, v = k[..., order, :], v[..., order, :]
        if self.fault == "spills" and q.ndim == 3 and request.kv_index is None and not q.is_meta:
            q = q + 1e-9 * q.detach().sum()
        if self.fault == "alone" and request.index is not None and request.index.samples == 1:
            v = 1.001 * v
        out = super().run(q, k, v, request)
        if self.fault == "gradient":
            return out.detach() + 0 * (q.sum() + k.sum() + v.sum())
        if self.fault == "padding" and request.index is not None:
            return torch.where(request.index.valid[..., None, None], out, 1)
        if self.fault == "meta" and q.is_meta:
            return out.double()
        if self.fault == "compiled" and torch.compiler.is_compiling():
            return 1.001 * out
        if self.fault == "many graphs" and torch.compiler.is_compiling():
            return out + 0 * request.index.samples
        return out.double() if self.fault == "dtype" else out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("scale", "the output differs"),
        ("heads", "4:2 heads: the output differs"),
        ("gradient", "the gradient of q differs"),
        ("padding", "the output differs|padding does not give 0"),
        ("dtype", "the output is torch.float64, not torch.float32"),
        ("refuses", "supports none"),
        ("moods", "says 'not today', then ''"),
        ("spills", "layout 'packed', 2:2 heads: other numbers in sample 2 change the output of other samples"),
        ("alone", "sample 0 packed and alone differs"),
        ("meta", "meta tensors gave .*torch.float64.*, not"),
    ],
)
def test_bad_backends_are_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(Broken(fault))


@pytest.mark.graph
@pytest.mark.parametrize(
    ("fault", "message"),
    [("compiled", r"compiled, grids .* the output differs"), ("many graphs", "graphs for 3 layouts of one capacity")],
)
def test_backends_that_compile_badly_are_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(Broken(fault), compiled=True)


def test_what_a_backend_refuses_is_not_run() -> None:
    broken = Broken("refuses")
    with pytest.raises(AssertionError, match="supports none"):
        check_backend(broken)
    assert broken.calls and not broken.runs


class Inference(ReferenceBackend):
    """A backend without a backward, and with one fault."""

    name = "inference"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def supports(self, request: AttentionRequest) -> Answer:
        return Answer("no backward" if getattr(request, "grad", False) else "")

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        if self.fault == "alone" and request.index is not None and request.index.samples == 1:
            v = 1.001 * v
        return super().run(q, k, 1.001 * v if self.fault == "output" else v, request)


@pytest.mark.skipif(
    "grad" not in AttentionRequest.__dataclass_fields__, reason="requests do not say whether gradients are asked for"
)
def test_a_backend_without_a_backward_is_checked_without() -> None:
    check_backend(Inference("none"))
    for fault, message in (("output", "the output differs"), ("alone", "sample 0 packed and alone differs")):
        with pytest.raises(AssertionError, match=message):
            check_backend(Inference(fault))
