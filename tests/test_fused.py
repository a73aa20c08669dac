"""Fused models against the same models in eager code: values, gradients, keys, copies, graphs, and the way back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import (
    Attention,
    CrossAttention,
    DecoupledCrossAttention,
    JoinedCrossAttention,
    ParallelAttention,
    normed,
)
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice
from tubelet.fused import FusedLinear, _branches, _layers, _transform, unfused, use_eager, use_kernels
from tubelet.kernels import (
    gate_residual,
    layer_norm,
    linear,
    norm_modulate,
    norm_rope,
    norm_silu_pad,
    qk_norm_rope,
    residual_norm_modulate,
)
from tubelet.layout import Grid, JointLayout, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.norms import LayerNorm, RMSNorm, UnitNorm
from tubelet.positions import FractionalRope3d, MixedRope3d, Rope3d
from tubelet.streams import JointBranch, MultiStreamBlock, StreamBranches
from tubelet.vae import CausalConv3d, ChannelNorm, FrameGroupNorm, copies, zeros
from tubelet.vae.chains import NormedConv

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
    operations = (gate_residual, layer_norm, linear, norm_modulate, norm_rope, qk_norm_rope, residual_norm_modulate)
    for operation in operations:

        def counting(*args: object, _operation: object = operation, **kwargs: object) -> object:
            made.append(_operation.__name__)
            return _operation(*args, **kwargs)

        for home in (normed, _branches, _layers, _transform):
            if hasattr(home, operation.__name__):
                monkeypatch.setattr(home, operation.__name__, counting)
    return made


def equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_whole_model_computes_the_same_and_keeps_its_keys(model: VideoDiT, monkeypatch) -> None:
    eager, keys = results(model), list(model.state_dict())
    changed = use_kernels(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # In each block: itself, three branches, both attentions and the MLP.
    norms = [name for name, module in model.named_modules() if isinstance(module, LayerNorm)]
    assert len(changed) == 2 * 7 + len(linears) + len(norms)
    assert {"blocks.0.branches.0.inner", *linears} <= set(changed)
    made = calls(monkeypatch)
    equal(results(model), eager)
    assert [made.count(name) for name in ("norm_modulate", "qk_norm_rope", "norm_rope")] == [4, 2, 4]
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
    monkeypatch.setattr("tubelet.fused._branches.pays", lambda x: True)


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


class Mixed(nn.Module):
    """What each stream is told of the other."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.sin() + b.mean(), b.cos() * a.mean()


def _streams(norm: type[nn.Module] = RMSNorm, updates: tuple[bool, bool] = (True, True)) -> MultiStreamBlock:
    def branch(inner: nn.Module, start: int, width: int) -> Branch:
        parts = {"modulation": ModulationSlice(width, start), "post_norm": LayerNorm(width, **F64)}
        return Branch(inner, norm(width, **F64), gate=torch.tanh, **parts)

    joint = JointBranch(Mixed(), [branch(nn.Identity(), 0, width) for width in (8, 6)], updates=updates)
    own: list[nn.Module | None] = [branch(nn.Linear(width, width, **F64), 3, width) for width in (8, 6)]
    if not updates[1]:
        own[1] = None
    modulations = [AdaLNZero(width, 4, parts=6, **F64) for width in (8, 6)]
    return randomised(MultiStreamBlock([joint, StreamBranches(own)], modulations))


