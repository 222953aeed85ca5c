"""Device and CPU side by side: what both make of a matrix, or why they refuse it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cuda.stand_in import StandIn
from tests.quant.kernel_types import overflowed_blocks
from tests.quant.sources import DTYPES, matrix, products
from weightcast.errors import LayoutError
from weightcast.quant.cpu.library import (
    BlockCounts,
    Blocks,
    Matrix,
    RangeError,
    ScaleOverflowError,
    quantize_matrix,
)
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.types import QuantType

UNTOUCHED = 0xA5
Quantize = Callable[[NDArray[np.uint8]], BlockCounts]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rows, complete unless refused, with their counts; the error if there was one."""

    rows: NDArray[np.uint8]
    counts: BlockCounts | None
    error: LayoutError | None


def outcome(quantize: Quantize, n_out: int, row_bytes: int) -> Outcome:
    """Let something write rows over a pattern."""
    rows = np.full((n_out, row_bytes), UNTOUCHED, np.uint8)
    try:
        return Outcome(rows, quantize(rows), None)
    except ScaleOverflowError as error:
        return Outcome(rows, error.counts, error)
    except LayoutError as error:
        return Outcome(rows, None, error)


def on_cpu(
    source: Matrix | Blocks, quant_type: QuantType, importance: NDArray[np.float32] | None = None
) -> Outcome:
    values = source.dequantized() if isinstance(source, Blocks) else source
    return outcome(
        lambda rows: quantize_matrix(values, quant_type, rows, importance),
        source.n_out,
        quant_type.row_bytes(source.n_in),
    )


def on_device(
    source: Matrix | Blocks,
    quant_type: QuantType,
    importance: NDArray[np.float32] | None = None,
    backend: CudaBackend | None = None,
) -> Outcome:
    """Quantize on device 0, in a backend whose memory ends where the data do, or in a given one."""
    if backend is None:
        with closing(CudaBackend(0, 0, 0)) as exact:
            return on_device(source, quant_type, importance, exact)
    return outcome(
        lambda rows: backend.quantize(source, quant_type, rows, importance),
        source.n_out,
        quant_type.row_bytes(source.n_in),
    )


def assert_same(
    source: Matrix | Blocks,
    quant_type: QuantType,
    importance: NDArray[np.float32] | None = None,
    backend: CudaBackend | None = None,
) -> Outcome:
    """Compare bytes, counts and errors; of several overflows the device names the first row's."""
    cpu = on_cpu(source, quant_type, importance)
    device = on_device(source, quant_type, importance, backend)
    assert type(device.error) is type(cpu.error), (device.error, cpu.error)
    assert device.counts == cpu.counts
    if device.error is not None and not isinstance(device.error, RangeError):
        assert str(device.error) == str(cpu.error)
        return device
    if isinstance(device.error, ScaleOverflowError):
        out, block = np.argwhere(overflowed_blocks(cpu.rows, quant_type))[0]
        assert (device.error.out, device.error.in_) == (out, block * quant_type.block_elements)
    elif device.error is not None:
        return device
    differing = np.flatnonzero((device.rows != cpu.rows).any(axis=1))
    assert differing.size == 0, (quant_type.name, source.n_out, source.n_in, differing[:9])
    return device


def assert_same_of(
    x: NDArray[Any],
    quant_type: QuantType,
    scales: NDArray[np.float32] | None = None,
    importance: NDArray[np.float32] | None = None,
    backend: CudaBackend | None = None,
) -> Outcome:
    """Compare for [n_out, n_in] at positive strides; of plain floats also the place of overflow."""
    made = assert_same(matrix(x, scales), quant_type, importance, backend)
    if isinstance(made.error, RangeError) and quant_type.block_elements == 1:
        values = x.astype(np.float32) if scales is None else products(x, scales)
        with np.errstate(over="ignore"):
            narrow = values.astype(DTYPES[quant_type.name]).astype(np.float32)
        out, in_ = np.argwhere(np.isinf(narrow))[0]
        assert (made.error.out, made.error.in_) == (out, in_)
    return made


def assert_nothing_is_left(driver: StandIn, work: Callable[[], None]) -> None:
    """Let something work twice, first to load its kernels, and look at what is on the devices."""
    work()
    gc.collect()
    before = driver.live()
    work()
    gc.collect()
    assert driver.live() == before
