"""Public operations over the kernels."""
