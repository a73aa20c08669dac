"""Training: averages of weights, learning rates, data order, exact resume and one small loop.

Nothing here owns a model: each piece is a function or a small object beside a step that the user writes in full.

- :class:`EMA` averages weights, and :func:`posthoc_average` gives averages of other lengths afterwards;
  :func:`warmup_cosine`, :func:`warmup_linear_decay` and :func:`set_lr` set rates;
- :class:`MuonAdamW` is Muon for matrices and kernels inside blocks and AdamW for everything else;
- :func:`step_generator`, :func:`batch_indices` and :func:`interleave` make data, their mix and noise pure functions of
  ``(seed, step)``, so that a resumed run needs no loader state;
- :func:`save_checkpoint`, :func:`load_checkpoint` and :class:`Checkpoint` keep a run in one atomic safetensors file;
- :func:`fit` calls the step, shows progress, saves every so often and when Ctrl-C is pressed.
"""

from tubelet.training.checkpoint import Checkpoint, Stateful, load_checkpoint, save_checkpoint
from tubelet.training.ema import EMA
from tubelet.training.loop import History, Interrupted, fit
from tubelet.training.muon import MuonAdamW
from tubelet.training.order import batch_indices, interleave, step_generator
from tubelet.training.posthoc import (
    posthoc_average,
    posthoc_weights,
    power_decay,
    power_exponent,
    power_width,
)
from tubelet.training.progress import Progress
from tubelet.training.random import restore_rng_state, rng_state
from tubelet.training.schedules import set_lr, warmup_cosine, warmup_linear_decay

__all__ = [
    "EMA",
    "Checkpoint",
    "History",
    "Interrupted",
    "MuonAdamW",
    "Progress",
    "Stateful",
    "batch_indices",
    "fit",
    "interleave",
    "load_checkpoint",
    "posthoc_average",
    "posthoc_weights",
    "power_decay",
    "power_exponent",
    "power_width",
    "restore_rng_state",
    "rng_state",
    "save_checkpoint",
    "set_lr",
    "step_generator",
    "warmup_cosine",
    "warmup_linear_decay",
]
