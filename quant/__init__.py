"""Arrays in, bytes out: quantization types, kernels, errors. Knows no file and no model."""
