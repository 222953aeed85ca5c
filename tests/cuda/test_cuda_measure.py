"""Errors measured on a device have the CPU's bits, and a source is copied once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda.exporters import DeviceArray, DlpackArray, InterfaceArray
from tests.cuda.stand_in import StandIn
from tests.quant import sources
from weightcast.errors import DeviceError, LayoutError
from weightcast.quant.arrays import measure, quantize
from weightcast.quant.cpu.library import Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.cuda.jobs import moments_bytes
from weightcast.quant.cuda.launch import chunks_of, error_launch
from weightcast.quant.metrics import MOMENTS, Errors
from weightcast.quant.search import Search
from weightcast.quant.types import F16, Q4_K, Q8_0, TYPES, QuantType

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def backend(kernels: StandIn | None) -> Iterator[CudaBackend]:
    made = CudaBackend(0, 0, 0)
    yield made
    made.close()


def values(n_out: int, n_in: int) -> NDArray[np.float32]:
    """Draw [n_out, n_in] at scales far apart, with a row of zeros and one of a constant."""
    rng = np.random.default_rng(n_in)
    x = rng.standard_normal((n_out, n_in)) * 10 ** rng.uniform(-6, 2, (n_out, 1))
    x[: n_out // 2, :256] *= 1e-9
    x[0], x[-1] = 0, 0.25
    return x.astype(np.float32)


def any_rows(n_out: int, n_in: int, quant_type: QuantType) -> NDArray[np.uint8]:
    """Draw blocks of any bits, also with infinite scales; the first row is all zeros."""
    rows = np.random.default_rng(9).integers(0, 256, (n_out, quant_type.row_bytes(n_in)), np.uint8)
    rows[0] = 0
    return rows


def require_same(found: Errors, wanted: Errors) -> None:
    for name in MOMENTS.names or ():
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


@pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
def test_any_blocks_give_the_bits_of_the_cpu(backend: CudaBackend, quant_type: QuantType) -> None:
    for n_out, n_in in ((1, 256), (130, 2304), (3, 6400)):
        matrix = sources.matrix(
            values(n_out, n_in) if n_out > 1 else np.ones((1, n_in), np.float32)
        )
        rows = any_rows(n_out, n_in, quant_type)
        wanted = measure_matrix(matrix, quant_type, rows)
        require_same(backend.measure(matrix, quant_type, rows), wanted)


@pytest.mark.parametrize("layout", sources.LAYOUTS)
@pytest.mark.parametrize("dtype", [*sources.DTYPES, "I8"])
def test_sources_of_every_dtype_and_layout(backend: CudaBackend, dtype: str, layout: str) -> None:
    rng = np.random.default_rng(1)
    scales = None
    if dtype == "I8":
        x = rng.integers(-128, 128, (70, 2304), np.int8)
        scales = rng.random((9, 70), np.float32)
    else:
        x = sources.source_of(values(70, 2304), dtype)
    matrix = sources.matrix(sources.place(x, layout), scales)
    for quant_type in (Q4_K, F16):
        rows = np.zeros((70, quant_type.row_bytes(2304)), np.uint8)
        counts = quantize_matrix(matrix, quant_type, rows)
        wanted = measure_matrix(matrix, quant_type, rows)
        require_same(backend.measure(matrix, quant_type, rows), wanted)
        made = np.zeros_like(rows)
        found = backend.quantize_and_measure(matrix, quant_type, made)
        assert found[0] == counts
        require_same(found[1], wanted)
        np.testing.assert_array_equal(made, rows)


def test_the_length_of_plain_floats_may_be_odd(backend: CudaBackend) -> None:
    matrix = sources.matrix(values(7, 2049 + 37))
    rows = any_rows(7, matrix.n_in, F16)
    require_same(backend.measure(matrix, F16, rows), measure_matrix(matrix, F16, rows))


def test_blocks_as_a_source(backend: CudaBackend) -> None:
    x = values(20, 512)
    stored = sources.quantized(x, Q8_0)[0]
    source = Blocks(stored.reshape(-1), Q8_0, 20, 512)
    rows = np.zeros((20, Q4_K.row_bytes(512)), np.uint8)
    _, found = backend.quantize_and_measure(source, Q4_K, rows)
    wanted = measure_matrix(source.dequantized(), Q4_K, rows)
    require_same(found, wanted)
    require_same(backend.measure(source, Q4_K, rows), wanted)


def test_nothing_is_copied_twice(backend: CudaBackend, only_stand_in: StandIn) -> None:
    matrix = sources.matrix(values(40, 2304))
    rows = np.zeros((40, Q4_K.row_bytes(2304)), np.uint8)
    backend.quantize_and_measure(matrix, Q4_K, rows)  # loads and proves the kernels
    only_stand_in.reset()
    backend.quantize_and_measure(matrix, Q4_K, rows)
    assert only_stand_in.counter("bytes_in") == 40 * 2304 * 4
    found = only_stand_in.counter("bytes_out") - rows.nbytes - 40 * MOMENTS.itemsize
    assert 0 < found < 100


@pytest.mark.parametrize("quant_type", [F16, Q8_0, Q4_K], ids=lambda t: t.name)
def test_blocks_of_the_least_error_are_measured(
    backend: CudaBackend, quant_type: QuantType
) -> None:
    matrix = sources.matrix(values(33, 512))
    importance = np.linspace(0, 2, 512, dtype=np.float32)
    wanted, made, measured = (np.empty((33, quant_type.row_bytes(512)), np.uint8) for _ in "abc")
    quantize_matrix(matrix, quant_type, wanted, importance, Search(1))
    errors = measure_matrix(matrix, quant_type, wanted, importance)
    backend.quantize(matrix, quant_type, made, importance, Search(1))
    _, found = backend.quantize_and_measure(
        matrix, quant_type, measured, importance, search=Search(1)
    )
    np.testing.assert_array_equal(made, wanted)
    np.testing.assert_array_equal(measured, wanted)
    require_same(found, errors)


def test_nothing_to_measure(backend: CudaBackend) -> None:
    empty = np.zeros(0, np.uint8)
    matrix = Matrix(empty.view(np.float32), "F32", 3, 0, 0, 1)
    assert backend.measure(matrix, Q8_0, empty).weights.tolist() == [0, 0, 0]
    assert backend.quantize_and_measure(matrix, Q8_0, empty)[1].exact.tolist() == [0, 0, 0]


def test_refusals(backend: CudaBackend) -> None:
    codes = sources.matrix(np.zeros((2, 64), np.int8), np.ones((5, 2), np.float32))
    with pytest.raises(LayoutError, match="do not divide into the scale groups"):
        backend.measure(codes, Q8_0, np.zeros((2, 68), np.uint8))
    with pytest.raises(LayoutError, match="does not fill Q4_K blocks"):
        backend.measure(codes, Q4_K, np.zeros((2, 68), np.uint8))
    nan = sources.matrix(np.full((2, 64), np.nan, np.float32))
    with pytest.raises(LayoutError, match="NaN or infinity"):
        backend.quantize_and_measure(nan, Q8_0, np.zeros((2, 68), np.uint8))


def test_kernels_that_add_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_kernels._measurer.cache_clear()
    enqueue_measure = cuda_kernels.enqueue_measure

    def and_forget_a_row(stream, measurer, job, moments, baseline):  # type: ignore[no-untyped-def]
        enqueue_measure(stream, measurer, job, moments, baseline)
        stream.fill(moments + 36 * MOMENTS.itemsize, 8)

    monkeypatch.setattr(cuda_kernels, "enqueue_measure", and_forget_a_row)
    with pytest.raises(DeviceError, match="weightcast_measure_Q4_K_from_F32 makes other bytes"):
        cuda_kernels.measurer(open_gpu(0), Q4_K, "F32")


@pytest.mark.parametrize("speaker", [DlpackArray, InterfaceArray])
@pytest.mark.parametrize("shape", [(3, 20, 2304), (2304,)])
def test_arrays_on_a_device(speaker: type[DeviceArray], shape: tuple[int, ...]) -> None:
    gpu = open_gpu(0)
    x = values(60, 2304).reshape(3, 20, 2304)[(0, 5) if len(shape) == 1 else ...]
    blocks = quantize(x, "Q4_K")
    wanted = measure(x, blocks, "Q4_K")
    for view in (x, np.asfortranarray(x)):
        on_device = speaker.of(gpu, view), speaker.of(gpu, blocks)
        found = measure(*on_device, "Q4_K")
        assert found.weights.shape == shape[:-1]
        require_same(found, wanted)
        for axes in {(2304,), (*shape[:-2], 2304)}:
            factors = np.abs(values(3, 2304)).reshape(3, 2304)[(0 if axes == (2304,) else ...)]
            weighed = measure(*on_device, "Q4_K", factors)
            require_same(weighed, measure(x, blocks, "Q4_K", factors))
            assert np.isfinite(weighed.weighted_relative_rms).all()
    with pytest.raises(LayoutError, match="the same device"):
        measure(on_device[0], blocks, "Q4_K")
    with pytest.raises(LayoutError, match="Q8_0 has"):
        measure(*on_device, "Q8_0")
    with pytest.raises(LayoutError, match=r"blocks of Q4_K are uint8 \["):
        measure(on_device[0], on_device[0], "Q4_K")


def test_launches() -> None:
    assert [chunks_of(n) for n in (1, 2048, 2049, 6144)] == [1, 1, 2, 3]
    assert moments_bytes(10, 6144) == 30 * MOMENTS.itemsize
    assert [error_launch(n).thread_blocks for n in (1, 128, 129)] == [1, 1, 2]
    with pytest.raises(LayoutError, match="thread blocks"):
        error_launch(2**31 * 128 + 1)
