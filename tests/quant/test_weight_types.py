"""Weight types of every kind say the same of themselves."""

from __future__ import annotations

import pytest

from weightcast.errors import LayoutError
from weightcast.quant.types import BF16, Q4_K, Q8_0, Fp8Type, GroupType, WeightType


@pytest.mark.parametrize(
    ("weight_type", "label"),
    [
        (BF16, "BF16"),
        (Q4_K, "Q4_K"),
        (GroupType(4, 128), "INT4-G128"),
        (GroupType(8, 0, symmetric=False, scale_dtype="F32"), "INT8-CHANNEL-ASYM"),
        (Fp8Type(), "FP8"),
        (Fp8Type(128, 128), "FP8-BLOCK"),
    ],
)
def test_labels(weight_type: WeightType, label: str) -> None:
    assert weight_type.label == label
    assert weight_type.is_plain == (weight_type == BF16)
    assert not weight_type.carries_codes


def test_int8_codes_are_carried_into_symmetric_groups_of_eight_bits() -> None:
    assert GroupType(8, 32).carries_codes
    assert not GroupType(8, 32, symmetric=False).carries_codes
    assert not GroupType(4, 32).carries_codes


def test_values_that_share_a_scale() -> None:
    assert GroupType(4, 32).scale_span(96) == 32
    assert GroupType(4, 0).scale_span(96) == 96
    assert Fp8Type(64, 64).scale_span(96) == 64
    assert Fp8Type().scale_span(96) == 96
    assert Q4_K.scale_span(512) == 256


def test_a_group_that_is_a_row_is_a_scale_a_row() -> None:
    assert GroupType(8, 64, symmetric=False).in_rows_of(64) == GroupType(8, 0, symmetric=False)
    for weight_type in (GroupType(8, 32), GroupType(8, 0), Q4_K, Fp8Type(64, 64)):
        assert weight_type.in_rows_of(64) == weight_type


def test_asymmetric_groups_may_have_been_symmetric() -> None:
    assert GroupType(4, 32, symmetric=False).lookalike == GroupType(4, 32)
    assert all(t.lookalike is None for t in (GroupType(4, 32), BF16, Fp8Type()))


def test_rows_that_kernels_cannot_make() -> None:
    for weight_type in (GroupType(4, 64), GroupType(4, 0), Q8_0):
        with pytest.raises(LayoutError, match=r"^a row of 40 values does not fill"):
            weight_type.check_row(40)
        weight_type.check_row(64)
    Fp8Type(128, 128).check_row(40)
