"""Mochi against diffusers with mapped weights, its size, and what diffusers cannot do against what it implies."""

from typing import Any

import mochis
import pytest
import torch
from diffusers import MochiTransformer3DModel
from mixtures import (
    LEVELS,
    Mixture,
    check_finer_levels,
    check_joint,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, randomise, size
from torch import Tensor, nn

from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.mochi import mochi_keys
from tubelet.layout import JointLayout, Rows, TokenLayout
from tubelet.models import MochiConfig, MochiTransformer, mochi_10b
from tubelet.protocols import Pattern

# its rotations ask for an autocast that the CPU does not have
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

F64: dict[str, Any] = {"dtype": torch.float64}
TINY = MochiConfig(
    dim=24, depth=2, heads=2, text_width=10, latent_channels=2, text_dim=6, pool_heads=2, patch=(1, 1, 2),
    frequencies=8, area=30.0,
)  # fmt: skip
MIXTURE = Mixture({"x": 4}, {"text": 6})


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_diffusers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = mochis.peer(seed)
    asked = mochis.question(theirs, seed)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}

    def ours(dtype: torch.dtype) -> Tensor:
        return asked.ours(from_diffusers({"_class_name": "MochiTransformer3DModel", **config}, state, dtype=dtype))

    assert error(ours(torch.float32), asked.theirs(theirs)) <= 1e-5
    with mochis.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(ours(torch.float64), expected) <= 1e-10
    rough = error(asked.theirs(in_bfloat16(mochis.peer(seed))), expected)
    assert error(ours(torch.bfloat16), expected) <= 1.5 * rough


def test_gradients_are_those_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = mochis.peer()
    asked = mochis.question(theirs)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers({"_class_name": "MochiTransformer3DModel", **config}, state, dtype=torch.float64)
    with mochis.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in theirs.named_parameters()}
    expected = mochi_keys(ours.config).to_ours(found)
    # nobody reads the last block's queries of the text, and a softmax does not see a shift of all scores
    queries = f"blocks.{ours.config.depth - 1}.branches.0.inner.streams.0.q_"
    without = {"pool.k_proj.bias", f"{queries}proj.weight", f"{queries}norm.weight"}
    for name, parameter in ours.named_parameters():
        if name in without:
            assert max(parameter.grad.abs().max(), expected[name].abs().max()) < 1e-10, name
        else:
            assert error(parameter.grad, expected[name]) <= 1e-10, name


def test_the_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        theirs = MochiTransformer3DModel()
    ours = MochiTransformer(mochi_10b(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == 10_027_677_744


def tiny(pattern: Pattern | None = None) -> MochiTransformer:
    return randomise(MochiTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64))  # type: ignore[return-value]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    check_packed_equals_separate(tiny(), MIXTURE, level, capacities)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.graph
@pytest.mark.parametrize("joint", [False, True])
def test_one_graph_serves_many_layouts(joint: bool) -> None:
    check_one_graph(tiny(), MIXTURE, joint=joint)


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    check_reset(lambda **made: MochiTransformer(TINY, **made), MIXTURE)


class Masked(nn.Module):
    """A joint attention by its definition, under a mask of all pairs of tokens, text before video."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, *streams: Tensor, joint: Any, ropes: Any) -> tuple[Tensor, ...]:
        modules = self.inner.streams
        heads = [m.qkv(x, rope) for m, x, rope in zip(modules, streams, ropes, strict=True)]
        q, k, v = (torch.cat(parts) for parts in zip(*heads, strict=True))
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        out = torch.einsum("hqk,khd->qhd", scores.masked_fill(~self.allowed, -torch.inf).softmax(-1), v).flatten(1)
        return tuple(m.out_proj(p) for m, p in zip(modules, out.split([len(x) for x in streams]), strict=True))


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal(window=2)])
def test_any_pattern_equals_its_mask(pattern: Pattern) -> None:
    model, given, values = tiny(pattern), MIXTURE.inputs(), MIXTURE.levels("frame")
    index, texts = given["layout"].on("cpu"), given["text_layout"].on("cpu")
    c, m = index.coords, len(texts.sample)
    sample = torch.cat([texts.sample, index.sample])
    allowed = sample[:, None] == sample
    if isinstance(pattern, Window):
        cells = ((c // torch.tensor([2, 1, 2]))[:, None] == (c // torch.tensor([2, 1, 2]))[None]).all(-1)
    else:
        behind = c[:, None, 0] - c[None, :, 0]
        cells = (behind >= 0) & (behind < 2)
        allowed[:m, m:] = False
    allowed[m:, m:] &= cells
    got = MIXTURE.ask(model, given, values, "frame")
    assert error(MIXTURE.ask(tiny(), given, values, "frame"), got) > 1e-3
    for block in model.blocks:
        block.branches[0].inner = Masked(block.branches[0].inner, allowed)
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


def test_a_joint_index_may_be_given_and_is_made_otherwise() -> None:
    """From layouts on the host, from indices, from one of each; indices with dropped tokens need one."""
    check_joint(tiny(), MIXTURE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 6, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        (
            {"joint": JointLayout((TokenLayout.padded([1], 1),) * 2).on("cpu")},
            r"tokens of \[\(1, 1\), \(1, 1\)\]",
        ),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    given = MIXTURE.inputs() | {"t": Rows(torch.zeros(1, **F64))} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"area": -1.0}, "area must be positive, got -1.0"),
        ({"heads": 5}, "dim=24 does not make heads=5"),
        ({"pool_heads": 4}, "text_dim=6 is not a multiple of pool_heads=4"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MochiConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)
