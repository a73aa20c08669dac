"""Norm + modulate: reference, kernels, the operation around them."""
