"""How many tokens, how much memory, how long: answered before a run, from shapes alone.

:func:`plan` takes a published model and a grid and runs the model on ``meta``; :func:`count`, :func:`peak_bytes` and
:func:`saved_bytes` do so with any module. The closed formulas are for sizes that no file has. ``tubelet info`` prints
what :func:`survey` and :func:`plan` find. MACs are multiply-accumulates; FLOPs are twice as many; memory is in bytes.
"""

from tubelet.planner.counting import Counts, Part, count, count_parameters
from tubelet.planner.estimate import Memory, ModelPlan, plan, survey
from tubelet.planner.formulas import forward_flops, layer_parameters, sampling_flops, training_flops
from tubelet.planner.inputs import forward_inputs
from tubelet.planner.memory import (
    activation_bytes,
    inference_bytes,
    peak_bytes,
    saved_bytes,
    training_state_bytes,
    weight_bytes,
)
from tubelet.planner.presets import Preset, find_preset, preset_of, presets
from tubelet.planner.rates import ACCELERATORS, Accelerator, devices_for, equivalent, hours, mfu
from tubelet.planner.tokens import keys_per_token, token_grid

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Counts",
    "Memory",
    "ModelPlan",
    "Part",
    "Preset",
    "activation_bytes",
    "count",
    "count_parameters",
    "devices_for",
    "equivalent",
    "find_preset",
    "forward_flops",
    "forward_inputs",
    "hours",
    "inference_bytes",
    "keys_per_token",
    "layer_parameters",
    "mfu",
    "peak_bytes",
    "plan",
    "preset_of",
    "presets",
    "sampling_flops",
    "saved_bytes",
    "survey",
    "token_grid",
    "training_flops",
    "training_state_bytes",
    "weight_bytes",
]
