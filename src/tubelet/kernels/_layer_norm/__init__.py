"""Layer norm in float32 of half-precision tokens, without tokens in float32: PyTorch's mixed kernel on the CPU."""
