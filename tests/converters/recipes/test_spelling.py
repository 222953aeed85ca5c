"""Names of types as people write them, and what other programs call types."""

from __future__ import annotations

import pytest

from weightcast.converters.recipes import (
    RECIPES,
    directory_type,
    recipe_named,
    spelling,
    type_names,
)
from weightcast.converters.targets import parse_output
from weightcast.errors import RequestError


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("separator", ["_", "-", ".", " ", ""])
def test_every_recipe_in_every_spelling(name: str, separator: str) -> None:
    written = name.replace("_", separator)
    for spelled in (written, written.lower()):
        assert recipe_named(spelled) == RECIPES[name]
        for before in ("m-", "m_", "m.", "b-", "I."):
            found = spelling.find_ending(before + spelled, recipe_named)
            assert found == (spelled, RECIPES[name])


@pytest.mark.parametrize("name", type_names())
def test_every_directory_type_in_every_spelling(name: str) -> None:
    for spelled in (name, name.upper(), name.replace("-", "_")):
        found = directory_type(spelled)
        assert found is not None
        assert found.name == name


def test_what_comes_before_a_type_is_not_a_part_of_it() -> None:
    assert spelling.find_ending("b-F16", recipe_named) == ("F16", RECIPES["F16"])
    assert spelling.find_ending("mxfp4-q4_0", recipe_named) == ("q4_0", RECIPES["Q4_0"])
    assert recipe_named("B_F16") is None


@pytest.mark.parametrize(
    ("path", "type_name", "says_imatrix"),
    [
        ("x_Q4_K_M.gguf", "Q4_K_M", False),
        ("x-Q4KM.gguf", "Q4_K_M", False),
        ("x.q8-0.gguf", "Q8_0", False),
        ("x-Q4_K_M-imat.gguf", "Q4_K_M", True),
        ("x.i1-IQ2_M.gguf", "IQ2_M", True),
        ("x-imat-IQ2_M.gguf", "IQ2_M", True),
        ("grok-i1-bf16", "BF16", True),
        ("x-iq3xxs_imatrix.gguf", "IQ3_XXS", True),
        ("x-fp16.gguf", "F16", False),
        ("x_int8_g128_gptq_v2/", "int8-g128-gptq_v2", False),
        ("x-int4-imat", "int4", True),
        ("x-bfloat16", "BF16", False),
    ],
)
def test_names_as_people_write_them(path: str, type_name: str, says_imatrix: bool) -> None:
    request = parse_output(path, None)
    assert (request.type_name, request.says_imatrix) == (type_name, says_imatrix)


@pytest.mark.parametrize(
    ("path", "type_name", "problem"),
    [
        ("x-Q4_K_M.GGUF", None, "write the ending in lower case, x-Q4_K_M.gguf"),
        ("x-Q4_K_L.gguf", None, "it is Q4_K_M with embedding and output finer"),
        ("x-UD-Q4_K_XL.gguf", None, "UD-Q4_K_XL is not a type of a GGUF file; it is a recipe of U"),
        ("x-IQ4_KS.gguf", None, "it is a type of ik_llama.cpp alone"),
        ("x-Q4_0_4_4.gguf", None, "take Q4_0"),
        ("x-Q4_K_N.gguf", None, "did you mean Q4_K_"),
        ("x-Q4.gguf", None, "4 bits are Q4_K_M in GGUF"),
        ("x-Q4_K_M-mine.gguf", None, "Q4_K_M is not at the end of the name"),
        ("x-int4-g128.gguf", None, "int4-g128 is a type of directories; leave .gguf out"),
        ("x-Q4_K_M-00001-of-00003.gguf", None, "leave -00001-of-00003 out"),
        ("Q4_K_M", None, "this is a type, not the name of an output; write NAME-Q4_K_M.gguf"),
        ("x-Q4_K_M/", None, "Q4_K_M is a type of GGUF files; name the output x-Q4_K_M.gguf"),
        ("x-awq", None, "say its bits and group size: int4-g128-awq"),
        ("x-W4A16", None, "it is called int4-g128 here"),
        ("x-Q8_0.gguf", "Q4_K_M", "the name says Q8_0, but types='Q4_K_M' is given"),
        ("x-bf16", "int8", "the name says bf16, but types='int8' is given"),
        ("x", "Q4_K_M", "Q4_K_M is a type of GGUF files; name the output x.gguf"),
    ],
)
def test_names_that_are_explained(path: str, type_name: str | None, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_output(path, type_name)
    assert problem in str(caught.value)


def test_a_type_that_agrees_with_the_name() -> None:
    assert parse_output("x-Q4_K_M.gguf", "q4_k").type_name == "Q4_K_M"
    assert parse_output("x-int4", "int4-g128").type_name == "int4-g128"
