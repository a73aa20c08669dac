"""Fused models against the same models in eager code: values, gradients, keys, copies, graphs, and the way back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention, ParallelAttention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice
from tubelet.fused import FusedLinear, use_eager, use_kernels
from tubelet.kernels import (
    gate_residual,
    layer_norm,
    linear,
    norm_modulate,
    qk_norm_rope,
    residual_norm_modulate,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import FractionalRope3d, Rope3d

F64 = {"dtype": torch.float64}
CONFIG = VideoDiTConfig(latent_channels=4, dim=32, depth=2, heads=2, text_dim=8)


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


@pytest.fixture
def model() -> VideoDiT:
    return randomised(VideoDiT(CONFIG, **F64))


def results(model: nn.Module) -> list[Tensor]:
    """The prediction on a packed batch, and the gradients of every parameter and of the input."""
    layout = TokenLayout.packed([Grid(2, 2, 3), Grid(1, 1, 5)], capacity=20).on("cpu")
    text_layout = TokenLayout.packed([None, None], [2, 3]).on("cpu")
    torch.manual_seed(1)
    x, text = torch.randn(20, 4, **F64, requires_grad=True), torch.randn(5, 8, **F64)
    out = model(x, layout.rows(torch.rand(3, **F64), "frame"), text, layout, text_layout)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused operations, as they are called."""
    made: list[str] = []
    for operation in (gate_residual, layer_norm, linear, norm_modulate, qk_norm_rope, residual_norm_modulate):

        def counting(*args: object, _operation: object = operation, **kwargs: object) -> object:
            made.append(_operation.__name__)
            return _operation(*args, **kwargs)

        monkeypatch.setattr(f"tubelet.fused.{operation.__name__}", counting)
    return made


def equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_whole_model_computes_the_same_and_keeps_its_keys(model: VideoDiT, monkeypatch) -> None:
    eager, keys = results(model), list(model.state_dict())
    changed = use_kernels(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # In each block: itself, three branches, the attention and the MLP; not the cross-attention.
    norms = [name for name, module in model.named_modules() if isinstance(module, LayerNorm)]
    assert len(changed) == 2 * 6 + len(linears) + len(norms)
    assert {"blocks.0.branches.0.inner", *linears} <= set(changed)
    made = calls(monkeypatch)
    equal(results(model), eager)
    assert (made.count("norm_modulate"), made.count("qk_norm_rope")) == (4, 2)
    assert made.count("linear") >= len(linears) - 2  # an MLP's is called with its activation
    assert list(model.state_dict()) == keys
    assert sorted(use_eager(model)) == sorted(changed)
    made.clear()
    equal(results(model), eager)
    assert made == []
    assert use_eager(model) == []


def test_a_copy_is_fused_with_its_own_parameters(model: VideoDiT) -> None:
    use_kernels(model)
    twin = copy.deepcopy(model)
    randomised(twin)
    fused = results(twin)
    use_eager(twin)
    equal(fused, results(twin))
    assert use_eager(model)


def test_the_filter_chooses(model: VideoDiT) -> None:
    changed = use_kernels(model, lambda name, module: isinstance(module, Attention) and name.startswith("blocks.1"))
    assert changed == ["blocks.1.branches.0.inner"]
    assert use_eager(model) == changed


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals as on a GPU; their operations then take the reference."""
    monkeypatch.setattr("tubelet.fused._pays", lambda x: True)


@pytest.mark.usefixtures("joins")
def test_neighbouring_branches_are_joined(model: VideoDiT, monkeypatch) -> None:
    """Attention, cross-attention without modulation, MLP: two joints a block, one norm before them, one gate after."""
    eager = results(model)
    use_kernels(model)
    made = calls(monkeypatch)
    equal(results(model), eager)
    counted = {name: made.count(name) for name in ("norm_modulate", "residual_norm_modulate", "gate_residual")}
    assert counted == {"norm_modulate": 2, "residual_norm_modulate": 4, "gate_residual": 2}


class Twice(Branch):
    """A branch of somebody else."""

    def forward(self, x: Tensor, cond: Rows | None = None, context: object = None) -> Tensor:
        return super().forward(super().forward(x, cond), cond)


def _block(kind: type[Branch] = Branch, norm: type[nn.Module] = RMSNorm) -> TransformerBlock:
    branches = [
        Branch(nn.Linear(8, 8, **F64), norm(8, **F64), modulation=ModulationSlice(8, 0), post_norm=norm(8, **F64)),
        kind(nn.Linear(8, 8, **F64), norm(8, **F64), modulation=ModulationSlice(8, 3, parts=2), parts=("scale", "gate"),
             gate=torch.tanh),
        Branch(nn.Linear(8, 8, **F64), norm(8, **F64), modulation=ModulationSlice(8, 5, parts=1), parts=("gate",)),
        Branch(nn.Linear(8, 8, **F64)),
    ]  # fmt: skip
    return randomised(TransformerBlock(branches, AdaLNZero(8, 6, parts=6, **F64)))


@pytest.mark.usefixtures("joins")
@pytest.mark.parametrize(
    ("change", "joints"),
    [
        (None, 2),  # the fourth branch has no norm
        ("kind", 0),
        ("norm", 0),
        ("hook", 0),
        ("filter", 1),
    ],
)
def test_what_cannot_be_joined_is_left_apart(change: str | None, joints: int, monkeypatch) -> None:
    made = {"kind": {"kind": Twice}, "norm": {"norm": nn.LayerNorm}}.get(change or "", {})
    block = _block(**made)
    layout = TokenLayout.dense(3, Grid(1, 2, 2)).on("cpu")
    x, cond = torch.randn(3, 4, 8, **F64), layout.rows(torch.randn(3, 6, **F64), "sample")
    eager, heard = block(x, cond), []
    use_kernels(block, lambda name, module: change != "filter" or name != "branches.0")
    if change == "hook":
        block.branches[1].register_forward_hook(lambda *_: heard.append(1))
    names = calls(monkeypatch)
    equal([block(x, cond)], [eager])
    assert names.count("residual_norm_modulate") == joints
    assert len(heard) == (change == "hook")


def test_what_has_no_kernel_is_left_alone() -> None:
    class Doubled(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    listened = LayerNorm(8, affine=False)
    listened.register_forward_hook(lambda *_: None)
    for module in (
        Attention(8, 2),
        Attention(8, 2, qk_norm=LayerNorm),
        Attention(8, 2, qk_norm=Doubled),
    ):
        assert use_kernels(module, lambda name, module: not isinstance(module, nn.Linear | LayerNorm)) == []
    for branch in (
        Branch(nn.Identity(), LayerNorm(8)),  # no modulation
        Branch(nn.Identity(), Doubled(8), modulation=AdaLNZero(8, 8)),
        Branch(nn.Identity(), nn.LayerNorm(8), modulation=AdaLNZero(8, 8)),
        Branch(nn.Identity(), listened, modulation=AdaLNZero(8, 8)),
    ):
        plain = branch.norm_modulate
        assert "" in use_kernels(branch)
        assert branch.norm_modulate is plain


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("affine", [False, True])
def test_every_norm_of_a_branch(norm: type, affine: bool) -> None:
    branch = randomised(Branch(MLP(8, **F64), norm(8, affine=affine, **F64), modulation=AdaLNZero(8, 6, **F64)))
    layout = TokenLayout.dense(3, Grid(1, 2, 2)).on("cpu")
    x, cond = torch.randn(3, 4, 8, **F64), layout.rows(torch.randn(3, 6, **F64), "sample")
    eager = branch(x, cond)
    assert "" in use_kernels(branch)
    equal([branch(x, cond)], [eager])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("x", "rows"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_one_row_of_modulation_is_a_part_of_the_norm(affine: bool, x: str, rows: str, monkeypatch) -> None:
    branch = randomised(Branch(nn.Identity(), LayerNorm(8, affine=affine), modulation=ModulationSlice(8, 0)))
    tokens = torch.randn(2, 5, 8).to(getattr(torch, x))
    cond = Rows(torch.randn(1, 24).to(getattr(torch, rows)))
    wide = Rows(cond.values.double())
    exact = copy.deepcopy(branch).double()(tokens.double(), wide)
    use_kernels(branch)
    made = calls(monkeypatch)
    out = branch(tokens, cond)
    assert made == ["norm_modulate"]
    assert out.dtype == tokens.dtype
    rounding = 1e-6 if "bfloat16" not in (x, rows) else 2e-2
    torch.testing.assert_close(out.double(), exact, rtol=rounding, atol=rounding)


def test_a_fused_norm_still_says_what_is_wrong_with_a_width() -> None:
    norm = LayerNorm(8, affine=False)
    assert use_kernels(norm) == [""]
    with pytest.raises(ValueError, match="8"):
        norm(torch.ones(2, 4))
    assert use_eager(norm) == [""]


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_attention_with_and_without_rotations(layout: str) -> None:
    attention = randomised(Attention(24, 4, kv_heads=2, head_dim=12, qk_norm=RMSNorm, **F64))
    x, rope = torch.randn(2, 5, 24, **F64), Rope3d(12, layout=layout, **F64)(torch.rand(5, 3))
    eager = [attention(x, rope=rope), attention(x), attention(x, TokenLayout.padded([3, 5], 5), rope)]
    assert "" in use_kernels(attention)
    equal([attention(x, rope=rope), attention(x), attention(x, TokenLayout.padded([3, 5], 5), rope)], eager)
    with pytest.raises(ValueError, match="width 23"):
        attention(x[..., :23], rope=rope)


@pytest.mark.parametrize("rope", [Rope3d(8, layout="half_per_axis"), FractionalRope3d(2, 8)])
def test_rotations_that_the_kernel_does_not_know_stay_eager(rope: nn.Module, monkeypatch) -> None:
    attention = randomised(Attention(16, 2, qk_norm=RMSNorm, **F64))
    x, coords = torch.randn(6, 16, **F64), TokenLayout.packed([Grid(1, 2, 3)]).on("cpu").coords
    expected = attention(x, rope=rope(coords))
    assert "" in use_kernels(attention)
    monkeypatch.delattr("tubelet.fused.qk_norm_rope")
    assert torch.equal(attention(x, rope=rope(coords)), expected)
    with pytest.raises(NameError):
        attention(x, rope=Rope3d(8)(coords))


@pytest.mark.graph
@pytest.mark.usefixtures("joins")
def test_fused_blocks_compile_into_one_graph() -> None:
    attention = Attention(24, 2, qk_norm=RMSNorm)
    norm, modulation = LayerNorm(24, affine=False), AdaLNZero(24, 6)
    branches = [Branch(attention, norm, modulation=modulation, takes=["layout", "rope"])]
    block = randomised(TransformerBlock([*branches, Branch(MLP(24), LayerNorm(24), modulation=AdaLNZero(24, 6))]))
    use_kernels(block)
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]).on("cpu")
    context = {"layout": layout, "rope": Rope3d(12)(layout.coords)}
    x, cond = torch.randn(6, 24), layout.rows(torch.randn(2, 6), "sample")
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, cond, context), block(x, cond, context))


@pytest.mark.parametrize("act", [None, nn.GELU(), nn.SiLU(), nn.ReLU(), torch.tanh])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlps_and_parallel_branches_compute_the_same(act, dtype: torch.dtype) -> None:
    mlp = randomised(MLP(16, 24, act=act, dtype=dtype))
    parallel = randomised(ParallelAttention(Attention(16, 2, out=False), 16, 24, act=act)).to(dtype)
    x = torch.randn(2, 5, 16, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for module in (mlp, parallel):
        eager = module(x)
        assert "" in use_kernels(module)
        assert type(module.up) is FusedLinear
        torch.testing.assert_close(module(x), eager, **tolerance)
        with torch.no_grad():
            torch.testing.assert_close(module(x), eager.detach(), **tolerance)
        use_eager(module)
        assert type(module.up) is nn.Linear
        assert torch.equal(module(x), eager)


@pytest.mark.parametrize("names", [["up"], ["act"], ["up", "act", "down"]])
def test_hooks_of_a_projection_and_of_an_activation_are_still_called(names: list[str]) -> None:
    mlp, heard = MLP(8), []
    use_kernels(mlp)
    for name in names:
        getattr(mlp, name).register_forward_hook(lambda *_, name=name: heard.append(name))
    mlp(torch.randn(2, 8))
    assert heard == names


def test_subclasses_of_a_linear_map_are_left_alone() -> None:
    class Low(nn.Linear):
        pass

    assert use_kernels(Low(2, 2)) == []
