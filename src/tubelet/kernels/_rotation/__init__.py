"""QK-norm + RoPE: reference, kernels, the operation around them."""
