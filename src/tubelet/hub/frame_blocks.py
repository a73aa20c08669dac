"""What the adapters of autoencoders of images and of their descendants share: the names of LDM's blocks, one scale."""

from collections.abc import Sequence

from tubelet.hub.convolutions import framewise
from tubelet.hub.keys import Entry, renamed

__all__ = ["frame_attention_keys", "frame_res_keys", "normed_conv_keys", "one_scale"]


def normed_conv_keys(ours: str, norm: str, conv: str) -> Sequence[Entry]:
    """A norm and the flat convolution behind it, which theirs has side by side.

    Example:
        >>> normed_conv_keys("head", "conv_norm_out", "conv_out")[2].theirs
        ('conv_out.weight',)
    """
    return (*renamed(f"{ours}.norm.norm", norm), *framewise(f"{ours}.conv.conv", conv))


def frame_res_keys(ours: str, theirs: str) -> Sequence[Entry]:
    """The residual block of images, ``ResnetBlock2D``.

    Example:
        >>> frame_res_keys("a", "b")[-1].ours
        ('a.shortcut.inner.bias',)
    """
    return (
        *normed_conv_keys(f"{ours}.branch.0", f"{theirs}.norm1", f"{theirs}.conv1"),
        *normed_conv_keys(f"{ours}.branch.1", f"{theirs}.norm2", f"{theirs}.conv2"),
        *framewise(f"{ours}.shortcut.inner", f"{theirs}.conv_shortcut"),
    )


def frame_attention_keys(ours: str, theirs: str) -> Sequence[Entry]:
    """The attention inside a frame, after its group norm.

    Example:
        >>> frame_attention_keys("a", "b")[2].theirs
        ('b.to_q.weight',)
    """
    inner = f"{ours}.branch.inner"
    return (
        *renamed(f"{inner}.norm.norm", f"{theirs}.group_norm"),
        *(entry for name in "qkv" for entry in renamed(f"{inner}.attention.{name}_proj", f"{theirs}.to_{name}")),
        *renamed(f"{inner}.attention.out_proj", f"{theirs}.to_out.0"),
    )


def one_scale(latent_mean: Sequence[float], latent_std: Sequence[float], peer: str) -> tuple[float, float]:
    """The factor and the shift of a peer that has one for all channels: ``(z - shift) · factor`` has unit variance.

    The factor is rounded to fifteen digits, so that 0.18215 comes back from its inverse.

    Raises:
        ValueError: statistics that differ between channels.

    Example:
        >>> one_scale((), (1 / 0.18215,) * 4, "Peer")
        (0.18215, 0.0)
    """
    means, stds = {*latent_mean} or {0.0}, {*latent_std} or {1.0}
    if len(means) > 1 or len(stds) > 1:
        raise ValueError(f"latent_mean {latent_mean} and latent_std {latent_std} differ by channel, but {peer} has one")
    return float(f"{1 / stds.pop():.15g}"), means.pop()
