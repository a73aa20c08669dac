"""The transform: which modules use kernels, and the way back."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.decoupled import DecoupledCrossAttention
from tubelet.attention.joined import JoinedCrossAttention
from tubelet.attention.modules import Attention, CrossAttention, normed_and_turned
from tubelet.attention.normed import fused_normed_and_turned, fused_normed_heads, head_norm
from tubelet.attention.projections import normed_heads
from tubelet.attention.streams import ParallelAttention
from tubelet.blocks import Branch, TransformerBlock, gated, in_turn, norm_modulate
from tubelet.fused._branches import gated_residual, joined_in_turn, joined_streams, norm_modulated, pays
from tubelet.fused._layers import FusedLayerNorm, FusedLinear, plain_norm
from tubelet.hooks import heard
from tubelet.kernels import Activation, linear, norm_silu_pad
from tubelet.kernels._padded.reference import Before
from tubelet.mlp import MLP, raised
from tubelet.norms import LayerNorm
from tubelet.positions import Rotary
from tubelet.streams import MultiStreamBlock, streams_in_turn
from tubelet.vae.blocks import ChannelNorm
from tubelet.vae.causal import CausalConv3d, copies, zeros
from tubelet.vae.chains import NormedConv, convolved
from tubelet.vae.group_norms import FrameGroupNorm

__all__ = ["unfused", "use_eager", "use_kernels"]

Filter = Callable[[str, nn.Module], bool]


_CLASSES: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.Linear, FusedLinear),
    (LayerNorm, FusedLayerNorm),
)
"""Modules that become another class, in place, and which."""


def use_kernels(model: nn.Module, filter: Filter | None = None) -> list[str]:
    """Let the modules that have a fused kernel use it: Triton on CUDA, oneDNN on the CPU, else the same formula.

    Results and gradients differ from eager ones by rounding only: in half precision the kernels round once where eager
    code rounds between norm, modulation and rotation, or between a projection and its activation.
    A module with a forward, or one of these functions, of its own or of its class's stays as it is.
    :func:`use_eager` undoes it.

    Args:
        model: changed in place; a module that is itself such a branch or attention counts.
        filter: says of a module's name and the module whether to change it; None means all.

    Returns:
        The names of the modules changed.

    Example:
        >>> from tubelet.conditioning import AdaLNZero
        >>> block = nn.ModuleList([Branch(nn.Linear(8, 8), LayerNorm(8), modulation=AdaLNZero(8, 8))])
        >>> use_kernels(block) == use_eager(block) == ["0", "0.inner", "0.norm", "0.modulation.proj"]
        True
    """
    changed = []
    for name, module in model.named_modules():
        if filter is not None and not filter(name, module):
            continue
        replaced = [each for each in _FUNCTIONS if each.stands_in(module)]
        for each in replaced:
            setattr(module, each.name, each.fused)
        fused = dict(_CLASSES).get(type(module))
        if fused is not None and "forward" not in vars(module):
            module.__class__ = fused
        elif not replaced:
            continue
        changed.append(name)
    return changed


def unfused(model: nn.Module) -> dict[str, str]:
    """Attention modules with norms of queries and keys that :func:`use_kernels` leaves as they are, and why.

    Example:
        >>> from tubelet.norms import UnitNorm
        >>> unfused(Attention(8, 2, qk_norm=UnitNorm))
        {'': 'its q_norm, UnitNorm, has no kernel'}
    """
    attentions = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (Attention, *_CROSSING)) and _qk_normed(module)
    )
    found = ((name, _qk_refusal(module)) for name, module in attentions)
    return {name: reason for name, reason in found if reason is not None}


def use_eager(model: nn.Module) -> list[str]:
    """Undo :func:`use_kernels`; returns the names of the modules changed back.

    Example:
        >>> use_eager(nn.Linear(2, 2))
        []
    """
    changed = []
    for name, module in model.named_modules():
        found = [plain for plain, fused in _CLASSES if type(module) is fused]
        if found:
            module.__class__ = found[0]
        undone = {each.name for each in _FUNCTIONS if vars(module).get(each.name) is each.fused}
        for each in undone:
            delattr(module, each)
        if found or undone:
            changed.append(name)
    return changed


def _raised(up: nn.Module, act: Callable[[Tensor], Tensor], x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead h"]:
    """A projection and its activation; what is not a plain ``nn.Linear`` that nobody listens to stays as it is."""
    name = _activation(act)
    if name is None or type(up) not in (nn.Linear, FusedLinear) or heard(up):
        return raised(up, act, x)
    assert isinstance(up, nn.Linear)
    return linear(x, up.weight, up.bias, act=name)


def _activation(act: Callable[[Tensor], Tensor]) -> Activation | None:
    if type(act) is nn.GELU and not heard(act):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if type(act) is nn.SiLU and not heard(act):
        return "silu"
    return None


def _normed_and_turned(
    attention: Attention, q: Float[Tensor, "*lead hd"], k: Float[Tensor, "*lead hkd"], rope: Rotary | None
) -> tuple[Float[Tensor, "*lead h d"], Float[Tensor, "*lead hk d"]]:
    """Queries and keys from their projections, by one kernel while nobody listens to their norms."""
    listened = heard(attention.q_norm) or heard(attention.k_norm)
    return (normed_and_turned if listened else fused_normed_and_turned)(attention, q, k, rope)


def _normed_heads(norm: nn.Module, x: Tensor, width: int, head_dim: int) -> Tensor:
    """The same of queries or keys alone."""
    return (normed_heads if heard(norm) else fused_normed_heads)(norm, x, width, head_dim)


def _convolved(norm: nn.Module, conv: nn.Module, x: Float[Tensor, "b c t h w"], state: Tensor | None) -> Any:
    """What a convolution behind a norm computes, and its state; it pads by zeros for nothing, by edges not."""
    assert isinstance(conv, CausalConv3d)
    past = conv.conv.kernel_size[0] - 1
    wrong = state is not None and state.shape[2] != past
    if wrong or not pays(x) or any(map(heard, (conv, *norm.modules()))):
        return convolved(norm, conv, x, state)
    before: Before = "copies" if conv.before is copies else "zeros"
    made: dict[str, Any] = {**_padded_norm(norm), "state": state, "frames": past, "before": before}
    bordered = conv.conv.padding_mode == "replicate" and not heard(conv.conv)
    if bordered:
        made |= {"around": tuple(conv.conv.padding[1:]), "edges": "replicate"}
    return conv.followed(norm_silu_pad(x, **made), bordered)


def _padded_norm(norm: nn.Module) -> dict[str, Any]:
    """A norm of channels as arguments of the kernel; empty where there is none for it."""
    if type(norm) is ChannelNorm:
        return {"norm": "rms", "eps": norm.eps, "weight": norm.weight, "bias": norm.bias}
    groups = norm.norm if type(norm) is FrameGroupNorm else norm
    if type(groups) is not nn.GroupNorm:
        return {}
    affine = {"weight": groups.weight, "bias": groups.bias}
    return {"norm": "group", "groups": groups.num_groups, "eps": groups.eps, "per_frame": groups is not norm, **affine}


def _padded(layer: NormedConv) -> bool:
    """Whether the kernel knows the norm and what stands before the frames; a stride checks these first."""
    conv = layer.conv
    known = type(conv) is CausalConv3d and conv.before in (copies, zeros) and conv.conv.stride == (1, 1, 1)
    return known and bool(_padded_norm(layer.norm))


def _modulated(branch: Branch) -> bool:
    return branch.modulation is not None and {"shift", "scale"} <= set(branch.parts)


def _qk_norms(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if name.endswith(("q_norm", "k_norm"))}


def _qk_normed(module: nn.Module) -> bool:
    return not all(isinstance(norm, nn.Identity) for norm in _qk_norms(module).values())


def _crosses(module: nn.Module) -> bool:
    return _qk_normed(module) and _qk_refusal(module) is None


def _qk_refusal(module: nn.Module) -> str | None:
    """Why no kernel does what an attention does to its queries and keys; None where one does."""
    if type(module) not in (Attention, *_CROSSING):
        return f"{type(module).__name__} may compute otherwise than the class it is made of"
    for name in ("forward", "normed_and_turned", "normed_heads"):
        if vars(module).get(name) not in (None, _normed_and_turned, _normed_heads):
            return f"it has a {name} of its own"
    norms = _qk_norms(module)
    for name, norm in norms.items():
        if not isinstance(norm, nn.Identity) and not plain_norm(norm):
            why = "has hooks" if head_norm(norm) else "has no kernel"
            return f"its {name}, {type(norm).__name__}, {why}"
    described = {name: (head_norm(norm), getattr(norm, "eps", None)) for name, norm in norms.items()}
    if isinstance(module, Attention) and len(set(described.values())) > 1:
        return f"its norms differ in kind or eps: {described}"
    return None


_CROSSING = (CrossAttention, JoinedCrossAttention, DecoupledCrossAttention)


class _Function(NamedTuple):
    """A function that modules of a kind compute by, the one that stands for it, and in which of them it can."""

    kind: type[nn.Module]
    name: str
    plain: Callable[..., Any]
    fused: Callable[..., Any]
    serves: Callable[[Any], bool] = lambda _: True

    def stands_in(self, module: nn.Module) -> bool:
        """Whether a module computes as its kind does: not by a function or a forward of its own or of its class."""
        if not isinstance(module, self.kind) or _reforwarded(module, self.kind):
            return False
        given = vars(module).get(self.name) in (None, self.fused) and getattr(type(module), self.name) is self.plain
        return given and self.serves(module)


def _reforwarded(module: nn.Module, kind: type[nn.Module]) -> bool:
    return "forward" in vars(module) or type(module).forward is not kind.forward


_FUNCTIONS = (
    _Function(Branch, "gated", gated, gated_residual),
    _Function(Branch, "norm_modulate", norm_modulate, norm_modulated, lambda x: _modulated(x) and plain_norm(x.norm)),
    _Function(TransformerBlock, "in_turn", in_turn, joined_in_turn),
    _Function(MultiStreamBlock, "in_turn", streams_in_turn, joined_streams),
    _Function(Attention, "normed_and_turned", normed_and_turned, _normed_and_turned, lambda x: _qk_refusal(x) is None),
    *(_Function(kind, "normed_heads", normed_heads, _normed_heads, _crosses) for kind in _CROSSING),
    _Function(MLP, "raised", raised, _raised),
    _Function(ParallelAttention, "raised", raised, _raised),
    _Function(NormedConv, "convolved", convolved, _convolved, _padded),
)
