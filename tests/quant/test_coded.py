"""weightcast.quantize to codes with scales apart: what they stand for, torch, refusals."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.quant import group_reference
from tests.quant.sources import DTYPES
from weightcast.errors import LayoutError
from weightcast.quant.arrays import Coded, dequantize, measure, quantize
from weightcast.quant.coded import Quantized
from weightcast.quant.groups import quantize_groups
from weightcast.quant.host import matrix_of
from weightcast.quant.names import weight_type_named
from weightcast.quant.types import GroupType

NAMES: tuple[str, ...] = Coded.__args__  # type: ignore[attr-defined]
GROUPS = [name for name in NAMES if name.startswith("int")]
FP8 = [name for name in NAMES if name.startswith("fp8")]
FEW = ["int4-g128", "int8-g32-asym", "int4-channel-asym", "fp8", "fp8-block"]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_those_of_the_reference(name: str) -> None:
    values, importance = drawn(5, 512), np.abs(drawn(512))
    group_type = weight_type_named(name)
    assert isinstance(group_type, GroupType)
    expected = group_reference.quantize(values, group_type, importance)
    made = quantize(values, name, importance)
    assert made.type == name
    assert np.array_equal(made.codes, expected.codes)
    assert np.array_equal(made.scales, expected.scales)
    assert made.scales.dtype == ml_dtypes.bfloat16
    assert (made.zero_points is None) == group_type.symmetric
    if expected.zero_points is not None:
        assert np.array_equal(made.zero_points, expected.zero_points)
    size = 512 // made.scales.shape[-1]
    zero_points = (
        np.full_like(made.scales, 1 << group_type.bits - 1, np.float32)
        if made.zero_points is None
        else made.zero_points.astype(np.float32)
    )
    products = (made.codes - zero_points.repeat(size, 1)) * made.scales.astype("f4").repeat(size, 1)
    assert np.array_equal(made.dequantize(), products)
    assert made.bits_per_weight == pytest.approx(
        group_type.bits
        + (16 + (0 if group_type.symmetric else group_type.bits)) * made.scales.size / values.size
    )


@pytest.mark.parametrize(("name", "rows", "columns"), [("fp8", 1, 512), ("fp8-block", 128, 128)])
def test_fp8_is_what_torch_rounds(name: str, rows: int, columns: int) -> None:
    values = drawn(200, 512)
    made = quantize(values, name)
    largest = np.zeros((-(-200 // rows), 512 // columns), np.float32)
    for i, j in np.ndindex(largest.shape):
        block = values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        largest[i, j] = np.abs(block).max()
    assert np.array_equal(made.scales, largest / np.float32(448))
    spread = made.scales.repeat(rows, 0)[:200].repeat(columns, 1)
    expected = torch.from_numpy(values / spread).to(torch.float8_e4m3fn)
    assert np.array_equal(made.codes.view(np.uint8), expected.view(torch.uint8).numpy())
    assert np.array_equal(made.dequantize(), expected.float().numpy() * spread)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_stacks(dtype: str, name: str) -> None:
    values = drawn(2, 3, 40, 256).astype(DTYPES[dtype])
    made = quantize(values, name)
    assert made.shape == made.codes.shape == values.shape
    for index in np.ndindex(2, 3):
        one = quantize(values[index], name)
        assert np.array_equal(one.codes, made.codes[index])
        assert np.array_equal(one.scales, made.scales[index])
        assert np.array_equal(one.dequantize(), made.dequantize()[index])
    row = quantize(values[0, 0, 0], name)
    assert row.shape == (256,)
    assert row.dequantize().shape == (256,)
    assert np.array_equal(dequantize(made), made.dequantize())
    assert f"<Quantized {name} [2, 3, 40, 256]: " in repr(made)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    "view",
    [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.T[:64, :128], lambda x: x[::3, 128:]],
)
def test_views(view: Any, name: str) -> None:
    values = view(drawn(256, 256))
    found, expected = quantize(values, name), quantize(values.copy(order="C"), name)
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.scales, expected.scales)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_in_is_torch_out(dtype: torch.dtype, name: str) -> None:
    tensor = torch.from_numpy(drawn(3, 64, 256)).to(dtype)
    made, expected = quantize(tensor, name), quantize(tensor.float().numpy(), name)
    assert made.codes.dtype == (torch.float8_e4m3fn if name in FP8 else torch.uint8)
    assert made.scales.dtype == (torch.float32 if name in FP8 else torch.bfloat16)
    assert torch.equal(made.dequantize(), torch.from_numpy(expected.dequantize()))
    if made.zero_points is not None:
        assert torch.equal(made.zero_points, torch.from_numpy(expected.zero_points))
    found = measure(tensor, made).errors
    assert np.array_equal(found, measure(tensor.float().numpy(), expected).errors)


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
def test_blocks_of_torch_are_torch_tensors(name: str) -> None:
    tensor = torch.from_numpy(drawn(3, 64, 256))
    blocks = quantize(tensor, name)
    assert isinstance(blocks, torch.Tensor)
    assert blocks.dtype == torch.uint8
    values = dequantize(blocks, name)
    assert isinstance(values, torch.Tensor)
    assert np.array_equal(values.numpy(), dequantize(quantize(tensor.numpy(), name), name))
    expected = measure(tensor.numpy(), quantize(tensor.numpy(), name), name)
    assert np.array_equal(measure(tensor, blocks, name).error_squares, expected.error_squares)


@pytest.mark.parametrize("name", ["mxfp4", "NVFP4"])
def test_blocks_of_four_bit_floats_come_apart(name: str) -> None:
    blocks = quantize(drawn(2, 5, 256), name)
    for given in (blocks, torch.from_numpy(blocks), blocks[::-1, ::2]):
        made = Quantized.from_blocks(given, name)
        assert made.type == name.lower()
        assert np.array_equal(made.dequantize(), dequantize(given, name))
        assert made.bits_per_weight == {"mxfp4": 4.25, "nvfp4": 4.5}[made.type]
    # An independent reading: e2m1 values times scales.
    made = Quantized.from_blocks(blocks, name)
    fp4 = made.codes.view(np.uint8) & 7
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[fp4]
    values = np.where(made.codes & 8, -magnitudes, magnitudes)
    if name == "mxfp4":
        scales = np.exp2(made.scales.astype(np.float32) - 127)
    else:
        scales = made.scales.astype(np.float32)
    assert np.array_equal(values * scales.repeat(256 // scales.shape[-1], -1), made.dequantize())
    with pytest.raises(LayoutError, match="Q4_K cannot be taken apart: MXFP4 and NVFP4 can"):
        Quantized.from_blocks(quantize(drawn(2, 256), "Q4_K"), "Q4_K")
    with pytest.raises(LayoutError, match=r"are uint8 \[\.\.\., bytes per row\], not float32 \["):
        Quantized.from_blocks(drawn(2, 256), name)


@pytest.mark.parametrize("name", FEW)
def test_errors_are_those_of_the_values(name: str) -> None:
    values = drawn(3, 64, 256)
    made = quantize(values, name)
    found = measure(values, made)
    assert found.rows.shape == (3, 64)
    difference = made.dequantize().astype(np.float64) - values
    np.testing.assert_allclose(found.error_squares, np.square(difference).sum(-1), rtol=1e-9)
    assert np.array_equal(measure(values, made, name).errors, found.errors)


# Refusals


@pytest.mark.parametrize("name", FEW)
def test_what_cannot_be_quantized(name: str) -> None:
    values = drawn(2, 4, 256)
    values[1, 2, 3] = np.nan
    with pytest.raises(LayoutError, match=r"NaN or infinity at \[1, 2, 3\]"):
        quantize(values, name)
    with pytest.raises(LayoutError, match=r"NaN or infinity at \[2, 3\]"):
        quantize(values[1], name)
    with pytest.raises(LayoutError, match="cannot quantize float64: use float32"):
        quantize(values.astype(np.float64), name)
    with pytest.raises(LayoutError, match=r"an array of \[0, 4, 256\] has no values"):
        quantize(values[:0], name)
    with pytest.raises(LayoutError, match=r"importance of shape \[3\] for an array of"):
        quantize(values[0], name, np.ones(3))
    with pytest.raises(LayoutError, match="cannot quantize list: use a numpy array"):
        quantize([[1.0]], name)


def test_rows_that_groups_do_not_fill() -> None:
    with pytest.raises(LayoutError, match="a row of 100 values does not fill groups of 128"):
        quantize(drawn(2, 100), "int4-g128")


def made(**changes: Any) -> Quantized:
    good = quantize(drawn(2, 3, 256), changes.pop("type", "int4-g128"))
    fields = {"type": good.type, "codes": good.codes, "scales": good.scales}
    return Quantized(**{**fields, "zero_points": good.zero_points, **changes})


@pytest.mark.parametrize("name", ["Q8_0", "F32", "int4", "banana"])
def test_bits_of_a_type_without_codes_apart(name: str) -> None:
    wrong = Quantized(name, np.zeros((3, 256), np.uint8), np.zeros((3, 1), np.float32))
    with pytest.raises(LayoutError, match=f"(?i){name}"):
        _ = wrong.bits_per_weight
    assert repr(wrong) == f"<Quantized {name} [3, 256]>"


def test_bits_of_a_type_in_any_spelling() -> None:
    codes = np.zeros((3, 256), np.uint8)
    scales = np.zeros((3, 2), ml_dtypes.bfloat16)
    assert Quantized("INT4_G128", codes, scales).bits_per_weight == 4 + 16 / 128


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"codes": np.zeros((2, 3, 256), int)}, "codes of INT4-G128 are uint8, not int64"),
        ({"codes": np.full((2, 3, 256), 16, np.uint8)}, "are at most 15, and one is 16"),
        ({"codes": np.zeros((1, 3, 256), np.uint8)}, r"scales \[2, 3, 2\] do not go with codes"),
        ({"scales": np.zeros((2, 3, 2), np.float32)}, "scales are float32"),
        ({"scales": np.zeros((2, 3, 3), ml_dtypes.bfloat16)}, r"expected bfloat16 \[3, 2\]"),
        ({"zero_points": np.zeros((2, 3, 2), np.uint8)}, "zero points belong to asymmetric"),
        ({"type": "int4-g128-asym", "zero_points": None}, "zero points belong to asymmetric"),
        ({"type": "fp8", "codes": np.zeros((2, 3, 256), np.uint8)}, "codes of FP8 are float8"),
        ({"type": "fp8", "scales": np.zeros((2, 3, 2), np.float32)}, r"FP8 are float32 \[2, 3, 1"),
        ({"codes": None}, "cannot dequantize NoneType"),
    ],
)
def test_parts_that_do_not_go_together(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(LayoutError, match=problem):
        made(**changes).dequantize()


def test_types_that_are_not_the_weights_own() -> None:
    values = drawn(2, 256)
    groups, blocks = quantize(values, "int4-g128"), quantize(values, "Q4_K")
    with pytest.raises(LayoutError, match="these weights are int4-g128, not q4_k"):
        dequantize(groups, "Q4_K")
    with pytest.raises(LayoutError, match="int4-g128 is a type of directories; here it must be"):
        dequantize(blocks, "int4-g128")
    with pytest.raises(LayoutError, match="name the type of the blocks, such as 'Q4_K'"):
        dequantize(blocks)
    with pytest.raises(LayoutError, match=r"codes \[2, 256\] for weights of \[1, 256\]"):
        measure(values[:1], groups)
    with pytest.raises(LayoutError, match="Q4_K has no codes apart"):
        Quantized("Q4_K", groups.codes, groups.scales).dequantize()


def test_codes_without_their_type_are_refused_at_once() -> None:
    found = quantize(drawn(2, 128), "int4-g128")
    with pytest.raises(LayoutError, match=r"a type is text such as 'int4-g128', not ndarray; give"):
        Quantized(found.codes, found.scales, None, "int4-g128")


@pytest.mark.parametrize(("effort", "of_groups"), [(1, 2), (2, 2), (3, 3)])
def test_groups_are_searched_as_long_as_usual_or_longer(effort, of_groups):
    x = drawn(40, 1024)
    found = quantize(x, "int4-g128", search="least-error", effort=effort)
    groups = quantize_groups(matrix_of(x), weight_type_named("int4-g128"), effort=of_groups)
    assert np.array_equal(found.codes, groups.codes)
    assert np.array_equal(found.scales, groups.scales)
    usual = quantize(x, "int4-g128")
    assert np.array_equal(found.codes, usual.codes) == (of_groups == 2)
