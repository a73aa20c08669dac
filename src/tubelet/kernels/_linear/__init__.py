"""A linear map and its activation in one pass: oneDNN on the CPU."""
