"""What papers and announcements say of tokens, parameters, operations, memory and time, by the public functions."""

import math

import pytest

from tubelet import planner
from tubelet.attention import HeadSplit, Joint, Spatial, Temporal, Window
from tubelet.layout import Grid
from tubelet.planner import (
    ACCELERATORS,
    devices_for,
    equivalent,
    forward_flops,
    hours,
    inference_bytes,
    keys_per_token,
    layer_parameters,
    plan,
    sampling_flops,
    token_grid,
    training_flops,
    training_state_bytes,
    weight_bytes,
)

PIXELS = {"temporal": 1, "causal": False}
"""Frames are not compressed."""


def test_a_minute_of_video_is_460_800_tokens() -> None:
    assert token_grid(60 * 30, 256, 256, **PIXELS).tokens == 60 * 30 * 256 == 460_800


def test_34_billion_parameters() -> None:
    parameters = 48 * layer_parameters(7680)
    assert parameters == pytest.approx(34e9, rel=1e-3)
    assert weight_bytes(parameters) == pytest.approx(68e9, rel=1e-3)
    assert training_state_bytes(parameters) == pytest.approx(544e9, rel=1e-3)
    assert devices_for(training_state_bytes(parameters)) == 7
    assert devices_for(inference_bytes(parameters, 460_800, 7680)) == 2


def test_sampling_a_minute_takes_76_7_hours() -> None:
    forward = forward_flops(460_800, 7680, 48)
    attention = forward - forward_flops(460_800, 7680, 48, keys=0)
    assert forward == pytest.approx(3.44e17, rel=2e-3)
    assert attention / forward == pytest.approx(0.91, abs=5e-3)
    guided = sampling_flops(forward, 50)
    assert guided == pytest.approx(3.44e19, rel=2e-3)
    assert guided == 2 * sampling_flops(forward, 50, guided=False)
    assert hours(guided, "a100", mfu=0.4) == pytest.approx(76.7, abs=0.05)


def test_256_cores_are_50_gpus_and_not_5500() -> None:
    chips = 256 // 2
    assert chips * ACCELERATORS["tpu-v3"].bfloat16 == pytest.approx(15.74e15, rel=1e-3)
    assert equivalent(chips, "tpu-v3", "a100") == pytest.approx(50.5, abs=0.05)
    float32 = ACCELERATORS["a100"].float32
    assert float32 is not None
    assert 256 * 420e12 / float32 == pytest.approx(5500, rel=5e-3)  # a board's bfloat16 over a GPU's float32


def test_dit_xl_at_512_pixels_trained_for_5381_hours() -> None:
    samples = 3_000_000 * 256
    assert training_flops(2 * 524.6055e9) * samples == pytest.approx(2.417e21, rel=5e-4)
    assert hours(training_flops(2 * 524.6055e9) * samples) == pytest.approx(5381, abs=1)
    assert plan("dit_xl", Grid(1, 32, 32)).training_hours(samples) == pytest.approx(5381, rel=5e-4)


STEP_VIDEO = {
    (204, 256, 256): 1717.20, (204, 192, 320): 1592.61, (136, 256, 256): 1079.85, (136, 192, 320): 1004.89,
    (68, 256, 256): 509.31, (68, 192, 320): 475.87, (1, 256, 256): 44.99,
}  # fmt: skip


@pytest.mark.parametrize("size", STEP_VIDEO)
def test_step_videos_table(size: tuple[int, int, int]) -> None:
    tokens = token_grid(*size, temporal=8, spatial=16, patch=(1, 1, 1), chunk=17).tokens
    flops = training_flops(forward_flops(tokens, 6144, 48, context=256))
    misprint = 0.01 * (size == (136, 256, 256))  # 1079.8579 is printed as 1079.85
    assert f"{flops / 1e12 - misprint:.2f}" == f"{STEP_VIDEO[size]:.2f}"


