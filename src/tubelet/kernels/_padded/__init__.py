"""Norm + SiLU + padding for causal convolutions: reference, kernels, the operation around them."""
