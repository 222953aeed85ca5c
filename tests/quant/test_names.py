"""Types by the names that people write."""

from __future__ import annotations

import pytest

from weightcast.converters.recipes import RECIPES
from weightcast.errors import LayoutError
from weightcast.quant.names import type_named, weight_type_named
from weightcast.quant.types import TYPES, Fp8Type, GroupType


@pytest.mark.parametrize("name", TYPES)
def test_gguf_types_in_any_spelling(name: str) -> None:
    spellings = (name, name.lower(), name.replace("_", ""), name.replace("_", "-"), f" {name} ")
    for spelling in spellings:
        assert type_named(spelling) is weight_type_named(spelling) is TYPES[name]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("float32", TYPES["F32"]),
        ("fp16", TYPES["F16"]),
        ("bfloat16", TYPES["BF16"]),
        ("int4-g128", GroupType(4, 128)),
        ("INT8_G32_ASYM", GroupType(8, 32, symmetric=False)),
        ("int8-channel", GroupType(8, 0)),
        ("int4-g96", GroupType(4, 96)),
        ("FP8", Fp8Type()),
        ("fp8-block", Fp8Type(128, 128)),
    ],
)
def test_other_names(name: str, found: object) -> None:
    assert weight_type_named(name) == found


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(TYPES)))
def test_a_recipe_is_no_type(name: str) -> None:
    for spelling in (name, name.lower(), name.replace("_", "")):
        with pytest.raises(LayoutError, match="is a recipe for whole models, not a type; use "):
            weight_type_named(spelling)
    with pytest.raises(LayoutError) as caught:
        weight_type_named(name)
    meant = str(caught.value).partition("; use ")[2].split()[0]
    assert type_named(meant).name == meant


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q4_q", "unknown type 'q4_q'; did you mean Q4_K?"),
        ("int4-g12", "group size 12: use a multiple of 32, or 0 for rows"),
        ("int3-g128", "groups of 3 bits: use 4 or 8"),
        ("int4", "type 'int4' does not say its groups; write it like int4-g128"),
        ("int8-asym", "type 'int8-asym' does not say its groups; write it like int8-g128-asym"),
        (
            "int4-g128-awq",
            "int4-g128-awq names a layout of files; leave it out and write int4-g128",
        ),
        ("weightcast-int4-g32", "names a layout of files; leave it out and write int4-g32"),
        ("banana", "unknown type 'banana'; known: BF16, F16, F32, IQ1_M, "),
        ("", "unknown type ''; known: "),
    ],
)
def test_what_is_no_type(name: str, said: str) -> None:
    with pytest.raises(LayoutError) as caught:
        weight_type_named(name)
    assert said in str(caught.value)


def test_a_type_of_directories_is_none_of_gguf() -> None:
    with pytest.raises(LayoutError, match="fp8 is a type of directories; here it must be one of G"):
        type_named("fp8")
