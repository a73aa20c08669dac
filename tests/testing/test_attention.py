"""The kit's checks of patterns and backends: what conforms passes, what does not is named."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tubelet.attention import Joint, backends
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.layout import TokenInfo
from tubelet.protocols import Answer, AttentionRequest
from tubelet.testing import check_backend, check_pattern


@dataclasses.dataclass(frozen=True)
class Rule:
    """A pattern from a function."""

    kind: str

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        same_frame = q.coords[..., 0] == k.coords[..., 0]
        if self.kind == "frames, one per head":
            return torch.where(head == 0, same_frame, torch.ones_like(same_frame))
        if self.kind == "strict past":
            return k.coords[..., 0] < q.coords[..., 0]
        if self.kind == "numbers of samples":
            return same_frame | (k.sample == 0)
        return same_frame.float()


@pytest.mark.parametrize("pattern", [Joint(), Rule("frames, one per head")])
def test_good_patterns_pass(pattern: object) -> None:
    check_pattern(pattern)


@pytest.mark.graph  # the runtime type checker would refuse the floats first
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("strict past", "does not attend itself"),
        ("numbers of samples", "attends otherwise than alone"),
        ("floats", "torch.bool|and_"),
    ],
)
def test_bad_patterns_are_named(kind: str, message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError), match=message):
        check_pattern(Rule(kind))


@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_our_backends_pass(name: str) -> None:
    check_backend(backends()[name])


def test_a_pattern_of_ones_own_is_checked_against_the_definition() -> None:
    check_backend(ReferenceBackend(), Rule("frames, one per head"), dtype=torch.bfloat16)


class Broken(ReferenceBackend):
    """A backend with one fault."""

    name = "broken"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def supports(self, request: AttentionRequest) -> Answer:
        return Answer("never") if self.fault == "refuses" else Answer()

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        if self.fault == "scale":
            request = dataclasses.replace(request, scale=request.scale * 1.001)
        if self.fault == "heads" and request.groups > 1:
            order = torch.arange(k.shape[-2]).flip(0)
            k, v = k[..., order, :], v[..., order, :]
        out = super().run(q, k, v, request)
        if self.fault == "gradient":
            return out.detach() + 0 * (q.sum() + k.sum() + v.sum())
        if self.fault == "padding" and request.index is not None:
            return torch.where(request.index.valid[..., None, None], out, 1)
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
    ],
)
def test_bad_backends_are_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(Broken(fault))
