"""weightcast.quantize and weightcast.dequantize on torch tensors of a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.cuda.comparison import assert_nothing_is_left
from tests.cuda.device_tensors import RealTorch, StandInTorch
from tests.cuda.stand_in import StandIn
from tests.quant.families import gaussian
from tests.quant.kernel_types import importance_of, kinds_for
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize, quantize
from weightcast.quant.cuda.device import device_count, open_gpu
from weightcast.quant.types import TYPES

AnyTorch = StandInTorch | RealTorch
WAYS = ["F32", "F16", "BF16", "Q8_0", "MXFP4"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VIEWS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.mT,
    "steps": lambda x: x[:, ::2, :32],
    "columns": lambda x: x[:, 3:, 32:],
    "row": lambda x: x[0, 0],
    "column": lambda x: x[2, :, 5],
    "matrix": lambda x: x[1],
    "experts_last": lambda x: x.permute(1, 2, 0)[:3, :, :].mT,
    "repeated_rows": lambda x: x[0, :1].expand(5, 96),
    "repeated_values": lambda x: x[:, :, :1].expand(3, 64, 64),
    "repeated_experts": lambda x: x[:1].expand(4, 64, 96),
    "four_axes": lambda x: x.reshape(3, 4, 16, 96)[:, ::3],
    "one_column": lambda x: x[:, :1, :64],
}


@pytest.fixture
def on(kernels: StandIn | None) -> Iterator[AnyTorch]:
    """torch with devices."""
    if kernels is None:
        if not torch.cuda.is_available():
            pytest.skip("this build of torch has no CUDA: pip install one that has")
        yield RealTorch()
        return
    with pytest.MonkeyPatch.context() as patch:
        yield StandInTorch(patch)


def values(shape: tuple[int, ...], seed: int = 7) -> torch.Tensor:
    return torch.from_numpy(gaussian(np.random.default_rng(seed), shape))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(view, dtype, name, on):
    x = values((3, 64, 96)).to(dtype)
    expected = quantize(view(x), name)
    made = quantize(view(on.put(x)), name)
    assert made.is_cuda
    assert made.dtype == torch.uint8
    assert made.is_contiguous()
    assert np.array_equal(on.get(made), expected)


@pytest.mark.parametrize("name", TYPES)
def test_types_and_back(name, on):
    x = values((2, 5, 512))
    for kind in kinds_for(TYPES[name], "plain"):
        importance = importance_of(kind, 512)
        rows = quantize(on.put(x), name, importance)
        expected = quantize(x, name, importance)
        assert np.array_equal(on.get(rows), expected)
        back = dequantize(rows, name)
        assert back.dtype == torch.float32
        assert back.shape == (2, 5, 512)
        assert np.array_equal(on.get(back), dequantize(expected, name))


def test_importance_for_each_expert(on):
    x = values((4, 9, 256))
    each = np.abs(values((4, 256)).numpy())
    expected = quantize(x, "Q4_K", each)
    assert not np.array_equal(expected, quantize(x, "Q4_K", each[0]))
    for given in (each, each.tolist(), torch.from_numpy(each), on.put(torch.from_numpy(each))):
        assert np.array_equal(on.get(quantize(on.put(x), "Q4_K", given)), expected)
    # Means over rows too are each expert's own.
    for name in ("Q4_0", "Q5_1", "IQ2_XS"):
        made = quantize(on.put(x * torch.arange(1, 5)[:, None, None]), name, each)
        assert np.array_equal(
            on.get(made), quantize(x * torch.arange(1, 5)[:, None, None], name, each)
        )
    rounded = on.put(torch.from_numpy(each).to(torch.bfloat16))
    expected = quantize(x, "Q4_K", torch.from_numpy(each).to(torch.bfloat16))
    assert np.array_equal(on.get(quantize(on.put(x), "Q4_K", rounded)), expected)
    # A host array may be weighed by a tensor of a device.
    assert np.array_equal(quantize(x, "Q4_K", rounded), expected)


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (0, 3, 256), (2, 0, 256), (2, 3, 0), (0,)])
@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K"])
def test_empty(name, shape, on):
    made = quantize(on.put(torch.empty(shape)), name)
    assert made.shape == (*shape[:-1], TYPES[name].row_bytes(shape[-1]))
    assert made.is_cuda
    assert dequantize(made, name).shape == shape


def test_refused_dtypes(on):
    for dtype in (torch.float64, torch.int8, torch.uint8, torch.complex64):
        with pytest.raises(LayoutError, match="use float32, float16 or bfloat16"):
            quantize(on.put(torch.zeros(2, 32, dtype=dtype)), "F32")
    with pytest.raises(LayoutError, match=r"blocks of \w+ are uint8 \["):
        dequantize(on.put(torch.zeros(2, 34, dtype=torch.int8)), "Q8_0")


def test_refused_shapes(on):
    x = on.put(values((3, 33)))
    with pytest.raises(LayoutError, match="scalar"):
        quantize(x[0, 0], "F32")
    with pytest.raises(LayoutError, match="33 values does not fill Q8_0 blocks of 32"):
        quantize(x, "Q8_0")
    with pytest.raises(LayoutError, match="33 bytes are not whole Q8_0 blocks"):
        dequantize(on.put(torch.zeros(2, 33, dtype=torch.uint8)), "Q8_0")
    with pytest.raises(LayoutError, match=r"importance of shape \[32\] for an array of \[3, 33\]"):
        quantize(x, "F32", np.ones(32))
    with pytest.raises(LayoutError, match="make it dense"):
        quantize(torch._neg_view(x), "F32")


def test_what_is_not_finite_is_named(on):
    x = values((2, 3, 256))
    x[1, 2, 40] = np.nan
    for name in ("Q4_K", "F16", "Q8_0"):
        with pytest.raises(LayoutError, match=r"NaN or infinity at \[1, 2, 40\]"):
            quantize(on.put(x), name)
        with pytest.raises(LayoutError, match=r"NaN or infinity at \[2, 40\] \(out, in\)"):
            quantize(on.put(x)[1], name)
    with pytest.raises(LayoutError, match=r"at \[0, 40\]"):
        quantize(on.put(x)[1, 2], "F32")


def test_other_values_that_are_refused(on):
    x = values((2, 3, 256))
    x[1, 2, 40] = 1e9
    with pytest.raises(LayoutError, match=r"float16 scale of Q8_0 at \[1, 2, 32\]"):
        quantize(on.put(x), "Q8_0")
    with pytest.raises(LayoutError, match=r"float16 scale of Q8_0 at \[2, 32\]"):
        quantize(on.put(x)[1], "Q8_0")
    with pytest.raises(LayoutError, match=r"a value beyond the range of F16 at \[1, 2, 40\]"):
        quantize(on.put(x), "F16")
    each = np.ones((2, 256))
    each[1, 77] = -1
    with pytest.raises(LayoutError, match="importance of column 77 is negative"):
        quantize(on.put(x), "Q4_K", each)
    with pytest.raises(LayoutError, match="IQ2_XS cannot be made without importance"):
        quantize(on.put(x), "IQ2_XS")


def test_tensors_that_require_grad(on):
    x = on.put(values((3, 64))).requires_grad_()
    assert np.array_equal(on.get(quantize(x, "Q8_0")), quantize(values((3, 64)), "Q8_0"))


def test_source_is_not_changed(on):
    x = values((33, 256))
    device = on.put(x)
    quantize(device, "Q4_K")
    assert np.array_equal(on.get(device), x.numpy())


def test_rows_with_gaps_are_dequantized(on):
    rows = torch.from_numpy(np.asarray(quantize(values((6, 10, 64)), "Q8_0")))
    for view in (
        lambda r: r[::2, ::3],
        lambda r: r[..., 34:],
        lambda r: r[:1].expand(4, 10, 68),
        lambda r: r.transpose(0, 1),
        lambda r: r[1, 2],
    ):
        expected = dequantize(view(rows).contiguous().numpy(), "Q8_0")
        assert np.array_equal(on.get(dequantize(view(on.put(rows)), "Q8_0")), expected)


def test_work_follows_what_is_on_the_current_stream(on):
    """What the caller enqueued there comes first; on another stream it need not."""
    gpu = open_gpu(0)
    x = on.put(torch.full((40, 256), 7.0))
    stream = gpu.stream()
    expected = quantize(torch.zeros(40, 256), "Q8_0")
    with on.current(stream):
        stream.fill(x.data_ptr(), 4 * x.numel())
        made = quantize(x, "Q8_0")
        assert np.array_equal(on.get(made), expected)
        stream.fill(made.data_ptr(), made.numel())
        back = dequantize(made, "Q8_0")
        assert not on.get(back).any()


def test_the_default_stream_is_used_too(on, only_stand_in):
    gpu = open_gpu(0)
    x = on.put(torch.full((40, 256), 7.0))
    gpu.borrowed_stream(0).fill(x.data_ptr(), 4 * x.numel())
    assert np.array_equal(on.get(quantize(x, "Q8_0")), quantize(torch.zeros(40, 256), "Q8_0"))


def test_another_device(on):
    if device_count() < 2:
        pytest.skip("needs a second CUDA device")
    x = values((2, 33, 256))
    made = quantize(on.put(x, 1), "Q4_K", on.put(torch.ones(256), 0))
    assert made.device == torch.device("cuda", 1)
    assert np.array_equal(on.get(made), quantize(x, "Q4_K", np.ones(256)))
    back = dequantize(made, "Q4_K")
    assert back.device.index == 1
    assert np.array_equal(on.get(back), dequantize(on.get(made), "Q4_K"))


def test_nothing_is_left_on_the_device(on, only_stand_in):
    x = on.put(values((3, 33, 256)))
    bad = on.put(torch.full((2, 256), torch.nan))

    def work() -> None:
        rows = quantize(x, "Q4_K", np.ones((3, 256)))
        dequantize(rows, "Q4_K")
        with pytest.raises(LayoutError):
            quantize(bad, "Q4_K")

    assert_nothing_is_left(only_stand_in, work)
