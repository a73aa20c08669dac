"""The readable definition: its mask and its softmax."""

import torch

from tubelet.attention import Joint, attend
from tubelet.attention.backends.reference import ReferenceBackend, mask_of
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest


def request(q_layout: TokenLayout | None, kv_layout: TokenLayout | None, shape: tuple[int, ...]) -> AttentionRequest:
    index, kv_index = (None if x is None else x.on("cpu") for x in (q_layout, kv_layout))
    kv_shape = shape if kv_layout is None else (*kv_layout.shape, 1, 4)
    return AttentionRequest(Joint(), index, kv_index, shape, kv_shape, torch.float32, "cpu", 1.0, None)


def test_mask_of_samples_and_padding() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 1), Grid(1, 1, 2)], [1, 0], capacity=6)
    owners = [0, 0, 1, 1, None, None]
    expected = [[a is not None and a == b for b in owners] for a in owners]
    assert mask_of(request(layout, None, (6, 1, 4))).tolist() == [expected]


def test_mask_between_rows_and_packed_keys() -> None:
    rows, packed = TokenLayout.padded([2, 1], 2), TokenLayout.packed([None, None], [1, 2])
    expected = [[True, False, False], [True, False, False], [False, True, True], [False, False, False]]
    assert mask_of(request(rows, packed, (2, 2, 1, 4))).tolist() == [expected]


def test_mask_without_a_layout_is_full() -> None:
    assert mask_of(request(None, None, (2, 3, 2, 4))).tolist() == [[[[True] * 3] * 3] * 2] * 2


def test_everything_is_supported() -> None:
    assert ReferenceBackend().supports(request(None, None, (2, 3, 2, 4)))


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((2, 1, 4), 1e4)
    k = torch.stack([q[0], -q[0]])
    v = torch.tensor([[[1.0]], [[5.0]]])
    assert attend(q, k, v, backend="reference", scale=10.0).flatten().tolist() == [1.0, 1.0]
