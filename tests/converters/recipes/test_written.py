"""Rules that are written for types give these types, as recipe files read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.converters.recipes import RECIPES, facts_from_metadata, read_recipe_file
from weightcast.converters.recipes.decide import decide
from weightcast.converters.recipes.written import WrittenRule, recipe_text, rules_of
from weightcast.quant.types import TYPES, QuantType

ROLES = st.sampled_from(("attn_q", "attn_k", "ffn_up_exps", "a'b", "c+(d", "ü\n", "e\x7f"))
NAMES = st.one_of(
    st.builds("blk.{}.{}.weight".format, st.integers(0, 130), ROLES),
    st.builds("v.blk.{}.{}.weight".format, st.integers(0, 12), ROLES),
    st.builds("blk.0{}.{}.weight".format, st.integers(0, 3), ROLES),
    st.builds("{}.weight".format, ROLES),
)
FACTS = facts_from_metadata({}, has_importance=False)


@given(
    st.dictionaries(NAMES, st.sampled_from([TYPES[n] for n in ("Q2_K", "Q4_K", "Q8_0")])),
    st.sets(NAMES, max_size=5),
)
def test_rules_give_the_types_that_they_were_written_for(
    tmp_path_factory: pytest.TempPathFactory, types: dict[str, QuantType], others: set[str]
) -> None:
    others = others - set(types)
    path = tmp_path_factory.mktemp("written") / "recipe.toml"
    path.write_text(recipe_text("Q6_K", rules_of(types, others), ["A recipe."]))
    file = read_recipe_file(path)
    shapes = [(name, (8, 256)) for name in (*types, *sorted(others))]
    decisions = decide(RECIPES["Q6_K"], shapes, FACTS, file.overrides)
    for (name, _), decision in zip(shapes, decisions, strict=True):
        if name in types:
            assert decision.type == types[name]
            assert decision.override is not None
        else:
            assert decision.override is None


def test_rules_can_be_read() -> None:
    low = {0, 1, *range(30, 36), 63}
    types = {
        f"blk.{n}.ffn_up_exps.weight": TYPES["Q6_K" if n in low else "Q3_K"] for n in range(64)
    }
    types |= {f"blk.{n}.attn_q.weight": TYPES["Q8_0"] for n in range(64)}
    types["token_embd.weight"] = TYPES["Q8_0"]
    assert rules_of(types) == [
        WrittenRule(
            r"^blk\.(?:[01]|3[0-5]|63)\.ffn_up_exps\.weight$", "Q6_K", "layers 0, 1, 30 to 35, 63"
        ),
        WrittenRule(
            r"^blk\.(?:[2-9]|1[0-9]|2[0-9]|3[6-9]|4[0-9]|5[0-9]|6[0-2])\.ffn_up_exps\.weight$",
            "Q3_K",
            "layers 2 to 29, 36 to 62",
        ),
        WrittenRule(r"^blk\.\d+\.attn_q\.weight$", "Q8_0", "layers 0 to 63"),
        WrittenRule(r"^token_embd\.weight$", "Q8_0"),
    ]


def test_many_layers_take_several_rules() -> None:
    types = {f"blk.{n * 11}.a.weight": TYPES["Q4_K"] for n in range(300)}
    types["blk.1.a.weight"] = TYPES["Q2_K"]
    rules = rules_of(types)
    assert len(rules) > 5
    assert max(len(rule.pattern) for rule in rules) < 500


def test_what_a_pattern_is_for_stands_where_there_is_room() -> None:
    rules = [WrittenRule("a" * 20, "Q2_K", "layer 3"), WrittenRule("b" * 90, "Q4_K", "layers 4, 5")]
    lines = recipe_text("Q4_K_M", rules, []).splitlines()
    at = lines.index("[[rule]]")
    assert lines[at + 1].startswith(f"pattern = '{'a' * 20}'  ")
    assert lines[at + 1].endswith(" # layer 3")
    assert lines[at + 5 :] == ["# layers 4, 5", f"pattern = '{'b' * 90}'", 'type = "Q4_K"']


def test_comments_are_broken_and_stay_comments() -> None:
    text = recipe_text("Q4_K_M", [], ["word " * 40, 'a\nbase = "F16"'])
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["", 'base = "Q4_K_M"']
    assert max(map(len, lines)) <= 100
