"""All layouts of groups: round trips however rows are cut, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.packed.packing import (
    OF_INTEGERS,
    assemble,
    cuts,
    pack_whole,
    random_groups,
    rows,
)
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import NUMPY_DTYPES, MatrixShape
from weightcast.formats.packed.regions import unpack_rows
from weightcast.quant.groups import Groups
from weightcast.quant.types import GroupType


def types(name: str) -> list[GroupType]:
    return [
        GroupType(bits, size, symmetric)
        for bits in ((4,) if name == "awq" else (4, 8))
        for size in (0, 32)
        for symmetric in ((True,) if name == "gptq" else (True, False))
    ]


CASES = [(name, group_type) for name in OF_INTEGERS for group_type in types(name)]
each_case = pytest.mark.parametrize(("name", "group_type"), CASES, ids=str)


def assert_same(found: Groups, expected: Groups) -> None:
    assert found.codes.dtype == np.uint8
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.scales.dtype == expected.scales.dtype
    assert found.scales.tobytes() == expected.scales.tobytes()
    assert (found.zero_points is None) == (expected.zero_points is None)
    if expected.zero_points is not None:
        assert found.zero_points.dtype == np.uint8
        np.testing.assert_array_equal(found.zero_points, expected.zero_points)


@each_case
@given(data=st.data())
@settings(max_examples=15)
def test_unpacks_what_was_packed_in_pieces(name, group_type, data):
    layout = LAYOUTS[name]
    # Word-sized shapes for all; the other layouts also take odd numbers of rows.
    step = 8 if name in ("gptq", "gptq_v2", "awq") else 1
    n_out = step * data.draw(st.integers(1, 6))
    n_in = 32 * data.draw(st.integers(1, 3))
    if name in ("compressed-tensors", "weightcast") and not group_type.group_size:
        n_in += data.draw(st.integers(0, 9))
    scale_dtype = data.draw(st.sampled_from(["BF16", "F16", "F32"]))
    group_type = GroupType(
        group_type.bits, group_type.group_size, group_type.symmetric, scale_dtype
    )
    groups = random_groups(group_type, n_out, n_in, data.draw(st.integers(0, 99)))
    stored, shape = layout.matrix_layout(group_type), MatrixShape(group_type, n_out, n_in)
    pieces = data.draw(cuts(n_out, stored.row_multiple(group_type)))
    segments = [
        segment
        for start, stop in pieces
        for segment in stored.pack(rows(groups, start, stop), shape, start)
    ]
    parts = assemble(stored.parts(shape), segments, stored.constants(shape))
    assert_same(stored.unpack(parts, shape), groups)


@each_case
@given(data=st.data())
@settings(max_examples=15)
def test_unpacks_rows(name, group_type, data):
    layout = LAYOUTS[name]
    n_out = 8 * data.draw(st.integers(1, 5))
    if name == "compressed-tensors":
        n_out += data.draw(st.integers(0, 7))
    groups = random_groups(group_type, n_out, 64)
    parts = pack_whole(layout, groups, group_type)
    stored, shape = layout.matrix_layout(group_type), MatrixShape(group_type, n_out, 64)
    multiple = max(part.rows_each for part in stored.parts(shape))

    def read(part, region):
        assert len(region) == len(part.shape)
        return parts[part.suffix][region]

    for start, stop in data.draw(cuts(n_out, multiple)):
        found = unpack_rows(stored, read, shape, start, stop)
        assert_same(found, rows(groups, start, stop))


def test_rows_that_share_words_are_not_torn():
    group_type = GroupType(4, 32, symmetric=False)
    layout = LAYOUTS["awq"]
    parts = pack_whole(layout, random_groups(group_type, 16, 64), group_type)
    shape = MatrixShape(group_type, 16, 64)
    with pytest.raises(LayoutError, match=r"^rows 4 to 16: 8 of awq are read at a time$"):
        unpack_rows(layout, lambda p, region: parts[p.suffix][region], shape, 4, 16)


def test_a_shape_that_is_another_s_is_refused_in_rows_too():
    group_type = GroupType(4, 32)
    layout = LAYOUTS["compressed-tensors"]
    parts = pack_whole(layout, random_groups(group_type, 16, 64), group_type)
    parts[".weight_shape"] = np.array([64, 16])
    stored, shape = layout.matrix_layout(group_type), MatrixShape(group_type, 16, 64)
    with pytest.raises(LayoutError, match=r"^\.weight_shape says \[64, 16\]"):
        unpack_rows(stored, lambda p, region: parts[p.suffix][region], shape, 0, 8)


@each_case
def test_parts_that_are_wrong_are_refused(name, group_type):
    layout = LAYOUTS[name]
    groups = random_groups(group_type, 16, 64)
    parts = pack_whole(layout, groups, group_type)
    stored, shape = layout.matrix_layout(group_type), MatrixShape(group_type, 16, 64)
    for suffix, array in parts.items():
        without = {key: value for key, value in parts.items() if key != suffix}
        with pytest.raises(MissingTensorError, match=rf"^{name} needs \{suffix}, which is not t"):
            stored.unpack(without, shape)
        for wrong in (array[:-1], array[None], array.astype(np.float64), array.ravel()[:0]):
            with pytest.raises(LayoutError, match=rf"^\{suffix} is \w+ \[.*\], where .* belongs$"):
                stored.unpack(parts | {suffix: wrong}, shape)


@each_case
def test_rows_that_are_wrong_are_refused(name, group_type):
    stored, shape = LAYOUTS[name].matrix_layout(group_type), MatrixShape(group_type, 16, 64)
    good = random_groups(group_type, 16, 64)

    def refused(message: str, groups: Groups = good, row0: int = 0) -> None:
        with pytest.raises(LayoutError, match=message) as refusal:
            list(stored.pack(groups, shape, row0))
        assert "\n" not in str(refusal.value)

    refused("^rows 16 to 32 of 16 cannot be packed", row0=16)
    refused("^rows -16 to 0 of 16 cannot be packed", row0=-16)
    multiple = stored.row_multiple(group_type)
    if multiple > 1:
        refused(f"packs {multiple} at a time$", rows(good, 0, multiple - 1), 0)
        refused(f"packs {multiple} at a time$", rows(good, 0, multiple), 1)
    refused("^codes is uint8", Groups(good.codes[:, :-1], good.scales, good.zero_points))
    refused("^codes is int8", Groups(good.codes.view(np.int8), good.scales, good.zero_points))
    refused("^scales is float64", Groups(good.codes, good.scales.astype(float), good.zero_points))
    other = None if good.zero_points is not None else np.zeros(good.scales.shape, np.uint8)
    refused("^zero points belong to asymmetric", Groups(good.codes, good.scales, other))
    if group_type.bits == 4:
        codes = good.codes.copy()
        codes[3, 5] = 16
        refused("^code 16 does not fit 4 bits$", Groups(codes, good.scales, good.zero_points))
        if good.zero_points is not None:
            high = good.zero_points + np.uint8(16)
            refused("^zero point .. does not fit 4", Groups(good.codes, good.scales, high))


@pytest.mark.parametrize("name", OF_INTEGERS)
@pytest.mark.parametrize(
    ("group_type", "shape", "message"),
    [
        (GroupType(4, 96), (64, 64), "^rows of 64 values are not whole groups of 96$"),
        (GroupType(8, 64), (64, 96), "^rows of 96 values are not whole groups of 64$"),
        (GroupType(4, 32), (0, 64), r"^a matrix \[0, 64\] has no weights"),
    ],
    ids=str,
)
def test_no_layout_stores_it(name, group_type, shape, message):
    with pytest.raises(LayoutError, match=message):
        LAYOUTS[name].matrix_layout(group_type).parts(MatrixShape(group_type, *shape))


@pytest.mark.parametrize(
    ("name", "group_type", "shape", "message"),
    [
        ("gptq", GroupType(4, 0), (64, 60), "^gptq packs 8 values along `in` a word, not 60$"),
        ("gptq_v2", GroupType(8, 0), (66, 64), "^gptq_v2 packs 4 values along `out` a word, not 6"),
        ("awq", GroupType(8, 32), (64, 64), "^awq stores 4 bits, not 8$"),
        ("awq", GroupType(4, 32), (60, 64), "^awq packs 8 values along `out` a word, not 60$"),
    ],
    ids=str,
)
def test_this_layout_does_not_store_it(name, group_type, shape, message):
    with pytest.raises(LayoutError, match=message):
        LAYOUTS[name].matrix_layout(group_type).parts(MatrixShape(group_type, *shape))


def test_gptq_v1_does_not_write_asymmetric_groups():
    group_type = GroupType(4, 32, symmetric=False)
    groups = random_groups(group_type, 16, 64)
    with pytest.raises(LayoutError, match=r"^gptq has no zero point 0: asymmetric groups need gpt"):
        list(LAYOUTS["gptq"].pack(groups, MatrixShape(group_type, 16, 64), 0))


def test_dtypes_have_the_sizes_of_safetensors():
    from weightcast.formats.array import ITEM_BYTES

    for name, dtype in NUMPY_DTYPES.items():
        assert dtype.itemsize == ITEM_BYTES[name]