@pytest.mark.parametrize(
    ("size", "how", "tokens"),
    [
        ((33, 256, 256), {}, 2304),
        ((129, 256, 256), {}, 8448),
        ((129, 768, 768), {}, 76_032),
        ((129, 720, 1280), {}, 118_800),
        ((81, 480, 832), {}, 32_760),
        ((81, 720, 1280), {}, 75_600),
        ((256, 768, 768), {"temporal": 8, "causal": False}, 73_728),
        ((121, 512, 768), {"temporal": 8, "spatial": 32, "patch": (1, 1, 1)}, 6_144),
    ],
)
def test_tables_of_tokens(size, how, tokens: int) -> None:
    assert token_grid(*size, **how).tokens == tokens


def test_hunyuan_video() -> None:
    grid = token_grid(129, 720, 1280)
    assert forward_flops(grid.tokens, 3072, 20 + 40) == pytest.approx(1.20e16, rel=5e-3)
    double, single = 2 * layer_parameters(3072, modulation=6), layer_parameters(3072, modulation=3)
    assert 20 * double + 40 * single == pytest.approx(12.46e9, rel=5e-4)
    assert 60 * layer_parameters(3072) == pytest.approx(6.79e9, rel=1e-3)


def test_hunyuan_video_as_it_is_built() -> None:
    found = plan("hunyuan_video", token_grid(129, 720, 1280))
    blocks = found.counts["blocks"]
    assert blocks.parameters == pytest.approx(12.46e9, rel=5e-4)
    assert blocks.dense / (found.tokens + found.text) == pytest.approx(6.79e9, rel=2e-3)  # active in each token
    assert found.flops == pytest.approx(1.20e16, rel=0.01)  # 256 tokens of text are beside those of the video


@pytest.mark.parametrize(
    ("name", "depth", "dim", "hidden", "billions"),
    [("wan_14b", 40, 5120, 13824, 14.05), ("wan_1_3b", 30, 1536, 8960, 1.39)],
)
def test_wan(name: str, depth: int, dim: int, hidden: int, billions: float) -> None:
    matrices = depth * layer_parameters(dim, mlp_dim=hidden, attentions=2)
    assert matrices == pytest.approx(billions * 1e9, rel=2e-3)
    assert plan(name, Grid(1, 2, 2)).counts["blocks"].parameters == pytest.approx(matrices, rel=1e-3)


def test_movie_gen() -> None:
    matrices = 48 * layer_parameters(6144, mlp_dim=16384, mlp_matrices=3, attentions=2)
    assert matrices == pytest.approx(28.99e9, rel=5e-4)


GRID, NS, NT = Grid(16, 14, 14), 196, 16
FLOPS = {
    "joint": (Joint(), 1, lambda d: 24 * d**2 + 4 * d * NS * NT),
    "factorised self-attention": (None, 2, lambda d: 32 * d**2 + 4 * d * (NS + NT)),
    "factorised heads": (HeadSplit((Spatial(), Temporal()), (6, 6)), 1, lambda d: 24 * d**2 + 2 * d * (NS + NT)),
    "windows": (Window((4, 7, 7)), 1, lambda d: 24 * d**2 + 4 * d * 4 * 7 * 7),
}


@pytest.mark.parametrize("name", FLOPS)
def test_operations_of_a_token_in_a_layer(name: str) -> None:
    pattern, attentions, formula = FLOPS[name]
    parts = (Spatial(), Temporal()) if pattern is None else (pattern,)
    keys = sum(keys_per_token(part, GRID, heads=12) for part in parts)
    flops = forward_flops(GRID.tokens, 768, 12, keys=keys, attentions=attentions)
    assert flops == 12 * GRID.tokens * formula(768)


def test_cross_attention_reads_its_text_once() -> None:
    d, n, text = 64, 100, 7
    cross = forward_flops(n, d, 1, context=text, attentions=1) - forward_flops(n, d, 1)
    assert cross == n * (4 * d**2 + 4 * d * text) + text * 4 * d**2


def test_formula_and_model_agree() -> None:
    """The model has embeddings, modulation and a head beside the layers."""
    found = plan("wan_14b", Grid(21, 45, 80), text=512)
    formula = forward_flops(found.tokens, 5120, 40, mlp_dim=13824, context=512)
    assert found.counts["blocks"].macs * 2 == formula
    assert found.flops == pytest.approx(formula, rel=1e-4)


