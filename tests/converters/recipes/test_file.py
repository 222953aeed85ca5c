"""Recipes of one's own: files, options, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weightcast.converters.recipes.file import parse_tensor_type, read_recipe_file
from weightcast.converters.recipes.recipe import RECIPES
from weightcast.converters.recipes.weight_types import directory_type
from weightcast.errors import CheckpointError, FormatError, RequestError
from weightcast.quant.types import Q5_0, Q6_K, Q8_0, GroupType

EXAMPLE = r"""
base = "q4_k"  # an alias, in any case

[[rule]]
pattern = 'ffn_down'
type = "Q6_K"

[[rule]]
pattern = '^blk\.\d\.attn'
type = "q5_0"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, EXAMPLE)
    found = read_recipe_file(path)
    assert found.base == RECIPES["Q4_K_M"]
    first, second = found.overrides
    assert (first.pattern.pattern, first.type) == ("ffn_down", Q6_K)
    assert (second.pattern.pattern, second.type) == (r"^blk\.\d\.attn", Q5_0)
    assert first.origin == f"{path}: rule 1: 'ffn_down'"


def test_a_file_for_directories(tmp_path: Path) -> None:
    rule = """[[rule]]\npattern = 'attn_'\ntype = "INT8-g64-asym"\n"""
    found = read_recipe_file(write(tmp_path, f'base = "int4-g32-gptq"\n{rule}'))
    assert found.base is None
    assert found.directory == directory_type("int4-g32-gptq")
    assert found.overrides[0].type == GroupType(8, 64, symmetric=False)
    both = read_recipe_file(write(tmp_path, 'base = "mxfp4"'))
    assert (both.base, both.directory) == (RECIPES["MXFP4"], directory_type("mxfp4"))


def test_a_file_without_rules(tmp_path: Path) -> None:
    assert read_recipe_file(write(tmp_path, 'base = "F16"')).overrides == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("base = ", "not valid TOML"),
        ("", "base is missing"),
        ("base = 4", "base is 4, which is no type"),
        ("base.a" + 600 * ".a" + " = 1", "line 1 is longer than 1000 bytes"),
        (
            'base = "Q4_0"\n[[rule]]\npattern = "[[a]"\ntype = "Q6_K"',
            "rule 1: pattern '[[a]' is not a regex: Poss",
        ),
        ('base = "Q4_K_XL"', "base is 'Q4_K_XL', which is no type; it is a recipe of Unsloth's"),
        ('base = "Q4_0"\nrules = 1', "unknown key 'rules'; known: base, rule"),
        ('base = "Q4_0"\nrule = 1', "rules are written as [[rule]] tables"),
        ('base = "Q4_0"\nrule = [1]', "rule 1: not a table"),
        ('base = "Q4_0"\n[[rule]]\ntype = "Q6_K"', "rule 1: pattern is missing"),
        ('base = "Q4_0"\n[[rule]]\npattern = "a"', "rule 1: type is missing"),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = "Q6_K"\nlayers = 3',
            "rule 3: unknown key 'layers'; known: pattern, type",
        ),
        (EXAMPLE + '[[rule]]\npattern = "("\ntype = "Q6_K"', "rule 3: pattern '(' is not a regex"),
        (EXAMPLE + '[[rule]]\npattern = 1\ntype = "Q6_K"', "rule 3: pattern 1 is not a regex"),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = "Q9"',
            "rule 3: unknown type 'Q9'; weightcast.types() lists",
        ),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = "int8"',
            "rule 3: type 'int8' does not say",
        ),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = "int4-g32-awq"',
            "rule 3: type 'int4-g32-awq'",
        ),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = 6',
            "rule 3: unknown type 6; weightcast.types() lists",
        ),
        (
            EXAMPLE + '[[rule]]\npattern = "a"\ntype = "Q4_K_M"',
            "rule 3: unknown type 'Q4_K_M': it is a recipe for a whole file; a tensor's type is",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FormatError, match=re.escape(f"{path}: {problem}")) as caught:
        read_recipe_file(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"base = \xff")
    with pytest.raises(FormatError, match="not valid TOML"):
        read_recipe_file(tmp_path / "r.toml")


def test_nested_tables_without_end(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not valid TOML"):
        read_recipe_file(write(tmp_path, "base = " + "[\n" * 100_000))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, EXAMPLE)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"r\.toml: cannot be read: Permission denied"):
        read_recipe_file(path)


def test_files_too_large(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too much"):
        read_recipe_file(write(tmp_path, "#" * (1 << 21)))


def test_tensor_types() -> None:
    found = parse_tensor_type("attn_(q|k)=q8_0")
    assert (found.pattern.pattern, found.type) == ("attn_(q|k)", Q8_0)
    assert found.origin == "rule attn_(q|k)=q8_0"
    # The last = counts: lookaheads have one, types have none.
    assert parse_tensor_type("attn(?=_q)=Q8_0").pattern.pattern == "attn(?=_q)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("attn_v", "write it as REGEX=TYPE"),
        ("=Q8_0", "write it as REGEX=TYPE"),
        ("attn_v=", "write it as REGEX=TYPE"),
        ("attn_v=Q9", "unknown type 'Q9'; weightcast.types() lists"),
        ("(=Q8_0", "pattern '(' is not a regex"),
    ],
)
def test_tensor_types_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"tensor_types {text}: {problem}")):
        parse_tensor_type(text)
