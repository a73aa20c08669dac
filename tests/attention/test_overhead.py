"""What a call costs beside its kernel: counted, not timed, so that a busy machine changes nothing."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tubelet.attention import Joint, Spatial, Temporal, attend
from tubelet.attention.places import Affine
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import Pattern

MOST = 80
"""Python functions of one call; at about a quarter of a microsecond each they are where the time goes."""

COUNT = """
import sys
import torch
from tubelet import TokenLayout, attend

index = TokenLayout.packed([None], [16]).on("cpu")
q, k, v = torch.randn(3, 16, 2, 8)
names = []
with torch.no_grad():
    attend(q, k, v, layout=index)
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_qualname) if event == "call" else None)
    attend(q, k, v, layout=index)
    sys.setprofile(None)
print("\\n".join(names))
"""


def test_a_call_runs_few_functions() -> None:
    """In another process, for here every function is wrapped by the checks of its annotations."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    names = ran.stdout.split()
    assert "attend" in names
    assert len(names) <= MOST, names


class Operations(TorchDispatchMode):
    """Writes down which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("pattern", "layout", "copies"),
    [
        (Joint(), TokenLayout.packed([Grid(1, 2, 2)] * 3), 0),
        (Spatial(), TokenLayout.packed([Grid(2, 2, 3)] * 2), 0),
        (Joint(), TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 2)]), 2),  # into the places of one output
        (Temporal(), TokenLayout.packed([Grid(2, 2, 3)]), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("grad", [False, True])
def test_equal_groups_in_order_are_not_copied(pattern: Pattern, layout: TokenLayout, copies: int, grad: bool) -> None:
    q, k, v = (torch.randn(*layout.shape, 2, 4, requires_grad=grad) for _ in range(3))
    index = layout.on("cpu")
    attend(q, k, v, pattern=pattern, layout=index)  # makes the plan
    with Operations() as seen:
        out = attend(q, k, v, pattern=pattern, layout=index)
    copied = [name for name in seen.names if name in ("copy_", "clone", "_to_copy", "index", "index_select", "cat")]
    assert len(copied) == copies * (2 if grad else 1)  # the log-sum-exp, too
    assert out.is_contiguous()


@pytest.mark.parametrize("length", [6, 300])
def test_short_groups_are_copied_token_by_token(length: int) -> None:
    """With all heads of a token together: long stretches, and a view of them head by head."""
    x = torch.randn(4 * length, 3, 2)
    places = Affine(1, (2, 2), (length, 2), (2, length // 2 - 2), (length // 2, 1))
    taken = places.take(x)
    assert torch.equal(taken, x[places.index()].transpose(1, 2))
    assert taken.transpose(1, 2).is_contiguous() is (places.length <= 256)


@given(
    start=st.sampled_from([0, 1]),
    axes=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 2, 3, 4, 6])), min_size=2, max_size=4),
    groups=st.integers(1, 3),
)
def test_places_in_order(start: int, axes: list[tuple[int, int]], groups: int) -> None:
    sizes, strides = zip(*axes, strict=True)
    groups = min(groups, len(axes) - 1)
    places = Affine(start, sizes[:groups], strides[:groups], sizes[groups:], strides[groups:])
    listed = places.index().flatten()
    assert places.in_order == torch.equal(listed, torch.arange(len(listed)))
