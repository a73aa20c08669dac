"""What the dispatcher costs: ``attend`` against the bare loop on a pack of so few tokens that kernels take no time.

Both make the same calls of the kernel and give the same result; the difference of their times, over the calls, is the
overhead of checks, dispatch, the look-up of the plan and its views. A model pays it once per attention. Times are the
process's own (``time.process_time``), in which neighbours on a busy machine do not count.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import Case
from tubelet import TokenLayout, attend

__all__ = ["CALLS", "cases"]

CALLS = 200
"""Calls in one timed sample."""
LENGTHS = {"8 unequal segments": [2, 3, 4, 5, 6, 7, 8, 9], "8 equal segments": [4] * 8, "1 segment": [16]}


def cases(device: str) -> Iterator[list[Case]]:
    """One group for each pack; the loop comes first, so that ``× first`` and the difference read as overhead."""
    torch.manual_seed(0)
    for title, lengths in LENGTHS.items():
        index = TokenLayout.packed([None] * len(lengths), lengths).on(device)
        q, k, v = torch.randn(3, sum(lengths), 12, 64, device=device).unbind(0)
        exact = _loop(lengths, q.double(), k.double(), v.double())
        calls = {"loop": partial(_loop, lengths), "attend": partial(attend, layout=index)}
        about = f"overhead: {CALLS} calls, {title}, 12 heads of 64, float32"
        yield [
            Case(about, name, partial(_many, call, q, k, v), exact, sum(lengths) * CALLS, 1e-5)
            for name, call in calls.items()
        ]


def _many(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        for _ in range(CALLS):
            out = call(q, k, v)
    return out


def _loop(lengths: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each run of equal segments as one batch, as a careful user would write it."""
    out, start = torch.empty_like(v), 0
    batches = [lengths] if len(set(lengths)) == 1 else [[n] for n in lengths]
    for batch in batches:
        rows, n = len(batch), batch[0]
        cut = slice(start, start + rows * n)
        parts = (x[cut].unflatten(0, (rows, n)).transpose(1, 2) for x in (q, k, v))
        out[cut].unflatten(0, (rows, n)).copy_(F.scaled_dot_product_attention(*parts).transpose(1, 2))
        start += rows * n
    return out
