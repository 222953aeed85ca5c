"""Types by the names that people write."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from weightcast.converters.recipes import RECIPES, directory_type, type_names
from weightcast.converters.recipes.weight_types import rule_type
from weightcast.errors import LayoutError, RequestError
from weightcast.quant.names import type_named, weight_type_named
from weightcast.quant.types import TYPES, Fp8Type, GroupType, WeightType
from weightcast.text import speaking_of_options


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
        ("int4.g128", GroupType(4, 128)),
        ("INT4 G128", GroupType(4, 128)),
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
        ("int3", "groups of 3 bits: use 4 or 8"),
        ("int4", "type 'int4' does not say its groups; write it like int4-g128"),
        ("int8-asym", "type 'int8-asym' does not say its groups; write it like int8-g128-asym"),
        ("INT4", "type 'INT4' does not say its groups; write it like int4-g128"),
        (
            "int4-g128-awq",
            "'int4-g128-awq' names more than a type, such as a layout of files; leave that out and "
            "write int4-g128",
        ),
        ("weightcast-int4-g32", "such as a layout of files; leave that out and write int4-g32"),
        ("int8_asym_gptq", "leave that out and write int8-g128-asym"),
        ("int4-g0", "unknown type 'int4-g0'; a scale for each row is int4-channel"),
        ("int4-128", "unknown type 'int4-128'; did you mean int4-g128?"),
        ("int4g128", "unknown type 'int4g128'; did you mean int4-g128?"),
        (f"int4-g{'9' * 5000}", "names more than a type"),
        # A near name, then another program's, then a farther one.
        ("nvfp", "unknown type 'nvfp'; did you mean NVFP4?"),
        ("nf4", "unknown type 'nf4'; weightcast does not write it"),
        ("iq4ks", "unknown type 'iq4ks'; it is a type of ik_llama.cpp alone"),
        ("W4A16", "unknown type 'W4A16'; it is called int4-g128 here"),
        (
            "Q8_K",
            "unknown type 'Q8_K'; it is llama.cpp's for activations, not for files: take Q8_0",
        ),
        ("Q4_0_4_4", "llama.cpp repacks Q4_0 when it loads it: take Q4_0"),
        ("UD-Q4_K_XL", "take a type that weightcast.types() lists, and tensor_types for single"),
        ("banana", "unknown type 'banana'; weightcast.types() lists them all"),
        ("", "unknown type ''; weightcast.types() lists them all"),
    ],
)
def test_what_is_no_type(name: str, said: str) -> None:
    with pytest.raises(LayoutError) as caught:
        weight_type_named(name)
    assert said in str(caught.value)


def test_a_type_of_directories_is_none_of_gguf() -> None:
    with pytest.raises(LayoutError, match="fp8 is a type of directories; here it must be one of G"):
        type_named("fp8")


def test_a_hint_for_the_command_line() -> None:
    with speaking_of_options(), pytest.raises(LayoutError) as caught:
        weight_type_named("banana")
    assert str(caught.value) == "unknown type 'banana'; weightcast types lists them all"


def separated(name: str) -> list[str]:
    return [name.replace("-", separator) for separator in "-_. "]


def look_up_or_refuse(lookup: Callable[[str], WeightType], name: str) -> WeightType | str:
    try:
        return lookup(name)
    except (LayoutError, RequestError) as problem:
        return str(problem)


@pytest.mark.parametrize("name", [n for n in type_names() if directory_type(n).is_packed])
def test_types_of_directories_are_the_same_everywhere(name: str) -> None:
    """Names are read alike by outputs, rules and arrays, and layouts are told by all of them."""
    for written in (*separated(name), *separated(name.upper())):
        found = directory_type(written)
        assert found is not None
        assert found.name == name
        said = look_up_or_refuse(rule_type, written)
        made = look_up_or_refuse(weight_type_named, written)
        if isinstance(said, str):
            assert ("does not say its groups" in said) == ("does not say its groups" in str(made))
            assert ("names a layout" in said) == ("names more than a type" in str(made))
        else:
            assert said == made == found.experts
