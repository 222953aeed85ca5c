"""The search for the least error on a device: the CPU's bytes, at every effort."""

from __future__ import annotations

import contextlib
from contextlib import closing
from itertools import product

import numpy as np
import pytest

from tests.cuda.exporters import DlpackArray, read
from tests.cuda.stand_in import StandIn
from tests.quant.families import grok_like
from tests.quant.kernel_types import BLOCK_TYPES
from tests.quant.sources import matrix, source_of
from tests.support import some
from weightcast.quant.arrays import quantize
from weightcast.quant.cpu.library import BlockCounts, ScaleOverflowError, quantize_matrix
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.search import EFFORTS, Search
from weightcast.quant.types import BF16, SOURCE_TYPES, QuantType

# One of each search, as compiling takes seconds.
CHOSEN = {
    *(("Q8_0", "I8"), ("Q4_0", "F32"), ("Q4_K", "BF16"), ("Q6_K", "F32"), ("IQ4_XS", "F16")),
    *(("NVFP4", "I8"), ("TQ2_0", "F32"), ("IQ3_S", "I8"), ("IQ2_XXS", "F32"), ("IQ1_S", "F32")),
}
with_source = pytest.mark.parametrize(
    ("quant_type", "dtype"),
    some(
        product(BLOCK_TYPES.values(), SOURCE_TYPES),
        lambda quant_type, dtype: (quant_type.name, dtype) in CHOSEN,
    ),
    ids=str,
)


@with_source
def test_the_least_error_is_the_processors(
    kernels: StandIn | None, quant_type: QuantType, dtype: str
) -> None:
    n_out, n_in = 9, 2 * quant_type.block_elements
    rng = np.random.default_rng(80)
    if dtype == "I8":
        codes = np.asfortranarray(rng.integers(-128, 128, (n_out, n_in), np.int8))
        # Half of a block each; some scales are exact in float16.
        scales = rng.random((4, n_out), np.float32)
        scales[:, ::3] = 0.25
        source = matrix(codes, scales)
    else:
        source = matrix(source_of(grok_like(rng, (n_out, n_in)), dtype))
    importance = rng.random(n_in, np.float32)
    with closing(CudaBackend(0, 0, 0)) as backend:
        for effort, weights in product(EFFORTS, (None, importance)):
            if weights is None and quant_type.importance == "required":
                continue
            found = []
            for make in (quantize_matrix, backend.quantize):
                rows = np.full((n_out, quant_type.row_bytes(n_in)), 0xA5, np.uint8)
                counts = BlockCounts()
                with contextlib.suppress(ScaleOverflowError):
                    counts = make(source, quant_type, rows, weights, Search(effort))
                found.append((rows.tobytes(), counts))
            assert found[0] == found[1], (effort, weights is not None)


def test_arrays_on_a_device_are_searched(kernels: StandIn | None) -> None:
    gpu = open_gpu(0)
    x = grok_like(np.random.default_rng(81), (5, 64))
    importance = np.linspace(0, 2, 64, dtype=np.float32)
    made = quantize(DlpackArray.of(gpu, x), "Q4_0", importance, search="least-error", effort=3)
    wanted = quantize(x, "Q4_0", importance, search="least-error", effort=3)
    assert np.array_equal(read(made, gpu), wanted)
    assert not np.array_equal(wanted, quantize(x, "Q4_0", importance))


def test_plain_floats_have_nothing_to_search(kernels: StandIn | None) -> None:
    gpu = open_gpu(0)
    kinds = {id(cuda_kernels.quantizer(gpu, BF16, False, "F32", Search(n))) for n in range(4)}
    assert len(kinds) == 1
    x = grok_like(np.random.default_rng(82), (3, 40))
    made = quantize(DlpackArray.of(gpu, x), "BF16", search="least-error")
    assert np.array_equal(read(made, gpu), quantize(x, "BF16"))
