"""Files of sensitivities: what is written is read again, and what is wrong is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.converters.recipes.sensitivity import (
    MeasuredSource,
    Measurement,
    Sensitivities,
    TensorSensitivity,
    fingerprint_of,
    read_sensitivities,
    sensitivity_text,
    write_sensitivities,
)
from weightcast.converters.recipes.sensitivity_schema import schema_text
from weightcast.errors import FormatError, LayoutError
from weightcast.quant.types import TYPES

SCHEMA = Path(__file__).parents[3] / "docs/sensitivity.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
SHAPES = [("blk.0.attn_q.weight", (256, 256)), ("blk.0.ffn_up_exps.weight", (4, 512, 256))]
FOUND = Sensitivities(
    MeasuredSource("m", 589_824, fingerprint_of(SHAPES)),
    Measurement("text.txt", 4096, 512),
    {
        name: TensorSensitivity(name, shape, {"Q4_K": 0.01, "Q2_K": 0.3}, {"Q4_K": 0.002})
        for name, shape in SHAPES
    },
)


def values() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sensitivity_text(FOUND))
    return found


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.tuples(
            st.lists(st.integers(1, 1 << 40), min_size=1, max_size=4),
            st.dictionaries(st.sampled_from(sorted(TYPES)), st.floats(0, 1e12), min_size=1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], importance: bool
) -> None:
    path = tmp_path_factory.mktemp("written") / "costs.json"
    made = Sensitivities(
        FOUND.source,
        Measurement("t", 7, 3, "least-error", importance),
        {
            name: TensorSensitivity(
                name, tuple(shape), local, {t: 0.5 for t, cost in local.items() if cost}
            )
            for name, (shape, local) in tensors.items()
        },
        path,
    )
    write_sensitivities(path, made)
    found = read_sensitivities(path)
    assert found == made
    assert sensitivity_text(found) == path.read_text()


def test_equal_ones_give_equal_text() -> None:
    def turned(costs: Any) -> dict[str, float]:
        return dict(reversed(costs.items()))

    tensors = {
        name: replace(t, local=turned(t.local)) for name, t in reversed(FOUND.tensors.items())
    }
    assert sensitivity_text(replace(FOUND, tensors=tensors)) == sensitivity_text(FOUND)
    assert list(tensors) != list(FOUND.tensors)


def change(*keys: str) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def to(value: Any) -> Callable[[dict[str, Any]], None]:
        def apply(values: dict[str, Any]) -> None:
            for key in keys[:-1]:
                values = values[key]
            if value is None:
                del values[keys[-1]]
            else:
                values[keys[-1]] = value

        return apply

    return to


def test_the_schema_is_current() -> None:
    """Else run: python -m weightcast.converters.recipes.sensitivity_schema > docs/sensit..."""
    assert SCHEMA.read_text() == schema_text()
    VALIDATOR.validate(values())


QUERY = "tensors", "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (change("format")("other"), "no sensitivities: its format is not weightcast.sensitivity"),
        (change("version")(2), "version 2 of sensitivities, expected 1; measure it again"),
        (change("version")(None), "version None of sensitivities"),
        (change("text")("a"), "unknown key 'text'; known: format, version, source"),
        (change("measured")(None), "measured is missing"),
        (change("measured")([]), "measured: not an object"),
        (change("measured", "tokens")(0), "measured: tokens is 0, expected a whole number above"),
        (change("measured", "tokens")(True), "measured: tokens is True, expected a whole number"),
        (change("measured", "context")(1 << 62), "expected a whole number above 0"),
        (change("measured", "importance")(1), "importance is 1, expected true or false"),
        (change("measured", "text")(""), "measured: text is '', expected a text"),
        (change("source", "name")("a" * 5000), "source: name is 'aaa"),
        (change("source", "parameters")("9"), "source: parameters is '9', expected a whole"),
        (change("source", "tensors")(None), "source: tensors is missing"),
        (change("tensors")({}), "no tensor was measured; measure it again"),
        (change(*QUERY)(3), "tensors: blk.0.attn_q.weight: not an object"),
        (change(*QUERY, "shape")([256, 0]), "blk.0.attn_q.weight: shape is [256, 0], expected"),
        (change(*QUERY, "shape")([1] * 9), "blk.0.attn_q.weight: shape is [1, 1, 1"),
        (change(*QUERY, "local")({}), "blk.0.attn_q.weight: no type was measured"),
        (change(*QUERY, "local")(None), "blk.0.attn_q.weight: local is missing"),
        (change(*QUERY, "probes")({}), "blk.0.attn_q.weight: unknown key 'probes'"),
        (
            change(*QUERY, "local", "Q4_K")(-1),
            "local: Q4_K is -1, expected a number from 0 to 1e12",
        ),
        (change(*QUERY, "local", "Q4_K")("1"), "local: Q4_K is '1', expected a number from"),
        (change(*QUERY, "local", "Q4_K")(True), "local: Q4_K is True, expected a number from"),
        (change(*QUERY, "local", "Q4_X")(1), "local: unknown type 'Q4_X'"),
        (change(*QUERY, "probe", "Q6_K")(1), "probe: Q6_K has no local effect that is above 0"),
        (change(*QUERY, "local", "Q4_K")(0), "probe: Q4_K has no local effect that is above 0"),
    ],
)
def test_what_is_wrong_is_named(
    apply: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    given, path = values(), tmp_path / "costs.json"
    apply(given)
    path.write_text(json.dumps(given))
    with pytest.raises(FormatError) as caught:
        read_sensitivities(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    # What a type needs beside its probe, no schema says.
    assert VALIDATOR.is_valid(given) == said.startswith("probe: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1.1e12"])
def test_numbers_that_are_none(number: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(sensitivity_text(FOUND).replace("0.3", number))
    with pytest.raises(FormatError, match="expected a number from 0 to 1e12"):
        read_sensitivities(path)


@pytest.mark.parametrize("cut", range(0, len(sensitivity_text(FOUND)) - 2, 37))
def test_a_file_that_is_cut_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(sensitivity_text(FOUND)[:cut])
    with pytest.raises(FormatError, match=f"^{re.escape(str(path))}: "):
        read_sensitivities(path)


def test_divergences_are_probed_or_scaled() -> None:
    local = {"Q8_0": 0.0, "Q6_K": 1e-4, "Q4_K": 1e-2, "Q3_K": 0.04, "Q2_K": 0.3}
    tensor = TensorSensitivity("a", (256,), local, {"Q4_K": 0.002, "Q2_K": 0.09})
    assert tensor.divergence("Q4_K") == 0.002
    assert tensor.divergence("Q8_0") == 0.0
    assert tensor.divergence("Q6_K") == pytest.approx(0.002 * 1e-4 / 1e-2)
    assert tensor.divergence("Q3_K") == pytest.approx(0.002 * 4)  # Q4_K is closer than Q2_K
    only = replace(tensor, probe={"Q2_K": 0.09})
    assert only.divergence("Q3_K") == pytest.approx(0.09 * 0.04 / 0.3)


def test_a_divergence_has_a_most() -> None:
    tensor = TensorSensitivity("a", (256,), {"Q4_K": 5e-324, "Q2_K": 1e12}, {"Q4_K": 1e12})
    assert tensor.divergence("Q2_K") == 1e12


def test_costs_are_divergences_only_where_all_are_probed() -> None:
    assert FOUND.has_probes
    assert FOUND.cost("blk.0.attn_q.weight", "Q4_K") == 0.002
    name = "blk.0.ffn_up_exps.weight"
    half = replace(FOUND, tensors={**FOUND.tensors, name: replace(FOUND.tensors[name], probe={})})
    assert not half.has_probes
    assert half.cost("blk.0.attn_q.weight", "Q4_K") == 0.01
    assert half.cost("blk.0.attn_q.weight", "Q5_K") is None
    assert half.cost("blk.1.attn_q.weight", "Q4_K") is None
    assert half.types == ("Q4_K", "Q2_K")


def test_the_model_that_was_measured() -> None:
    FOUND.check_model(SHAPES)
    norm = ("blk.0.attn_norm.weight", (256,))
    FOUND.check_model([norm, (SHAPES[0][0], (1, 256, 256)), SHAPES[1]])
    for shapes, said in (
        (SHAPES[:1], "it has 'blk.0.ffn_up_exps.weight', which the model lacks"),
        ([SHAPES[0], (SHAPES[1][0], (8, 512, 256))], "[4, 512, 256] in it, [8, 512, 256] in the"),
        ([*SHAPES, ("output.weight", (9, 256))], "names or shapes of other matrices differ"),
    ):
        with pytest.raises(LayoutError, match=r"measured on another model \('m'\)") as caught:
            FOUND.check_model(shapes)
        assert said in str(caught.value)


def test_a_fingerprint_is_of_matrices_in_any_order() -> None:
    assert fingerprint_of(reversed(SHAPES)) == fingerprint_of(SHAPES)
    assert fingerprint_of([*SHAPES, ("rope_freqs.weight", (16,)), ("a.bias", (2, 2))]) == (
        fingerprint_of(SHAPES)
    )
    assert fingerprint_of(SHAPES[:1]) != fingerprint_of(SHAPES)
