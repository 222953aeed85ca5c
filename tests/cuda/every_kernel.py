"""A program that runs every kernel once, for tools that watch a device: compute-sanitizer.

Its arguments: types to quantize to, separated by commas, instead of all; the effort of a search.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from itertools import product

import numpy as np

from weightcast.quant.cpu.library import Matrix, RangeError, quantize_matrix
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.cuda.groups import same_groups
from weightcast.quant.cuda.kernels import dequantizer
from weightcast.quant.groups import quantize_groups
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import TYPES, GroupType


def main(types: Sequence[str] = tuple(TYPES), search: Search = GGML) -> None:
    """Quantize to every type and to groups, with and without importance, unpack and measure."""
    rng = np.random.default_rng(0)
    n_out, n_in = 33, 768
    codes = rng.integers(-128, 128, (n_in, n_out), np.int8).reshape(-1)
    scales = rng.random((3, n_out), np.float32)
    values = rng.standard_normal(n_out * n_in, np.float32)
    sources = (
        Matrix(codes, "I8", n_out, n_in, 1, n_out, scales=scales),
        Matrix(values, "F32", n_out, n_in, n_in, 1),
        Matrix(values.astype(np.float16), "F16", n_out, n_in, 1, n_out),
        Matrix(values.view(np.uint16)[1::2].copy(), "BF16", n_out, n_in, n_in, 1),
    )
    importance = rng.random(n_in, np.float32)
    backend = CudaBackend(0, 0, 0)
    for quant_type in map(TYPES.__getitem__, types):
        for given in (None, importance):
            if given is None and quant_type.importance == "required":
                continue
            for source in sources:
                wanted = np.zeros((n_out, quant_type.row_bytes(n_in)), np.uint8)
                made = np.ones_like(wanted)
                for quantize, rows in ((quantize_matrix, wanted), (backend.quantize, made)):
                    with contextlib.suppress(RangeError):
                        quantize(source, quant_type, rows, given, search)
                assert np.array_equal(made, wanted), (quant_type.name, source.dtype)
                backend.measure(source, quant_type, made)
        dequantizer(open_gpu(0), quant_type)  # compares with the CPU's by itself
    for group_type in (GroupType(4, 128), GroupType(8, 0, symmetric=False, scale_dtype="F32")):
        for given, source in product((None, importance), sources):
            wanted = quantize_groups(source, group_type, given)
            made_groups = backend.quantize_groups(source, group_type, given)
            assert same_groups(made_groups, wanted), (group_type, source.dtype)
    backend.close()
    print("every kernel makes the CPU's bytes")


if __name__ == "__main__":
    chosen = sys.argv[1].split(",") if sys.argv[1:] else tuple(TYPES)
    main(chosen, Search(int(sys.argv[2])) if sys.argv[2:] else GGML)