@pytest.mark.usefixtures("joins")
@pytest.mark.parametrize(
    ("change", "joints"),
    [(None, 2), ("norm", 0), ("a stream that stays", 1), ("hook", 0), ("hook of a branch", 1), ("filter", 1)],
)
def test_a_branch_of_all_streams_is_joined_with_that_of_each(change: str | None, joints: int, monkeypatch) -> None:
    norm = nn.LayerNorm if change == "norm" else RMSNorm
    block = _streams(norm, (True, change != "a stream that stays"))
    leaves = [torch.randn(3, 4, width, **F64, requires_grad=True) for width in (8, 6)]
    conds = [Rows(torch.randn(3, 4, **F64)) for _ in leaves]
    heard: list[int] = []

    def results() -> list[Tensor]:
        out = block(tuple(leaves), conds)
        total = sum(x.sin().sum() for x in out)
        return [*out, *torch.autograd.grad(total, [*leaves, *block.parameters()], allow_unused=True)]

    eager = results()
    use_kernels(block, lambda name, module: change != "filter" or name != "branches.1.branches.0")
    if "hook" in str(change):
        listened = block.branches[1] if change == "hook" else block.branches[1].branches["1"]
        listened.register_forward_hook(lambda *_: heard.append(1))
    made = calls(monkeypatch)
    fused = results()
    assert made.count("residual_norm_modulate") == joints
    assert len(heard) == ("hook" in str(change))
    for got, expected in zip(fused, eager, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    assert use_eager(block)
    assert "in_turn" not in vars(block)


def test_what_has_no_kernel_is_left_alone() -> None:
    class Doubled(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    listened = LayerNorm(8, affine=False)
    listened.register_forward_hook(lambda *_: None)
    for module in (
        Attention(8, 2, qk_norm=UnitNorm),
        Attention(8, 2, qk_norm=Doubled),
        CrossAttention(8, 2),
        CrossAttention(8, 2, qk_norm=Doubled),
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
    # a gate of the tokens' own dtype is one pass in eager code
    assert made == ["norm_modulate"] + ["gate_residual"] * (x != rows)
    assert out.dtype == tokens.dtype
    rounding = 1e-6 if "bfloat16" not in (x, rows) else 2e-2
    torch.testing.assert_close(out.double(), exact, rtol=rounding, atol=rounding)


def test_a_fused_norm_still_says_what_is_wrong_with_a_width() -> None:
    norm = LayerNorm(8, affine=False)
    assert use_kernels(norm) == [""]
    with pytest.raises(ValueError, match="8"):
        norm(torch.ones(2, 4))
    assert use_eager(norm) == [""]


NORMS = {"rms": RMSNorm, "layer": LayerNorm, "none": None}
ROPES = {
    "interleaved": lambda heads: Rope3d(12, **F64),
    "half": lambda heads: Rope3d(12, layout="half", **F64),
    "half_per_axis": lambda heads: Rope3d(12, (4, 2, 6), layout="half_per_axis", **F64),
    "over the width": lambda heads: FractionalRope3d(heads, 12, **F64),
    "learned": lambda heads: MixedRope3d(heads, 12, **F64),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", ROPES)
def test_attention_with_and_without_rotations(norm: str, across: bool, name: str, monkeypatch) -> None:
    kv_heads = 4 if name in ("over the width", "learned") else 2
    options = {"kv_heads": kv_heads, "head_dim": 12, "qk_norm": NORMS[norm], "across_heads": across}
    attention, rope = randomised(Attention(24, 4, **options, **F64)), ROPES[name](4)
    x, coords = torch.randn(2, 6, 24, **F64), torch.cat([torch.full((2, 3), -1.0), torch.rand(4, 3)])  # two of text
    leaves = [*attention.parameters(), *rope.parameters()]

    def outputs() -> list[Tensor]:
        turned = attention(x, rope=rope(coords))
        padded = attention(x, TokenLayout.padded([3, 6], 6), rope(coords))
        return [turned, padded, attention(x), *torch.autograd.grad(turned.square().sum(), leaves)]

    eager = outputs()
    assert "" in use_kernels(attention)
    assert unfused(attention) == {}
    made = calls(monkeypatch)
    equal(outputs(), eager)
    assert made.count("qk_norm_rope") == (2 if norm == "none" else 3)
    with pytest.raises(ValueError, match="width 23"):
        attention(x[..., :23], rope=rope(coords))


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("kind", ["text", "text across heads", "text and image", "text and itself"])
def test_norms_of_cross_attention(norm: type, kind: str, monkeypatch) -> None:
    sides = TokenLayout.packed([None, None], [2, 3]), TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)])
    texts, layout = (side.on("cpu") for side in sides)
    x, text = torch.randn(6, 24, **F64), torch.randn(5, 24, **F64)
    if kind == "text and itself":
        module: nn.Module = JoinedCrossAttention(24, 2, qk_norm=norm, **F64)
        inputs = (x, text, layout, JointLayout(sides).on("cpu"))
    elif kind == "text and image":
        module = DecoupledCrossAttention(24, 2, context_dim=24, image_dim=24, qk_norm=norm, **F64)
        inputs = (x, text, text, layout, texts, texts)
    else:
        module = CrossAttention(24, 2, qk_norm=norm, across_heads="across" in kind, **F64)
        inputs = (x, text, layout, texts)
    eager = randomised(module)(*inputs)
    assert "" in use_kernels(module)
    made = calls(monkeypatch)
    equal([module(*inputs)], [eager])
    assert made.count("norm_rope") == (3 if "image" in kind else 2)
    use_eager(module)
    assert torch.equal(module(*inputs), eager)


def test_attention_that_stays_eager_says_why() -> None:
    class Own(Attention):
        pass

    listened = Attention(8, 2, qk_norm=RMSNorm)
    listened.k_norm.register_forward_hook(lambda *_: None)
    mixed = Attention(8, 2, qk_norm=RMSNorm)
    mixed.k_norm = RMSNorm(4, eps=1e-3)
    found = unfused(
        nn.ModuleDict(
            {
                "own": Own(8, 2, qk_norm=RMSNorm),
                "listened": listened,
                "mixed": mixed,
                "unit": CrossAttention(8, 2, qk_norm=UnitNorm),
                "plain": Attention(8, 2),
                "crossing": CrossAttention(8, 2, qk_norm=LayerNorm),
            }
        )
    )
    assert list(found) == ["own", "listened", "mixed", "unit"]
    for name, words in {"own": "Own may", "listened": "k_norm, RMSNorm, has hooks", "mixed": "differ in kind or eps",
                        "unit": "q_norm, UnitNorm, has no kernel"}.items():  # fmt: skip
        assert words in found[name]


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


class Septupled(Branch):
    @staticmethod
    def gated(x: Tensor, update: Tensor, gate: Rows | None = None) -> Tensor:
        return x + 7 * update


class Doubled(Branch):
    @staticmethod
    def norm_modulate(norm: nn.Module, x: Tensor, shift: Rows | None = None, scale: Rows | None = None) -> Tensor:
        return 2 * norm(x)


class Backwards(TransformerBlock):
    @staticmethod
    def in_turn(branches: Any, x: Tensor, cond: object, context: object) -> Tensor:
        for branch in reversed(list(branches)):
            x = branch(x)
        return x


class Raised(MLP):
    @staticmethod
    def raised(up: nn.Module, act: Any, x: Tensor) -> Tensor:
        return 2 * act(up(x))


@pytest.mark.usefixtures("joins")
@pytest.mark.parametrize("place", ["class", "instance"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Septupled(nn.Linear(8, 8)), "gated"),
        (lambda: Doubled(nn.Linear(8, 8), LayerNorm(8), modulation=AdaLNZero(8, 8)), "norm_modulate"),
        (lambda: Backwards([Branch(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), Branch(nn.Linear(8, 8))]), "in_turn"),
        (lambda: Raised(8), "raised"),
    ],
)
def test_functions_of_a_class_or_a_module_of_its_own_are_kept(place: str, make: Any, name: str) -> None:
    module, x = randomised(make()), torch.randn(2, 3, 8)
    given = [x, Rows(torch.randn(2, 8))][: 1 + isinstance(module, Branch)]
    function = getattr(module, name)
    if place == "instance":
        module.__class__ = type(module).__mro__[1]
        setattr(module, name, function)
    eager = module(*given)
    assert use_kernels(module)  # the linear maps inside
    assert getattr(module, name) is function
    torch.testing.assert_close(module(*given), eager)
    use_eager(module)
    assert (name in vars(module)) == (place == "instance")
    assert torch.equal(module(*given), eager)


