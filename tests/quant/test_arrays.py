"""weightcast.quantize and weightcast.dequantize: shapes, strides, dtypes, refusals, round trips."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quant import oracle
from tests.quant.families import FAMILIES, gaussian, random_finite
from tests.quant.sources import DTYPES, place
from weightcast.errors import LayoutError
from weightcast.quant.arrays import dequantize, measure, quantize, type_named
from weightcast.quant.types import TYPES

many = settings(max_examples=60)
# What needs no importance matrix; of these, one for each way through the library where the values
# do not matter.
MADE = [t.name for t in TYPES.values() if t.importance != "required"]
WAYS = ["F32", "F16", "BF16", "Q8_0"]


def values(shape, dtype="F32", seed=7) -> np.ndarray:
    return gaussian(np.random.default_rng(seed), shape).astype(DTYPES[dtype])


# Names of types


def test_names_in_any_case():
    assert type_named("q8_0") is TYPES["Q8_0"]
    assert type_named("Bf16") is TYPES["BF16"]


@pytest.mark.parametrize("call", [quantize, dequantize])
def test_unknown_type(call):
    for name, hint in (("Q9_9", "weightcast.types() lists them all"), ("q8", "8 bits are Q8_0 in")):
        with pytest.raises(LayoutError) as caught:
            call(np.zeros((1, 32), np.uint8), name)
        assert str(caught.value).startswith(f"unknown type '{name}'; {hint}")


# Shapes and strides


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(dtype, name):
    for shape in ((512,), (1, 512), (5, 512), (3, 5, 512), (2, 3, 5, 256), (2, 1, 1, 256)):
        x = values(shape, dtype)
        rows = quantize(x, name)
        assert rows.shape == (*shape[:-1], TYPES[name].row_bytes(shape[-1]))
        flat = quantize(x.reshape(-1, shape[-1]), name)
        assert np.array_equal(rows.reshape(flat.shape), flat)
        assert dequantize(rows, name).shape == shape


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[:, :, ::-1],
        lambda x: x[::-1, ::-2, ::-1],
        lambda x: x.transpose(1, 0, 2),
        lambda x: x.transpose(2, 1, 0),
        lambda x: x.transpose(2, 0, 1)[::3, ::-1],
        lambda x: x[0, 0],
        lambda x: x[0, 0, ::-1],
        lambda x: x[:, 0, :32],
        lambda x: x[:, :1],
        lambda x: np.broadcast_to(x[0, 0], (3, 64)),
    ],
)
def test_views(view, dtype, name):
    x = view(values((64, 32, 64), dtype))
    assert np.array_equal(quantize(x, name), quantize(x.copy(order="C"), name))


def test_fields_of_records():
    # The stride, 6 bytes, is not a multiple of the item size.
    records = np.zeros((3, 64), np.dtype([("pad", np.uint16), ("x", np.float32)]))
    records["x"] = values((3, 64))
    assert np.array_equal(quantize(records["x"], "F32").view(np.float32), records["x"])


def test_source_is_not_changed():
    x = values((64, 256))
    before = x.copy()
    for name in MADE:
        quantize(x, name)
    assert np.array_equal(x, before)
    x.flags.writeable = False
    assert np.array_equal(quantize(x, "F32").view(np.float32), before)


# Refusals


@pytest.mark.parametrize(
    "dtype", [np.float64, np.int8, np.uint8, np.int32, bool, ">f4", ml_dtypes.float8_e4m3fn, object]
)
def test_other_dtypes(dtype):
    x = np.zeros((2, 32), dtype)
    with pytest.raises(LayoutError, match="use float32, float16 or bfloat16"):
        quantize(x, "F32")


def test_scalars():
    with pytest.raises(LayoutError, match="scalar"):
        quantize(np.array(1, np.float32), "F32")


@pytest.mark.parametrize("n_in", [1, 31, 33, 63])
def test_rows_that_do_not_fill_blocks(n_in):
    with pytest.raises(LayoutError, match=f"{n_in} values does not fill Q8_0 blocks of 32"):
        quantize(np.zeros((2, n_in), np.float32), "Q8_0")


@pytest.mark.parametrize("name", MADE)
def test_not_finite(name):
    x = values((2, 3, 256))
    x[1, 2, 40] = np.nan
    with pytest.raises(LayoutError, match=r"NaN or infinity at \[1, 2, 40\]"):
        quantize(x, name)
    for plane, where in ((x, r"\[1, 2, 40\]"), (x[1], r"\[2, 40\]"), (x[1, 2], r"\[0, 40\]")):
        with pytest.raises(LayoutError, match=f"NaN or infinity at {where}") as caught:
            quantize(plane, name)
        assert type(caught.value) is LayoutError  # the class that is documented, of any rank
    for coded in ("int4-g128", "fp8"):
        with pytest.raises(LayoutError, match=r"NaN or infinity at \[2, 40\]") as caught:
            quantize(x[1], coded)
        assert type(caught.value) is LayoutError


@pytest.mark.parametrize(
    ("name", "n_bytes"), [("Q8_0", 33), ("Q8_0", 35), ("F32", 6), ("F16", 3), ("BF16", 1)]
)
def test_bytes_that_are_not_whole_blocks(name, n_bytes):
    with pytest.raises(LayoutError, match=f"rows of {n_bytes} bytes are not whole {name} blocks"):
        dequantize(np.zeros((2, n_bytes), np.uint8), name)


@pytest.mark.parametrize("blocks", [np.zeros((2, 34), np.int8), np.array(1, np.uint8)])
def test_blocks_must_be_rows_of_uint8(blocks):
    with pytest.raises(LayoutError, match=r"blocks of \w+ are uint8 \["):
        dequantize(blocks, "Q8_0")


# Back to float32


def test_dequantize_views(isa):
    rows = quantize(values((6, 10, 64)), "Q8_0")
    whole = dequantize(rows, "Q8_0")
    assert np.array_equal(dequantize(rows[::-1, ::3], "Q8_0"), whole[::-1, ::3])
    assert np.array_equal(dequantize(rows[..., 34:], "Q8_0"), whole[..., 32:])
    assert np.array_equal(dequantize(np.asfortranarray(rows), "Q8_0"), whole)


@many
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    layout=st.sampled_from(["out_in", "in_out", "steps"]),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_plain_floats_survive_a_round_trip(shape, layout, dtype, seed, isa):
    x = place(np.clip(random_finite(np.random.default_rng(seed), shape), -6e4, 6e4), layout)
    x = place(x.astype(DTYPES[dtype]), layout)
    back = dequantize(quantize(x, dtype), dtype)
    assert np.array_equal(back.view(np.uint32), x.astype(np.float32, order="C").view(np.uint32))


@pytest.mark.parametrize("family", ["gaussian", "grok_like", "one_outlier", "equal_maxima"])
def test_q8_0_is_within_half_a_step(family, isa):
    x = FAMILIES[family](np.random.default_rng(9), (70, 96))
    rows = quantize(x, "Q8_0")
    error = np.abs(dequantize(rows, "Q8_0") - x).reshape(70, 3, 32)
    step = np.abs(x).reshape(70, 3, 32).max(axis=2, keepdims=True) / 127
    # Half a step, and at most 127 times the error of rounding d to float16: half of 2^-10 of it,
    # or of 2^-24 where it is subnormal.
    assert (error <= step * (0.5 + 127 * 2**-11 + 1e-5) + 127 * 2**-25).all()
    assert error.max() > 0


# torch


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(
    ("dtype", "source"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")]
)
@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x.mT, lambda x: x[:, ::2, :32], lambda x: x[0, 0]]
)
def test_torch_tensors(view, dtype, source, name):
    tensor = view(torch.from_numpy(values((3, 64, 96))).to(getattr(torch, dtype)))
    x = tensor.to(torch.float32).numpy()
    expected = quantize(
        x.astype(DTYPES[{"float32": "F32", "float16": "F16"}.get(dtype, "BF16")]), name
    )
    assert np.array_equal(quantize(tensor, name), expected)


def test_torch_tensor_that_requires_grad():
    tensor = torch.ones(2, 32, requires_grad=True)
    assert np.array_equal(quantize(tensor, "F32").numpy().view(np.float32), np.ones((2, 32)))


def test_torch_tensor_of_another_dtype():
    with pytest.raises(LayoutError, match="use float32, float16 or bfloat16"):
        quantize(torch.zeros(2, 32, dtype=torch.float64), "F32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors_without_dense_memory(dtype):
    tensor = torch.ones(2, 32, dtype=getattr(torch, dtype))
    for other in (tensor.to("meta"), tensor.to_sparse(), torch._neg_view(tensor)):
        with pytest.raises(
            LayoutError, match=r"^cannot quantize a tensor .*: use a dense tensor in"
        ):
            quantize(other, "F32")
        with pytest.raises(
            LayoutError, match=r"^cannot measure a tensor .*: use a dense tensor in"
        ):
            measure(other, tensor.view(torch.uint8), "F32")


@pytest.mark.parametrize("name", ["Q8_0", "F32"])
def test_torch_blocks_without_dense_memory(name):
    blocks = torch.zeros(2, TYPES[name].row_bytes(32), dtype=torch.uint8)
    for other, where in (
        (blocks.to_sparse(), "a tensor of layout torch.sparse_coo on cpu"),
        (blocks.to("meta"), "a tensor on meta"),
    ):
        remedy = f"{where}: use a dense tensor in this machine's memory"
        with pytest.raises(LayoutError, match=f"^cannot dequantize {remedy}$"):
            dequantize(other, name)
        with pytest.raises(LayoutError, match=f"^cannot measure {remedy}$"):
            measure(torch.zeros(2, 32), other, name)


def test_torch_tensors_of_dtypes_that_numpy_has_not():
    tensor = torch.zeros(2, 34, dtype=torch.float8_e5m2)
    floats = "a tensor of torch.float8_e5m2: use float32, float16 or bfloat16$"
    made = "a tensor of torch.float8_e5m2: give what quantize made$"
    with pytest.raises(LayoutError, match=f"^cannot quantize {floats}"):
        quantize(tensor, "F32")
    with pytest.raises(LayoutError, match=f"^cannot measure {floats}"):
        measure(tensor, tensor, "F32")
    with pytest.raises(LayoutError, match=f"^cannot dequantize {made}"):
        dequantize(tensor, "Q8_0")
    with pytest.raises(LayoutError, match=f"^cannot measure {made}"):
        measure(torch.zeros(2, 32), tensor, "Q8_0")


def test_measure_names_what_it_cannot_do():
    blocks = np.zeros((2, 34), np.uint8)
    for x in (np.zeros((2, 32)), torch.zeros(2, 32, dtype=torch.float64)):
        with pytest.raises(LayoutError, match=r"^cannot measure float64: use float32, "):
            measure(x, blocks, "Q8_0")
    with pytest.raises(LayoutError, match=r"^cannot measure a scalar"):
        measure(np.float32(1), blocks, "Q8_0")


# Importance


WEIGHED = "Q4_K"


def random_importance(shape, seed=12) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) ** 2).astype(np.float32)


def test_importance_is_for_every_matrix_or_for_each():
    x = values((3, 5, 512))
    each = random_importance((3, 512))
    rows = quantize(x, WEIGHED, each)
    for expert in range(3):
        expected = oracle.quantize(x[expert], TYPES[WEIGHED].ggml_id, each[expert])
        assert np.array_equal(rows[expert], expected)
        assert np.array_equal(quantize(x[expert], WEIGHED, each[expert]), expected)
    assert np.array_equal(quantize(x, WEIGHED, each[0])[0], rows[0])
    assert not np.array_equal(quantize(x, WEIGHED, each[0])[1], rows[1])
    assert np.array_equal(quantize(x[0, 0], WEIGHED, each[0]), rows[0, 0])
    assert np.array_equal(quantize(x[None], WEIGHED, each[None])[0], rows)


@pytest.mark.parametrize(
    "convert",
    [
        lambda f: f.astype(np.float64),
        lambda f: f[:, ::-1].copy()[:, ::-1],
        lambda f: np.asfortranarray(f),
        lambda f: f.tolist(),
        lambda f: list(f),
        lambda f: torch.from_numpy(f),
        lambda f: torch.from_numpy(f).double().requires_grad_(),
    ],
    ids=["float64", "strides", "fortran", "lists", "list_of_rows", "torch", "torch_float64"],
)
def test_importance_of_other_kinds(convert):
    x, each = values((3, 5, 256)), random_importance((3, 256))
    expected = quantize(x, WEIGHED, each)
    assert np.array_equal(quantize(x, WEIGHED, convert(each)), expected)


def test_importance_of_torch_bfloat16():
    x, factors = values((5, 256)), torch.from_numpy(random_importance(256)).to(torch.bfloat16)
    expected = quantize(x, WEIGHED, factors.float())
    assert np.array_equal(quantize(x, WEIGHED, factors), expected)


@pytest.mark.parametrize("shape", [(255,), (1,), (), (5,), (1, 256), (2, 256), (3, 5, 256), (3, 5)])
@pytest.mark.parametrize("name", [WEIGHED, "Q8_0"])
def test_importance_of_another_shape(name, shape):
    with pytest.raises(LayoutError, match=r"it must be \[256\], or \[3, 256\], a row for each"):
        quantize(values((3, 5, 256)), name, np.ones(shape, np.float32))
    with pytest.raises(LayoutError, match=r"for an array of \[5, 256\]: it must be \[256\]$"):
        quantize(values((5, 256)), name, np.ones((3, 256), np.float32))


@pytest.mark.parametrize(
    "importance", ["abc", [[1], [2, 3]], [None] * 256, np.ones(256, complex), [1j] * 256]
)
def test_importance_that_is_no_numbers(importance):
    with pytest.raises(LayoutError, match="importance must be real numbers"):
        quantize(values((5, 256)), WEIGHED, importance)


@pytest.mark.parametrize("importance", [7, object(), {"a": 1}, np.ma.masked_array(np.ones(256))])
def test_importance_that_is_no_array(importance):
    with pytest.raises(LayoutError, match="cannot quantize"):
        quantize(values((5, 256)), WEIGHED, importance)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 1e300])
def test_importance_out_of_range(value):
    importance = np.ones(256)
    importance[77] = value
    with pytest.raises(LayoutError, match="importance of column 77 is negative, infinite or NaN"):
        quantize(values((5, 256)), WEIGHED, importance)


def test_importance_that_is_missing():
    with pytest.raises(LayoutError, match="IQ2_XS cannot be made without importance: give `imp"):
        quantize(values((5, 256)), "IQ2_XS")


def test_importance_that_is_not_used():
    x = values((5, 256))
    assert np.array_equal(quantize(x, "Q8_0", random_importance(256)), quantize(x, "Q8_0"))


# Errors that importance weighs


@pytest.mark.parametrize("name", ["Q4_K", "IQ3_S", "Q8_0", "bf16", "int4-g128-asym", "fp8"])
@pytest.mark.parametrize("shape", [(512,), (6, 512), (3, 2, 512)])
def test_measured_errors_are_weighed_by_importance(shape, name):
    rng = np.random.default_rng(5)
    x = values(shape)
    blocks = quantize(x, name)
    made = dequantize(blocks, name).astype(np.float64)
    for axes in {shape[-1:], (*shape[:-2], shape[-1])}:
        factors = rng.random(axes, np.float32) ** 4
        errors = measure(x, blocks, name, importance=factors)
        weights = (factors if factors.ndim == 1 else factors[..., None, :]).astype(np.float64)
        wrong = (weights * (made - x) ** 2).sum(-1) / (weights * x.astype(np.float64) ** 2).sum(-1)
        np.testing.assert_allclose(errors.weighted_relative_rms, np.sqrt(wrong), rtol=1e-6)
        np.testing.assert_allclose(errors.weighted_sqnr_db, -10 * np.log10(wrong), rtol=1e-6)
        assert np.isfinite(errors.total().weighted_sqnr_db)
        assert np.array_equal(errors.relative_rms, measure(x, blocks, name).relative_rms)
    of_torch = measure(torch.from_numpy(x), quantize(torch.from_numpy(x), name), name, factors)
    assert np.array_equal(of_torch.weighted_relative_rms, errors.weighted_relative_rms)


@pytest.mark.parametrize("name", ["IQ3_S", "int4-g128"])
def test_without_importance_weighed_errors_are_not_numbers(name):
    x = values((2, 4, 256))
    errors = measure(x, quantize(x, name), name)
    for each in (errors, errors[1], errors.total()):
        assert np.isnan(each.weighted_relative_rms).all()
        assert np.isnan(each.weighted_sqnr_db).all()
        assert np.isfinite(each.sqnr_db).all()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_importance_that_cannot_weigh_errors(value):
    x = values((2, 256))
    factors = np.ones(256)
    factors[7] = value
    with pytest.raises(LayoutError, match="importance of column 7 is negative, infinite or NaN"):
        measure(x, quantize(x, "Q8_0"), "Q8_0", factors)
    with pytest.raises(
        LayoutError, match=r"importance of shape \[255\] for an array of \[2, 256\]"
    ):
        measure(x, quantize(x, "Q8_0"), "Q8_0", factors[1:])
