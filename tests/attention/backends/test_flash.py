"""FlashAttention: which package is chosen, and that its arguments give a float64 stand-in the right numbers."""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import drawn
import fakes
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import FrameCausal, Joint, Neighborhood, Spatial, Temporal, Window, attend, backends
from tubelet.attention.backends import flash
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest

EPS = torch.finfo(torch.bfloat16).eps
PACKED = TokenLayout.packed([Grid(3, 2, 2), Grid(3, 2, 2), Grid(1, 1, 1), Grid(2, 3, 2)], capacity=48)
TEXT = TokenLayout.packed([Grid(3, 2, 2), Grid(1, 1, 1)], [2, 3])
MODULES = ("flash_attn", "flash_attn.cute", "flash_attn_interface", "fa3_fwd_interface")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a stand-in for flash-attn 2 on a device of capability 8.0 has been asked."""
    seen: list[dict[str, Any]] = []
    install(monkeypatch, (8, 0), flash_attn=fakes.flash_attn(seen))
    yield seen
    flash._function.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], **modules: ModuleType) -> None:
    monkeypatch.setattr(flash, "_capability", lambda device: capability)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, modules.get(name.replace(".", "_")))
    flash._function.cache_clear()


def tensors(shape: tuple[int, ...], kv_shape: tuple[int, ...], heads: tuple[int, int]) -> list[Tensor]:
    sides = ((*shape, heads[0], 8), (*kv_shape, heads[1], 8), (*kv_shape, heads[1], 8))
    return [torch.randn(side).bfloat16().requires_grad_() for side in sides]


def assert_equal_to_the_definition(qkv: list[Tensor], **how: Any) -> None:
    exact = [x.detach().double().requires_grad_() for x in qkv]
    out, want = attend(*qkv, backend="flash", **how), attend(*exact, backend="reference", **how)
    cotangent = torch.randn(out.shape).bfloat16()
    got_grads = torch.autograd.grad(out, qkv, cotangent)
    want_grads = torch.autograd.grad(want, exact, cotangent.double())
    scale = max(float(w.detach().norm()) for w in (want, *want_grads))
    for g, w in zip((out, *got_grads), (want, *want_grads), strict=True):
        assert float((g.detach().double() - w.detach()).norm()) <= EPS * scale


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=drawn.patterns, make=drawn.layouts(), kv_heads=st.sampled_from([1, 2]))
def test_what_it_serves_equals_the_definition(
    asked: list[dict[str, Any]], draw: drawn.Made, make: Callable[[], TokenLayout], kv_heads: int
) -> None:
    pattern, layout = draw(), make()
    index, shape = layout.on("cpu"), (*layout.shape, 2, 8)
    kv_shape = (*layout.shape, kv_heads, 8)
    request = AttentionRequest(pattern, index, None, shape, kv_shape, torch.bfloat16, "cpu", 0.6, None)
    if backends()["flash"].supports(request):
        qkv = tensors(layout.shape, layout.shape, (2, kv_heads))
        assert_equal_to_the_definition(qkv, pattern=pattern, layout=index, scale=0.6)
    else:
        assert not isinstance(pattern, Joint) or not sum(layout.lengths)


@pytest.mark.parametrize("pattern", [Joint(), Spatial(), Temporal(), Window((2, 2, 1))], ids=str)
@pytest.mark.parametrize("kept", [False, True])
def test_segments_hold_the_groups(asked: list[dict[str, Any]], pattern: Any, kept: bool) -> None:
    layout = PACKED.keep([i for i in range(37) if i % 5]) if kept else PACKED
    assert_equal_to_the_definition(tensors(layout.shape, layout.shape, (4, 2)), pattern=pattern, layout=layout)
    assert len(asked) == 1


def test_the_exact_arguments(asked: list[dict[str, Any]]) -> None:
    q, k, v = tensors(PACKED.shape, PACKED.shape, (2, 2))
    attend(q, k, v, layout=PACKED, backend="flash")
    joint = asked.pop()
    assert joint["cu_q"].tolist() == joint["cu_k"].tolist() == [0, 12, 24, 25, 37]
    assert (joint["max_q"], joint["max_k"]) == (12, 12)
    assert joint["q"].data_ptr() == q.data_ptr() and len(joint["q"]) == 37  # nothing copied, the tail left out
    rows = tensors((2, 5), (2, 5), (2, 2))
    attend(*rows, backend="flash")
    assert asked.pop()["cu_q"].tolist() == [0, 5, 10]
    attend(*rows, layout=TokenLayout.padded([5, 2], 5), backend="flash")
    padded = asked.pop()
    assert padded["cu_q"].tolist() == [0, 5, 7] and len(padded["q"]) == 7
    attend(q, k, v, layout=PACKED, pattern=Spatial(), backend="flash")
    assert asked.pop()["cu_q"].tolist() == [0, 4, 8, 12, 16, 20, 24, 25, 31, 37]


@pytest.mark.parametrize("context", [TokenLayout.packed([None] * 4, [3, 0, 2, 5]), TokenLayout.padded([3, 0, 2, 5], 6)])
def test_cross_attention(asked: list[dict[str, Any]], context: TokenLayout) -> None:
    qkv = tensors(PACKED.shape, context.shape, (4, 2))
    assert_equal_to_the_definition(qkv, layout=PACKED, kv_layout=context)
    assert asked[0]["cu_q"].tolist() == [0, 12, 13, 25] and asked[0]["cu_k"].tolist() == [0, 3, 5, 10]


@pytest.mark.parametrize(
    ("pattern", "layout", "reason"),
    [
        (Neighborhood((1, 3, 3)), TokenLayout.packed([Grid(1, 5, 5)]), "no partition"),
        (Spatial(), TEXT, "text joins groups"),
        (FrameCausal(), TokenLayout.packed([Grid(9, 1, 2)]), "no partition"),
    ],
)
def test_what_is_no_list_of_segments_is_refused(
    asked: list[dict[str, Any]], pattern: Any, layout: TokenLayout, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        attend(*tensors(layout.shape, layout.shape, (2, 2)), pattern=pattern, layout=layout, backend="flash")


def test_other_refusals(asked: list[dict[str, Any]]) -> None:
    half = torch.randn(4, 2, 8).bfloat16()
    for q, how, reason in (
        (half.float(), {}, "not torch.float32"),
        (half, {"bias": torch.zeros(4, 4)}, "no bias"),
        (torch.randn(4, 2, 12).half(), {}, "a multiple of 8"),
        (torch.randn(4, 2, 264).half(), {}, "up to 256"),
        (half[:0], {}, "at least one query"),
    ):
        with pytest.raises(ValueError, match=reason):
            attend(q, q, q, backend="flash", **how)
    with pytest.raises(ValueError, match="got 8 and 16"):
        attend(half, half, torch.randn(4, 2, 16).bfloat16(), backend="flash")


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "grad", "chosen"),
    [
        ((8, 0), ("flash_attn", "flash_attn_interface"), torch.float16, True, "flash-attn"),
        ((9, 0), ("flash_attn", "flash_attn_interface"), torch.float16, True, "flash-attn 3"),
        ((9, 0), ("flash_attn", "fa3_fwd_interface"), torch.bfloat16, False, "fa3-fwd"),
        ((9, 0), ("flash_attn", "fa3_fwd_interface"), torch.bfloat16, True, "flash-attn"),
        ((9, 0), ("flash_attn", "fa3_fwd_interface"), torch.float16, False, "flash-attn"),
        ((10, 0), ("flash_attn", "flash_attn_cute"), torch.bfloat16, True, "flash-attn-4"),
        ((9, 0), (), torch.bfloat16, True, "torch"),
    ],
)
def test_the_package_fits_the_device(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    installed: tuple[str, ...],
    dtype: torch.dtype,
    grad: bool,
    chosen: str,
) -> None:
    install(monkeypatch, capability, **{name: fakes.flash_attn([], name) for name in installed})
    number = flash._chosen(capability[0], False, dtype, grad, False)
    assert flash._KERNELS[number].package == chosen
    flash._function.cache_clear()


def test_flash_attn_4_gives_the_statistics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (10, 0), flash_attn_cute=fakes.flash_attn([], with_lse=True))
    assert (
        flash._KERNELS[flash._chosen(10, True, torch.bfloat16, True, False)].package == "torch"
    )  # wider than it serves
    assert_equal_to_the_definition(tensors(PACKED.shape, PACKED.shape, (2, 2)), layout=PACKED)
    flash._function.cache_clear()


def test_an_empty_module_of_the_name_is_not_flash_attn_3(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (9, 0), flash_attn_interface=ModuleType("flash_attn_interface"))
    assert flash._KERNELS[flash._chosen(9, False, torch.bfloat16, True, False)].package == "torch"
    flash._function.cache_clear()


def test_old_devices_are_told_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (7, 5))
    half = torch.randn(4, 2, 8).half()
    with pytest.raises(ValueError, match=r"compute capability 7\.x"):
        attend(half, half, half, backend="flash")
    flash._function.cache_clear()


def test_pytorchs_own_kernel_is_asked_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, enable_gqa=False):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return fakes.varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale)

    real = importlib.import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(real, "varlen_attn", varlen_attn)
    install(monkeypatch, (8, 0))
    for kv_heads in (2, 4):
        assert_equal_to_the_definition(tensors(PACKED.shape, PACKED.shape, (4, kv_heads)), layout=PACKED)
    monkeypatch.setattr(real, "varlen_attn", lambda q, k, v, cu_q, cu_k, max_q, max_k, *, scale: None)
    flash._function.cache_clear()
    assert flash._chosen(8, False, torch.bfloat16, False, True) == -1
    flash._function.cache_clear()


def test_pytorchs_real_kernel_has_the_arguments_we_pass() -> None:
    flash._function.cache_clear()
    kernel = flash._KERNELS[-1]
    function = flash._function(kernel)
    assert kernel.package == "torch" and function is not None and flash._takes(kernel, function, True)


@pytest.mark.graph
def test_compiled_code_takes_the_segments_of_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for the layouts of a capacity; what no segment writes (NaN in the stand-in) is cleared."""
    context = TokenLayout.packed([None] * 3, [3, 0, 2])
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = opaque  # type: ignore[attr-defined]
    install(monkeypatch, (8, 0), flash_attn=module)
    compiled = torch.compile(
        lambda q, k, v, index, keys: attend(q, k, v, layout=index, kv_layout=keys, backend="flash"),
        fullgraph=True,
        backend=backend,
    )
    for grids in ([Grid(2, 2, 2), Grid(1, 1, 3), Grid(1, 1, 1)], [Grid(1, 2, 2), Grid(1, 1, 1), Grid(2, 3, 2)]):
        for keys in (None, context):
            index = TokenLayout.packed(grids, capacity=40).on("cpu")
            shape = (40,) if keys is None else keys.shape
            qkv = [x.detach() for x in tensors((40,), shape, (2, 2))]
            kv_index = None if keys is None else keys.on("cpu")
            got = compiled(*qkv, index, kv_index)
            want = attend(*(x.double() for x in qkv), layout=index, kv_layout=kv_index, backend="reference")
            assert (got.double() - want).norm() <= EPS * want.norm()
    rows = [x.detach() for x in tensors((2, 5), (2, 3), (2, 2))]
    want = attend(*(x.double() for x in rows), backend="reference")
    assert (compiled(*rows, None, None).double() - want).norm() <= EPS * want.norm()
    assert len(graphs) == 3
    flash._function.cache_clear()


@torch.library.custom_op("tubelet_tests::varlen", mutates_args=())
def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    return fakes.varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale)


@_varlen.register_fake
def _(q: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(q)


def opaque(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal
) -> Tensor:
    return _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [Joint(), Spatial(), Temporal(), Window((2, 2, 1))], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_real_kernels(pattern: Any, dtype: torch.dtype, kv_heads: int) -> None:
    shapes = ((*PACKED.shape, h, 64) for h in (4, kv_heads, kv_heads))
    qkv = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    how = {"pattern": pattern, "layout": PACKED.on("cuda")}
    out, want = attend(*qkv, backend="flash", **how), attend(*exact, backend="reference", **how)
    cotangent = torch.randn_like(out)
    grads = zip(
        torch.autograd.grad(out, qkv, cotangent), torch.autograd.grad(want, exact, cotangent.double()), strict=True
    )
    for g, w in ((out, want), *grads):
        assert (g.double() - w).norm() <= 4 * torch.finfo(dtype).eps * w.norm()
