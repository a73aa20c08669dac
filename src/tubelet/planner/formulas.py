"""Closed formulas of a transformer of equal layers, for sizes that no model file has: the matrices, and nothing else.

One multiply-accumulate is two floating-point operations; :mod:`tubelet.planner.counting` counts a real model exactly.
Shapes: ``d = dim``, ``n = tokens``, ``K = keys`` that a token attends.
"""

from tubelet.planner.amounts import check_amounts

__all__ = ["forward_flops", "layer_parameters", "sampling_flops", "training_flops"]


def layer_parameters(
    dim: int, *, mlp_dim: int | None = None, mlp_matrices: int = 2, attentions: int = 1, modulation: int = 0
) -> int:
    """Numbers in the matrices of one layer: ``4d²`` an attention, ``d·mlp_dim`` a matrix of the MLP, ``d²`` a vector.

    Args:
        dim: width of the tokens.
        mlp_dim: hidden width of the MLP; None for ``4·dim``.
        mlp_matrices: 2; 3 for a gated MLP (SwiGLU).
        attentions: 1; one more for cross-attention, or for an attention of its own over time.
        modulation: vectors that a condition makes for this layer alone: 6 for adaLN-Zero, 0 where layers share them.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> [layer_parameters(1, modulation=parts) for parts in (0, 6)], layer_parameters(1, attentions=2)
        ([12, 18], 16)
    """
    hidden = 4 * dim if mlp_dim is None else mlp_dim
    check_amounts(0, dim=dim, mlp_dim=hidden, mlp_matrices=mlp_matrices, attentions=attentions, modulation=modulation)
    return (4 * attentions + modulation) * dim * dim + mlp_matrices * dim * hidden


def forward_flops(
    tokens: int,
    dim: int,
    depth: int,
    *,
    keys: int | float | None = None,
    context: int = 0,
    mlp_dim: int | None = None,
    mlp_matrices: int = 2,
    attentions: int = 1,
) -> float:
    """Floating-point operations of one forward: ``depth·n·(24d² + 4d·K)`` for the plain layer, and cross-attention.

    Args:
        tokens: on the axis of self-attention.
        dim, depth: width and layers.
        keys: that a token attends, summed over its self-attentions; None for all tokens.
        context: tokens of text that every layer reads by cross-attention.
        mlp_dim, mlp_matrices, attentions: as in :func:`layer_parameters`; ``attentions`` without the cross-attention.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> forward_flops(10, 8, 1) == 10 * (24 * 8**2 + 4 * 8 * 10)
        True
    """
    check_amounts(0, tokens=tokens, depth=depth, keys=tokens if keys is None else keys, context=context)
    matrices = layer_parameters(dim, mlp_dim=mlp_dim, mlp_matrices=mlp_matrices, attentions=attentions)
    own = tokens * (2 * matrices + 4 * dim * (tokens if keys is None else keys))
    cross = 4 * dim * (dim * (tokens + context) + tokens * context) if context else 0
    return float(depth * (own + cross))


def training_flops(forward: int | float, *, recompute: bool = False) -> float:
    """Operations of one training step: three forwards, four where activations are recomputed.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> training_flops(10.0), training_flops(10.0, recompute=True)
        (30.0, 40.0)
    """
    check_amounts(0, forward=forward)
    return float(forward * (4 if recompute else 3))


def sampling_flops(forward: int | float, steps: int, *, guided: bool = True) -> float:
    """Operations of a sampler: a forward a step, two with classifier-free guidance.

    Raises:
        ValueError: ``steps`` is smaller than 1, or ``forward`` is negative; or one is no finite number.

    Example:
        >>> sampling_flops(10.0, 50), sampling_flops(10.0, 50, guided=False)
        (1000.0, 500.0)
    """
    check_amounts(0, forward=forward)
    check_amounts(1, steps=steps)
    return float(forward * steps * (2 if guided else 1))
