"""What arguments of losses may not be: each is named, with both values, before any number comes of it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tubelet.metrics import LPIPS
from tubelet.vae.objectives import (
    R1,
    Adversary,
    LeCam,
    LossPhase,
    LossSchedule,
    Objective,
    PatchDiscriminator,
    adaptive_weight,
    draw_frames,
    draw_window,
    perceptual_loss,
    r1_penalty,
    take_frames,
)

pytestmark = pytest.mark.graph  # run-time shape checks off, as for users
VIDEO = torch.zeros(2, 3, 5, 12, 12)


def judge(**made: Any) -> PatchDiscriminator:
    return PatchDiscriminator(3, 2, 1, norm=nn.InstanceNorm3d, **made)


def term(made: Any, generator: Any) -> torch.Tensor:
    return made.decoded.mean()


NUMBERS: dict[str, tuple[Callable[[], Any], str]] = {
    "r1 below 0": (lambda: R1(-1.0), "weight must be a finite number of at least 0, got -1.0"),
    "r1 of nan": (lambda: R1(math.nan), "weight .* got nan"),
    "lecam of inf": (lambda: LeCam(math.inf), "weight .* got inf"),
    "lecam that never moves": (lambda: LeCam(1.0, decay=1.0), r"decay must be a finite number in \[0, 1\), got 1.0"),
    "lecam that runs away": (lambda: LeCam(1.0, decay=-0.5), "decay .* got -0.5"),
    "balance without bound": (lambda: adaptive_weight([VIDEO], [VIDEO], most=math.nan), "most .* 0, got nan"),
    "balance of eps": (lambda: adaptive_weight([VIDEO], [VIDEO], eps=-1e-4), "eps .* got -0.0001"),
    "balance of nothing": (lambda: adaptive_weight([], []), "got 0 gradients of reconstruction and 0 adversarial"),
    "no channels": (lambda: PatchDiscriminator(0), "in_channels must be a whole number of at least 1, got 0"),
    "no width": (lambda: PatchDiscriminator(3, -4), "base_channels .* got -4"),
    "half a layer": (lambda: PatchDiscriminator(3, 4, 1.5), "n_layers .* got 1.5"),
    "a flat kernel": (lambda: judge(kernel=(4, 4)), r"kernel must be three .* of at least 1, got \(4, 4\)"),
    "no kernel": (lambda: judge(kernel=(0, 4, 4)), r"kernel .* got \(0, 4, 4\)"),
    "padding below 0": (lambda: judge(padding=(0, -1, 1)), r"padding .* of at least 0, got \(0, -1, 1\)"),
    "half a frame": (lambda: draw_window(1.5, 2, 3), "count must be a whole number of at least 1, got 1.5"),
    "frames of none": (lambda: draw_frames(1, 2, 0), "frames must be a whole number of at least 1, got 0"),
    "half a step": (lambda: LossPhase(1.5, {}), "start must be a whole number of at least 0, got 1.5"),
    "a weight as text": (lambda: LossPhase(0, {"l1": "1"}), "the weight of l1 must be a finite number .* got '1'"),
    "frozen numbers": (lambda: LossPhase(0, {}, frozen=(1,)), r"frozen must be a sequence of names .* got \(1,\)"),
    "one phase": (lambda: LossSchedule(LossPhase(0, {})), "phases must be a sequence of LossPhase, got LossPhase"),
}
NAMES: dict[str, tuple[Callable[[], Any], str]] = {
    "a penalty with a dot": (lambda: Adversary(judge(), penalties={"a.b": R1(1.0)}), "without a dot, got 'a.b'"),
    "a penalty named real": (lambda: Adversary(judge(), penalties={"real": R1(1.0)}), "the name 'real'"),
    "an adversary with a dot": (lambda: Objective({"l1": term}, {"a.b": Adversary(judge())}), "adversaries .* 'a.b'"),
    "an adversary named keys": (lambda: Objective({"l1": term}, {"keys": Adversary(judge())}), "the name 'keys'"),
    "a term as reported": (lambda: Objective({"frames.balance": term}), "terms .* got 'frames.balance'"),
    "a term named loss": (lambda: Objective({"loss": term}), "terms cannot have the name 'loss'"),
    "no term": (lambda: Objective({}), "terms must have at least one"),
    "a bare discriminator": (lambda: Objective({"l1": term}, {"frames": judge()}), "'frames': 'PatchDiscriminator'"),
    "the name of a layer": (lambda: Objective({"l1": term}, balance_at=("a.b",)), r"balance_at .* got \('a.b',\)"),
    "one weight": (
        lambda: Objective({"l1": term}, balance_at=VIDEO),
        "a sequence of Tensor, got Tensor",
    ),
}
SHAPES: dict[str, tuple[Callable[[], Any], str]] = {
    "an image": (lambda: judge()(VIDEO[:, :, 0]), r"video must be \(b, c, t, h, w\), got shape \(2, 3, 12, 12\)"),
    "channels": (lambda: judge()(VIDEO[:, :1]), "video must have 3 channels, not 1"),
    "no frame": (lambda: judge()(VIDEO[:, :, :0]), "at least one frame, not 0"),
    "a clip too short": (
        lambda: judge(kernel=(3, 4, 4), padding=(0, 1, 1))(VIDEO),
        r"\(11, 6, 6\), got \(5, 12",
    ),
    "no sample": (lambda: r1_penalty(judge(), VIDEO[:0]), r"real must be a batch .* of shape \(0, 3, 5, 12, 12\)"),
    "bytes": (
        lambda: r1_penalty(judge(), VIDEO.byte()),
        "real must be a batch of floating-point videos, got torch.uint8",
    ),
    "one score": (lambda: r1_penalty(lambda x: x.mean(), VIDEO), r"scores \(\) of videos of shape \(2,"),
    "dead scores": (lambda: r1_penalty(lambda x: torch.ones(2), VIDEO), r"scores with gradients .* \(2,\)"),
    "two videos": (lambda: Adversary(judge()).judging(VIDEO, VIDEO[:1]), r"decoded has shape \(1, .* video has \(2, "),
    "two lengths": (
        lambda: Adversary(judge(), draw=partial(draw_window, 2)).judging(VIDEO, VIDEO[:, :, :3]),
        r"decoded has shape \(2, 3, 3, 12, 12\), but video has \(2, 3, 5, 12, 12\)",
    ),
    "frames of an image": (
        lambda: take_frames(VIDEO[0], torch.zeros(3, 1).long()),
        r"video must be .* \(3, 5, 12, 12\)",
    ),
    "one row for all": (lambda: take_frames(VIDEO, torch.tensor([[0, 1]])), r"each of 2 clips, .* \(1, 2\)"),
    "parts of frames": (lambda: take_frames(VIDEO, torch.zeros(2, 1)), "whole numbers .* torch.float32"),
    "a frame behind": (lambda: take_frames(VIDEO, torch.tensor([[0], [5]])), r"from 0 to 4, got \[\[0\], \[5\]\]"),
    "a frame before": (lambda: take_frames(VIDEO, torch.tensor([[0], [-1]])), r"from 0 to 4, got \[\[0\], \[-1\]\]"),
    "distance of images": (lambda: perceptual_loss(term, VIDEO[0], VIDEO[0]), r"video must be .* \(3, 5, 12, 12\)"),
    "two channels": (
        lambda: perceptual_loss(LPIPS((1,) * 5), VIDEO[:, :2], VIDEO[:, :2]),
        r"one shape \(b, 3, t, h, w\), got \(2, 2, 5, 12, 12\)",
    ),
}
ALL = NUMBERS | NAMES | SHAPES


@pytest.mark.parametrize("case", ALL)
def test_what_cannot_be_is_named(case: str) -> None:
    make, message = ALL[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_an_adversary_is_balanced_at_weights_that_learn() -> None:
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    objective = Objective({"l1": term}, {"frames": Adversary(judge())}, balance_at=(weight,))
    objective.check({"l1": 1.0, "frames": 0.0})
    with pytest.raises(ValueError, match=r"for \['frames'\], has weights without gradients, of shapes \[\(3,\)\]"):
        objective.check({"l1": 1.0, "frames": 0.5})