@pytest.mark.usefixtures("joins")
def test_neighbours_with_functions_of_their_own_are_not_joined(monkeypatch) -> None:
    block = _block()
    plain = block.branches[1].norm_modulate
    block.branches[1].norm_modulate = lambda *given: 3 * plain(*given)
    x, cond = torch.randn(3, 4, 8, **F64), Rows(torch.randn(3, 6, **F64))
    eager = block(x, cond)
    use_kernels(block)
    names = calls(monkeypatch)
    equal([block(x, cond)], [eager])
    assert names.count("residual_norm_modulate") == 1


def test_what_has_another_forward_stays_eager() -> None:
    """An instance's own, as wrappers put over a module to move its weights, or a class's."""

    def wrapped(module: nn.Module) -> nn.Module:
        module.forward = module.forward
        return module

    for module in (
        Twice(nn.Identity()),
        wrapped(nn.Linear(8, 8)),
        wrapped(LayerNorm(8)),
        wrapped(Branch(nn.Identity())),
        wrapped(MLP(8, act=nn.ReLU())),
        wrapped(Attention(8, 2)),
    ):
        assert "" not in use_kernels(module)
    attention = wrapped(Attention(8, 2, qk_norm=RMSNorm))
    assert unfused(attention) == {"": "it has a forward of its own"}
    del attention.forward
    attention.normed_and_turned = lambda *given: normed.fused_normed_and_turned(*given)
    assert unfused(attention) == {"": "it has a normed_and_turned of its own"}


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # a modulation makes no tensor
@pytest.mark.parametrize("way", ["forward", *(f"register_module_{each}" for each in (
    "forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"))])  # fmt: skip