def test_recomputing_is_a_fourth_forward() -> None:
    assert training_flops(1.0, recompute=True) / training_flops(1.0) == pytest.approx(4 / 3)
    assert plan("dit_s").training_hours(1e6, recompute=True) == pytest.approx(4 / 3 * plan("dit_s").training_hours(1e6))


@pytest.mark.graph  # without the tests' own checks of shapes, which come first
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: token_grid(18, 256, 256), r"frames after the first must be a multiple of 4, got 17"),
        (lambda: token_grid(17, 250, 256), r"height must be a multiple of 16, got 250"),
        (lambda: token_grid(0, 256, 256), r"frames must be at least 1, got 0"),
        (lambda: token_grid(17, 256, 256, patch=(2, 2, 2)), r"latent frames must be a multiple of 2, got 5"),
        (lambda: sampling_flops(1.0, 0), r"steps must be at least 1, got 0"),
        (lambda: hours(1.0, "abacus"), r"'abacus'; there are a100, h100"),
        (lambda: hours(1.0, mfu=40), r"mfu must be a share in \(0, 1\], got 40"),
        (lambda: hours(1.0, devices=0), r"devices must be at least 1, got 0"),
        (lambda: planner.mfu(1.0, 0.0), r"seconds must be positive, got 0\.0"),
        (lambda: planner.mfu(1.0, 1.0, devices=0), "devices must be at least 1, got 0"),
        (lambda: planner.mfu(math.nan, 1.0), "flops must be at least 0, got nan"),
        (lambda: hours(-1.0), r"flops must be at least 0, got -1\.0"),
        (lambda: hours(math.nan), "flops must be at least 0, got nan"),
        (lambda: hours(math.inf), "flops must be finite, got inf"),
        (lambda: hours(1.0, devices=math.nan), "devices must be at least 1, got nan"),
        (lambda: planner.devices_for(-1), "nbytes must be at least 0, got -1"),
        (lambda: planner.devices_for(math.nan), "nbytes must be at least 0, got nan"),
        (lambda: planner.equivalent(-1, "a100"), "count must be at least 0, got -1"),
        (lambda: sampling_flops(-1.0, 10), r"forward must be at least 0, got -1\.0"),
        (lambda: sampling_flops(1.0, math.nan), "steps must be at least 1, got nan"),
        (lambda: training_flops(math.nan), "forward must be at least 0, got nan"),
        (lambda: planner.activation_bytes(-1, 2, 3), "tokens must be at least 0, got -1"),
        (lambda: planner.activation_bytes(1, 2, 3, per_number=math.nan), "per_number must be at least 0, got nan"),
        (lambda: planner.weight_bytes(-1), "parameters must be at least 0, got -1"),
        (lambda: planner.training_state_bytes(-1), "parameters must be at least 0, got -1"),
        (lambda: planner.inference_bytes(1, -1, 2), "tokens must be at least 0, got -1"),
        (lambda: planner.layer_parameters(-1), "dim must be at least 0, got -1"),
        (lambda: planner.layer_parameters(8, mlp_dim=-2), "mlp_dim must be at least 0, got -2"),
        (lambda: planner.layer_parameters(8, modulation=math.nan), "modulation must be at least 0, got nan"),
        (lambda: planner.forward_flops(-1, 8, 1), "tokens must be at least 0, got -1"),
        (lambda: planner.forward_flops(1, 8, 1, keys=math.nan), "keys must be at least 0, got nan"),
        (lambda: planner.keys_per_token(Joint(), Grid(1, 1, 2), heads=0), "heads must be at least 1, got 0"),
        (lambda: token_grid(17, 256, 256, patch=(1, 2)), r"patch must have three sides \(t, h, w\), got \(1, 2\)"),
    ],
)
def test_a_mistake_is_named(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_mfu_undoes_hours() -> None:
    seconds = 3600 * hours(1e18, "h100", mfu=0.37, devices=8)
    assert planner.mfu(1e18, seconds, "h100", devices=8) == pytest.approx(0.37)
