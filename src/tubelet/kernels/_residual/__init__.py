"""Gate + residual, alone and with the next norm + modulate: reference, kernels, the operations around them."""
