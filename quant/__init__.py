"""Quantization: arrays in, bytes out. Files and models are unknown here.

`types` lists the types, `backend` is what carries them out: `CpuBackend`, or `cuda.CudaBackend`;
`devices` chooses. `arrays` is the public face for numpy arrays, `metrics` measures errors.
"""
