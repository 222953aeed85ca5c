"""The same kernels on NVIDIA GPUs, by the CUDA driver and NVRTC alone; no CUDA package is imported.

`driver` binds the C library, `compile` and `cache` make kernels for a device, `launch` starts them,
`backend` is what the rest of weightcast calls.
"""
