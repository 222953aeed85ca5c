"""Arrays on a device that speak DLPack or the CUDA array interface."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.cuda.comparison import assert_nothing_is_left
from tests.cuda.exporters import BFLOAT16, DlpackArray, InterfaceArray, read
from tests.cuda.stand_in import StandIn
from tests.quant.families import gaussian
from tests.quant.kernel_types import least_importance
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize, quantize
from weightcast.quant.cuda.device import Gpu, device_count, open_gpu
from weightcast.quant.types import TYPES

SPEAKERS = {"dlpack": DlpackArray, "interface": InterfaceArray}
with_speaker = pytest.mark.parametrize("speaker", SPEAKERS.values(), ids=SPEAKERS)
VIEWS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2, 1),
    "steps": lambda x: x[:, ::2, :32],
    "row": lambda x: x[0, 0],
    "experts_last": lambda x: x.transpose(1, 2, 0)[:3].transpose(0, 2, 1),
    "repeated": lambda x: np.broadcast_to(x[0, 0], (5, 96)),
}


@pytest.fixture
def gpu(kernels: StandIn | None) -> Gpu:
    return open_gpu(0)


def values(shape: tuple[int, ...], seed: int = 7) -> np.ndarray:
    return gaussian(np.random.default_rng(seed), shape)


# The array interface has no name for bfloat16.
SPOKEN = [
    *((DlpackArray, dtype) for dtype in (np.float32, np.float16, BFLOAT16)),
    *((InterfaceArray, dtype) for dtype in (np.float32, np.float16)),
]


@pytest.mark.parametrize(("speaker", "dtype"), SPOKEN)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("start", [0, 20])
def test_views(start, view, dtype, speaker, gpu):
    x = view(values((3, 64, 96)).astype(dtype))
    made = quantize(speaker.of(gpu, x, start), "Q8_0")
    assert np.array_equal(read(made, gpu), quantize(x, "Q8_0"))


@with_speaker
@pytest.mark.parametrize("name", TYPES)
def test_types_and_back(name, speaker, gpu):
    x = values((3, 512))
    importance = least_importance(TYPES[name], 512)
    made = quantize(speaker.of(gpu, x), name, importance)
    expected = quantize(x, name, importance)
    rows = read(made, gpu)
    assert rows.dtype == np.uint8
    assert np.array_equal(rows, expected)
    # What was made is an array on a device itself.
    back = read(dequantize(made, name), gpu)
    assert back.dtype == np.float32
    assert np.array_equal(back, dequantize(expected, name))
    given = dequantize(speaker.of(gpu, expected), name)
    assert np.array_equal(read(given, gpu), back)


@with_speaker
def test_importance(speaker, gpu):
    x, each = values((3, 5, 256)), np.abs(values((3, 256), 8))
    expected = quantize(x, "Q4_K", each)
    for given in (each, speaker.of(gpu, each)):
        assert np.array_equal(read(quantize(speaker.of(gpu, x), "Q4_K", given), gpu), expected)
    with pytest.raises(LayoutError, match="must be contiguous float32, not F16"):
        quantize(speaker.of(gpu, x), "Q4_K", speaker.of(gpu, each.astype(np.float16)))
    with pytest.raises(LayoutError, match="must be contiguous float32"):
        quantize(speaker.of(gpu, x), "Q4_K", speaker.of(gpu, np.asfortranarray(each)))


@with_speaker
@pytest.mark.parametrize("shape", [(0, 256), (2, 0, 256), (2, 3, 0)])
def test_empty(shape, speaker, gpu):
    made = quantize(speaker.of(gpu, np.empty(shape, np.float32)), "Q8_0")
    assert tuple(made.shape) == (*shape[:-1], TYPES["Q8_0"].row_bytes(shape[-1]))
    assert read(made, gpu).shape == tuple(made.shape)
    assert tuple(dequantize(made, "Q8_0").shape) == shape


@with_speaker
def test_refusals(speaker, gpu):
    with pytest.raises(LayoutError, match="use float32, float16 or bfloat16"):
        quantize(speaker.of(gpu, np.zeros((2, 32))), "F32")
    with pytest.raises(LayoutError, match="scalar"):
        quantize(speaker.of(gpu, np.float32(1) * np.ones(())), "F32")
    with pytest.raises(LayoutError, match="does not fill Q8_0"):
        quantize(speaker.of(gpu, np.zeros((2, 33), np.float32)), "Q8_0")
    with pytest.raises(LayoutError, match="follow each other"):
        dequantize(speaker.of(gpu, np.zeros((2, 68), np.uint8)[:, :34]), "Q8_0")
    with pytest.raises(LayoutError, match=r"blocks of \w+ are uint8 \["):
        dequantize(speaker.of(gpu, np.zeros((2, 34), np.int8)), "Q8_0")
    x = values((2, 3, 256))
    x[1, 2, 40] = -np.inf
    with pytest.raises(LayoutError, match=r"NaN or infinity at \[1, 2, 40\]"):
        quantize(speaker.of(gpu, x), "Q4_K")
    with pytest.raises(LayoutError, match="at an odd address"):
        quantize(speaker.of(gpu, values((3, 32)), 2), "Q8_0")


@with_speaker
def test_rows_backwards(speaker, gpu):
    x = values((5, 64))
    last = 4 * 64 * 4
    array = speaker(speaker.of(gpu, x).memory, x.dtype, x.shape, (-64, 1), last)
    assert np.array_equal(read(quantize(array, "Q8_0"), gpu), quantize(x[::-1], "Q8_0"))


@with_speaker
def test_work_follows_the_producers(speaker, gpu):
    x = speaker.of(gpu, values((40, 256)))
    x.producer = gpu.stream()
    x.producer.fill(x.memory.address, x.memory.nbytes)
    made = quantize(x, "Q8_0")
    assert not read(dequantize(made, "Q8_0"), gpu).any()
    rows = speaker.of(gpu, np.full((40, 34), 1, np.uint8))
    rows.producer = gpu.stream()
    rows.producer.fill(rows.memory.address, rows.memory.nbytes)
    assert not read(dequantize(rows, "Q8_0"), gpu).any()
    factors = speaker.of(gpu, np.full(256, -1, np.float32))
    factors.producer = gpu.stream()
    factors.producer.fill(factors.memory.address, factors.memory.nbytes)
    quantize(x, "Q4_K", factors)  # negative ones would be refused


def test_the_producer_keeps_the_memory_until_the_work_is_done(gpu):
    x = values((40, 256))
    array = DlpackArray.of(gpu, x)
    array.frees = True
    made = quantize(array, "Q8_0")
    assert np.array_equal(read(made, gpu), quantize(x, "Q8_0"))
    gc.collect()
    assert array.released == array.exports > 0
    rows = DlpackArray.of(gpu, quantize(x, "Q8_0"))
    rows.frees = True
    back = dequantize(rows, "Q8_0")
    assert np.array_equal(read(back, gpu), dequantize(quantize(x, "Q8_0"), "Q8_0"))
    factors = DlpackArray.of(gpu, np.ones(256, np.float32))
    factors.frees = True
    expected = quantize(x, "Q4_K", np.ones(256))
    weighed = quantize(DlpackArray.of(gpu, x), "Q4_K", factors)
    assert np.array_equal(read(weighed, gpu), expected)


@with_speaker
def test_another_device(speaker, kernels):
    if device_count() < 2:
        pytest.skip("needs a second CUDA device")
    gpu, x = open_gpu(1), values((33, 256))
    made = quantize(speaker.of(gpu, x), "Q4_K")
    assert np.array_equal(read(made, gpu), quantize(x, "Q4_K"))
    assert np.array_equal(
        read(dequantize(made, "Q4_K"), gpu), dequantize(quantize(x, "Q4_K"), "Q4_K")
    )


@with_speaker
def test_the_callers_current_device_stays(speaker, gpu):
    from cuda.bindings import driver

    def current() -> int:
        _, context = driver.cuCtxGetCurrent()
        return int(context)

    x = speaker.of(gpu, values((3, 64)))
    before = current()
    made = quantize(x, "Q8_0")
    assert current() == before
    dequantize(made, "Q8_0")
    assert current() == before


@with_speaker
def test_nothing_is_left_on_the_device(speaker, gpu, only_stand_in):
    x = speaker.of(gpu, values((3, 33, 256)))
    bad = speaker.of(gpu, np.full((2, 256), np.nan, np.float32))

    def work() -> None:
        made = quantize(x, "Q4_K", np.ones((3, 256)))
        gc.collect()
        assert read(made, gpu).any()  # the view keeps its memory
        read(dequantize(made, "Q4_K"), gpu)
        with pytest.raises(LayoutError):
            quantize(bad, "Q4_K")

    assert_nothing_is_left(only_stand_in, work)
    if isinstance(x, DlpackArray):
        assert x.released == x.exports


def test_arrays_of_the_host_are_not_taken_for_a_devices(kernels):
    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    with pytest.raises(LayoutError, match="cannot quantize Host"):
        quantize(Host(), "F32")