def test_forwards_and_hooks_of_all_modules_that_come_after_the_kernels_are_called(way: str) -> None:
    branch, heard = Branch(nn.Identity(), LayerNorm(8), modulation=AdaLNZero(8, 8)), []
    use_kernels(branch)
    forward = branch.norm.forward
    if way == "forward":
        branch.norm.forward = lambda *given: (heard.append(branch.norm), forward(*given))[1]
    else:
        handle = getattr(nn.modules.module, way)(lambda module, *_: heard.append(module))
    try:
        x, rows = torch.randn(2, 3, 8, requires_grad=True), Rows(torch.randn(2, 8, requires_grad=True))
        branch(x, rows).sum().backward()
    finally:
        if way != "forward":
            handle.remove()
    assert branch.norm in heard


REGISTER = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("register", REGISTER)
def test_hooks_of_norms_that_come_after_the_kernels_are_called(register: str) -> None:
    branch = Branch(Attention(8, 2, qk_norm=RMSNorm), LayerNorm(8), modulation=AdaLNZero(8, 8))
    crossing, heard = CrossAttention(8, 2, qk_norm=RMSNorm), []
    both = nn.ModuleList([branch, crossing])
    use_kernels(both)
    for name in ("0.norm", "0.inner.q_norm", "1.k_norm"):
        getattr(both.get_submodule(name), f"register_{register}")(lambda *_, name=name: heard.append(name))
    x = torch.randn(2, 3, 8, requires_grad=True)
    (branch(x, Rows(torch.randn(2, 8))) + crossing(x, x)).sum().backward()
    assert sorted(heard) == ["0.inner.q_norm", "0.norm", "1.k_norm"]


def test_subclasses_of_a_linear_map_are_left_alone() -> None:
    class Low(nn.Linear):
        pass

    assert use_kernels(Low(2, 2)) == []


def _replaced(monkeypatch: pytest.MonkeyPatch, norm: nn.Module, conv: nn.Module) -> tuple[NormedConv, list[int]]:
    """A convolution behind a norm that uses the kernel, here too, and the frames in front of each call of it."""
    calls: list[int] = []

    def counted(x: Tensor, **options: Any) -> Tensor:
        calls.append(options["frames"])
        return norm_silu_pad(x, **options)

    monkeypatch.setattr("tubelet.fused._transform.pays", lambda x: True)
    monkeypatch.setattr("tubelet.fused._transform.norm_silu_pad", counted)
    layer = NormedConv(norm, conv)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, calls


@pytest.mark.parametrize("before", [copies, zeros])
@pytest.mark.parametrize(
    "norm",
    [
        lambda: ChannelNorm(4),
        lambda: ChannelNorm(4, affine=False),
        lambda: ChannelNorm(4, bias=True),
        lambda: FrameGroupNorm(2, 4),
        lambda: nn.GroupNorm(2, 4, eps=1e-3),
    ],
)
def test_norm_silu_and_the_frames_before_are_one_kernel(norm, before, monkeypatch) -> None:
    edges = "replicate" if before is copies else "zeros"
    layer, calls = _replaced(monkeypatch, norm(), CausalConv3d(4, 3, (3, 3, 5), before=before, edges=edges))
    layer.double()
    x = torch.randn(2, 4, 5, 6, 4, **F64, requires_grad=True)
    plain, state = layer(x)
    second, _ = layer(x, state)
    wanted = torch.autograd.grad((plain.sin() + second.cos()).sum(), [x, *layer.parameters()])
    assert use_kernels(layer) == [""]
    whole, kept = layer(x)
    later, _ = layer(x, kept)
    got = torch.autograd.grad((whole.sin() + later.cos()).sum(), [x, *layer.parameters()])
    assert calls == [2, 2]
    torch.testing.assert_close([whole, kept, later, *got], [plain, state, second, *wanted], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"state must hold kt - 1 = 2 frames, not 1"):
        layer(x, kept[:, :, :1])
    heard: list[int] = []
    layer.conv.conv.register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(layer(x)[0], whole)
    assert (len(calls), heard) == (3, [1])  # who listens to the convolution inside hears it, and it adds the borders
    inside: list[nn.Module] = []
    for module in layer.norm.modules():  # whoever listens to the norm, or to a group norm inside of it, hears it
        hook = module.register_forward_hook(lambda module, *_: inside.append(module))
        layer(x)
        hook.remove()
    assert (len(calls), inside) == (3, list(layer.norm.modules()))
    assert use_eager(layer) == [""]


@pytest.mark.parametrize(
    ("norm", "conv"),
    [
        (nn.Identity(), CausalConv3d(4, 4)),
        (ChannelNorm(4), CausalConv3d(4, 4, stride=(2, 1, 1))),
        (ChannelNorm(4), CausalConv3d(4, 4, before=lambda first, frames: copies(first, frames))),
    ],
)
def test_a_convolution_without_a_kernel_for_its_input_is_left_alone(norm: nn.Module, conv: nn.Module) -> None:
    assert use_kernels(NormedConv(norm, conv)) == []
