"""Losses on patches: squared error per token and its masked mean. Shapes: ``(*lead, c)`` to ``(*lead)`` to a scalar."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["masked_mean", "squared_error"]


def squared_error(
    prediction: Float[Tensor, "*lead c"], target: Float[Tensor, "*lead c"], mask: Bool[Tensor, "*lead"] | None = None
) -> Float[Tensor, "*lead"]:
    """The mean squared difference over the last axis, in at least float32; 0 where ``mask`` is False.

    What stands outside the mask, NaN included, reaches neither the result nor a gradient.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> squared_error(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))
        tensor([5.])
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, but target has {tuple(target.shape)}")
    if mask is not None and mask.shape != prediction.shape[:-1]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, but prediction has {tuple(prediction.shape)}")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    difference = prediction.to(dtype) - target.to(dtype)
    if mask is not None:
        difference = torch.where(mask[..., None], difference, 0)
    return difference.square().mean(dim=-1)


def masked_mean(values: Float[Tensor, "*lead"], mask: Bool[Tensor, "*lead"] | None = None) -> Float[Tensor, ""]:
    """The mean over the tokens where ``mask`` is True (all without one); 0 where it is True nowhere.

    Values outside the mask may be anything, NaN included. An empty batch has no mean.

    Raises:
        ValueError: ``mask`` has another shape than ``values``, or there are no values.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if values.numel() == 0:
        raise ValueError(f"values must not be empty, got shape {tuple(values.shape)}")
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, but values has {tuple(values.shape)}")
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
