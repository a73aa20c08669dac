"""Fused kernels in a finished model: an explicit transform with a filter, and its way back.

``use_kernels`` changes how some kinds of module compute, never what they hold: parameters, buffers, submodules and
state-dict keys stay as they are, so checkpoints, optimisers, PEFT and EMA copies do not notice.

- A :class:`tubelet.blocks.Branch` with a modulation and a plain layer or RMS norm: norm + modulate.
- A :class:`tubelet.attention.Attention` with RMS norms of queries and keys: qk-norm + RoPE, where it gets rotations.
- An ``nn.Linear``: oneDNN's product on the CPU.
- A :class:`tubelet.norms.LayerNorm`: PyTorch's kernel of two precisions on the CPU.
- A :class:`tubelet.mlp.MLP` or :class:`tubelet.attention.ParallelAttention`: its first projection and its activation.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.modules import Attention, normed_and_turned
from tubelet.attention.streams import ParallelAttention
from tubelet.blocks import Branch
from tubelet.kernels import Activation, Norm, layer_norm, linear, norm_modulate, qk_norm_rope
from tubelet.layout import Rows
from tubelet.mlp import MLP, raised
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rotary

__all__ = ["FusedLayerNorm", "FusedLinear", "use_eager", "use_kernels"]

Filter = Callable[[str, nn.Module], bool]


class FusedLinear(nn.Linear):
    """An ``nn.Linear`` whose forward is :func:`tubelet.kernels.linear`: what ``use_kernels`` makes of one.

    Example:
        >>> import torch
        >>> FusedLinear(2, 3)(torch.ones(4, 2)).shape
        torch.Size([4, 3])
    """

    def forward(self, input: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead e"]:
        """As ``nn.Linear``."""
        return linear(input, self.weight, self.bias)


class FusedLayerNorm(LayerNorm):
    """A layer norm whose forward is :func:`tubelet.kernels.layer_norm`: what ``use_kernels`` makes of one.

    Example:
        >>> import torch
        >>> FusedLayerNorm(2)(torch.tensor([[1.0, 3.0]])).shape
        torch.Size([1, 2])
    """

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """As the plain norm, which also says what is wrong with a width."""
        if x.shape[-1] != self.dim:
            return super().forward(x)
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


_CLASSES: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.Linear, FusedLinear),
    (LayerNorm, FusedLayerNorm),
)
"""Modules that become another class, in place, and which."""


def use_kernels(model: nn.Module, filter: Filter | None = None) -> list[str]:
    """Let the modules that have a fused kernel use it: Triton on CUDA, oneDNN on the CPU, else the same formula.

    Results and gradients differ from eager ones by rounding only: in half precision the kernels round once where eager
    code rounds between norm, modulation and rotation, or between a projection and its activation.
    :func:`use_eager` undoes it.

    Args:
        model: changed in place; a module that is itself such a branch or attention counts.
        filter: says of a module's name and the module whether to change it; None means all.

    Returns:
        The names of the modules changed.

    Example:
        >>> from tubelet.conditioning import AdaLNZero
        >>> block = nn.ModuleList([Branch(nn.Linear(8, 8), LayerNorm(8), modulation=AdaLNZero(8, 8))])
        >>> use_kernels(block), use_eager(block)
        (['0', '0.inner', '0.norm', '0.modulation.proj'], ['0', '0.inner', '0.norm', '0.modulation.proj'])
    """
    changed = []
    for name, module in model.named_modules():
        if filter is not None and not filter(name, module):
            continue
        if isinstance(module, Branch) and _modulated(module) and _plain_norm(module.norm):
            module.norm_modulate = _norm_modulate
        elif isinstance(module, Attention) and _qk_norms(module):
            module.normed_and_turned = _normed_and_turned
        elif isinstance(module, MLP | ParallelAttention):
            module.raised = _raised
        elif type(module) in dict(_CLASSES):
            module.__class__ = dict(_CLASSES)[type(module)]
        else:
            continue
        changed.append(name)
    return changed


def use_eager(model: nn.Module) -> list[str]:
    """Undo :func:`use_kernels`; returns the names of the modules changed back.

    Example:
        >>> use_eager(nn.Linear(2, 2))
        []
    """
    changed = []
    for name, module in model.named_modules():
        for plain, fused in _CLASSES:
            if type(module) is fused:
                module.__class__ = plain
                changed.append(name)
        for kind, attribute in _REPLACED:
            if isinstance(module, kind) and vars(module).pop(attribute, None) is not None:
                changed.append(name)
    return changed


_REPLACED: tuple[tuple[type[nn.Module], str], ...] = (
    (Branch, "norm_modulate"),
    (Attention, "normed_and_turned"),
    (MLP, "raised"),
    (ParallelAttention, "raised"),
)


def _raised(up: nn.Module, act: Callable[[Tensor], Tensor], x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead h"]:
    """A projection and its activation; what is not a plain ``nn.Linear`` that nobody listens to stays as it is."""
    name = _activation(act)
    if name is None or type(up) not in (nn.Linear, FusedLinear) or _heard(up):
        return raised(up, act, x)
    assert isinstance(up, nn.Linear)
    return linear(x, up.weight, up.bias, act=name)


def _activation(act: Callable[[Tensor], Tensor]) -> Activation | None:
    if type(act) is nn.GELU and not _heard(act):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if type(act) is nn.SiLU and not _heard(act):
        return "silu"
    return None


def _norm_modulate(norm: nn.Module, x: Float[Tensor, "*lead d"], shift: Rows, scale: Rows) -> Float[Tensor, "*lead d"]:
    """What a branch computes before its inner module."""
    assert isinstance(norm, LayerNorm | RMSNorm)
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    kind: Norm = "layer" if isinstance(norm, LayerNorm) else "rms"
    return norm_modulate(x, shift, scale, norm=kind, weight=norm.weight, bias=bias, eps=norm.eps, dtype=x.dtype)


def _normed_and_turned(
    attention: Attention, q: Float[Tensor, "*lead hd"], k: Float[Tensor, "*lead hkd"], rope: Rotary | None
) -> tuple[Float[Tensor, "*lead h d"], Float[Tensor, "*lead hk d"]]:
    """What an attention does to its projected queries and keys; rotations that the kernel does not know stay eager."""
    if rope is None or rope.per_head or rope.layout == "half_per_axis":
        return normed_and_turned(attention, q, k, rope)
    q_norm, k_norm = attention.q_norm, attention.k_norm
    assert isinstance(q_norm, RMSNorm)
    assert isinstance(k_norm, RMSNorm)
    q, k = (x.reshape(*x.shape[:-1], -1, attention.head_dim) for x in (q, k))
    return qk_norm_rope(q, k, rope, q_norm.weight, k_norm.weight, eps=q_norm.eps)


def _modulated(branch: Branch) -> bool:
    return branch.modulation is not None and {"shift", "scale"} <= set(branch.parts)


def _plain_norm(norm: nn.Module) -> bool:
    """A norm that the kernel computes, and that nobody listens to."""
    return type(norm) in (LayerNorm, FusedLayerNorm, RMSNorm) and not _heard(norm)


def _heard(module: nn.Module) -> bool:
    """Whether somebody listens to a module, which one kernel for it and its neighbour would pass by."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _qk_norms(attention: Attention) -> bool:
    q, k, per_head = attention.q_norm, attention.k_norm, (attention.head_dim, attention.head_dim)
    if (
        type(attention) is not Attention
        or attention.norm_widths != per_head
        or not (isinstance(q, RMSNorm) and isinstance(k, RMSNorm))
    ):
        return False
    return _plain_norm(q) and _plain_norm(k) and q.eps == k.eps
