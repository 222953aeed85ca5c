"""Choices for a size: the best of all, under what binds them; the plain rule beside it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.converters.recipes.size import (
    Choice,
    FreeTensor,
    Problem,
    finest,
    fit_cost,
    fit_size,
    groups_of,
    plain_rule,
    plain_types,
    smallest,
    types_for,
)
from weightcast.errors import LayoutError
from weightcast.quant.types import F16, IQ2_XXS, IQ3_XXS, Q4_K, Q8_0, TYPES, QuantType

NAMES = ("Q8_0", "Q6_K", "Q4_K", "Q2_K")
FOUR = tuple(TYPES[name] for name in NAMES)


def bits(quant_type: QuantType) -> float:
    return 8 * quant_type.block_bytes / quant_type.block_elements


def problem(
    costs: Mapping[str, Mapping[str, float]],
    rows: Callable[[str], int] = lambda name: 8,
    together: tuple[tuple[int, ...], ...] = (),
    alignment: int = 32,
) -> Problem:
    free = tuple(
        FreeTensor(name, (rows(name), 256), tuple(t for t in FOUR if t.name in found))
        for name, found in costs.items()
    )
    return Problem(free, 100, alignment, together, lambda name, t: costs[name].get(t))


COSTS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.floats(0, 10), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
).map(lambda found: {f"blk.{n}.a.weight": costs for n, costs in enumerate(found)})


def all_choices(given: Problem) -> list[tuple[float, int]]:
    """Give (cost, bytes) of every choice in which tensors of a group have the same type."""
    found = []
    for types in itertools.product(*(tensor.types for tensor in given.free)):
        if any(len({types[n] for n in group}) > 1 for group in given.together):
            continue
        named = {t.name: chosen for t, chosen in zip(given.free, types, strict=True)}
        cost = given.total_cost(named)
        assert cost is not None
        found.append((cost, given.total(named)))
    return found


@given(COSTS, st.integers(100, 9000), st.booleans())
def test_it_costs_least_of_all_that_fit(
    costs: dict[str, dict[str, float]], limit: int, grouped: bool
) -> None:
    together = (tuple(range(min(2, len(costs)))),) if grouped else ()
    given = problem(costs, together=together)
    fitting = [cost for cost, nbytes in all_choices(given) if nbytes <= limit]
    try:
        found = fit_size(given, limit)
    except LayoutError:
        assert not all_choices(given)
        return
    if found is None:
        assert not fitting
        return
    assert found.cost is not None
    assert found.nbytes == given.total(found.types) <= limit
    assert found.cost == pytest.approx(min(fitting), rel=1e-12, abs=1e-12)
    assert found.is_best


@given(COSTS, st.floats(0, 30))
def test_it_is_the_smallest_of_all_that_cost_no_more(
    costs: dict[str, dict[str, float]], most: float
) -> None:
    given = problem(costs)
    sizes = [nbytes for cost, nbytes in all_choices(given) if cost <= most]
    nearly = [nbytes for cost, nbytes in all_choices(given) if cost <= most - 1e-12]
    found = fit_cost(given, most)
    if found is None:
        assert not nearly
        return
    assert found.cost is not None
    assert found.cost <= most
    assert min(sizes) <= found.nbytes <= min(nearly, default=found.nbytes)


def test_costs_of_very_different_size_are_told_apart() -> None:
    costs = {"a.weight": {"Q8_0": 1e-15, "Q2_K": 3e-15}, "b.weight": {"Q8_0": 2.0, "Q2_K": 2.0}}
    given = problem(costs)
    sizes = {t: given.nbytes(given.free[0], TYPES[t]) for t in ("Q8_0", "Q2_K")}
    found = fit_size(given, 100 + sizes["Q8_0"] + sizes["Q2_K"])
    assert found is not None
    assert found.types == {"a.weight": Q8_0, "b.weight": TYPES["Q2_K"]}


def test_the_ends_of_what_is_possible() -> None:
    costs = {"a.weight": {"Q8_0": 0.1, "Q2_K": 0.3}, "b.weight": {"Q6_K": 0.5, "Q4_K": 0.4}}
    given = problem(costs)
    least, best = smallest(given), finest(given)
    assert {name: t.name for name, t in least.types.items()} == {
        "a.weight": "Q2_K",
        "b.weight": "Q4_K",
    }
    assert {name: t.name for name, t in best.types.items()} == {
        "a.weight": "Q8_0",
        "b.weight": "Q4_K",
    }
    assert fit_size(given, least.nbytes - 1) is None
    assert fit_size(given, least.nbytes) == Choice(
        least.types, least.nbytes, least.cost, is_best=True
    )
    assert fit_cost(given, 0.499) is None
    assert fit_cost(given, math.nextafter(0.5, 1)) is not None


def test_padding_counts_where_files_are_padded() -> None:
    costs = {f"{n}.weight": {"Q6_K": 0.1, "Q2_K": 0.3} for n in "ab"}
    padded, plain = (problem(costs, lambda _: 3, alignment=n) for n in (32, 1))
    assert plain.total(finest(plain).types) == 100 + 2 * 3 * 210
    assert padded.total(finest(padded).types) == 100 + 2 * 640


def test_groups_are_of_a_layer_and_a_pattern() -> None:
    names = (
        *("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up.weight"),
        *("blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_up.weight"),
        *("v.blk.1.attn_q.weight", "output.weight", "blk.1.ffn_gate.weight"),
    )
    tensors = [FreeTensor(name, (8, 256), FOUR) for name in names]
    patterns = [re.compile("attn_[qkv]"), re.compile("ffn_(up|gate)")]
    assert groups_of(tensors, patterns) == ((0, 1), (3, 4), (5, 8))


def test_tensors_without_a_type_in_common() -> None:
    costs = {"blk.0.q.weight": {"Q8_0": 1.0}, "blk.0.k.weight": {"Q2_K": 1.0}}
    with pytest.raises(LayoutError, match=r"blk\.0\.q\.weight, blk\.0\.k\.weight are to have the"):
        fit_size(problem(costs, together=((0, 1),)), 10**6)


def test_types_that_are_possible() -> None:
    shape, allowed = (8, 256), (IQ2_XXS, Q4_K, F16, Q8_0, IQ3_XXS)
    weighted = types_for("blk.0.a.weight", shape, allowed, has_importance=True)
    assert weighted == (F16, Q8_0, Q4_K, IQ3_XXS, IQ2_XXS)
    without = types_for("blk.0.a.weight", shape, allowed, has_importance=False)
    assert without == (F16, Q8_0, Q4_K)
    assert types_for("token_embd.weight", shape, allowed, has_importance=False)[-1] == IQ3_XXS
    assert types_for("blk.0.a.weight", (8, 96), allowed, has_importance=True) == (F16, Q8_0)
    assert plain_types(40, has_importance=True) == (F16,)
    assert Q4_K not in plain_types(96, has_importance=False)
    assert not {IQ3_XXS, IQ2_XXS} & set(plain_types(256, has_importance=False))


# The plain rule.

EXPERTS = ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight")
DENSE = ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight")


def unmeasured(names: tuple[str, ...], rows: Callable[[str], int]) -> Problem:
    free = tuple(FreeTensor(name, (rows(name), 256), FOUR) for name in names)
    return Problem(free, 0, 32, (), lambda name, t: None)


def large_experts(name: str) -> int:
    return 1000 if "exps" in name else 10


@pytest.mark.parametrize(
    ("of_bits", "attention", "rest"),
    [(8.5, "Q8_0", "Q8_0"), (7.0, "Q8_0", "Q6_K"), (4.6, "Q8_0", "Q4_K"), (2.75, "Q8_0", "Q2_K"),
     (2.71, "Q6_K", "Q2_K"), (2.63, "Q2_K", "Q2_K")],
)  # fmt: skip
def test_the_plain_rule_of_experts(of_bits: float, attention: str, rest: str) -> None:
    given = unmeasured(EXPERTS, large_experts)
    limit = int(of_bits * 1020 * 256 / 8)
    found = plain_rule(given, limit)
    assert found is not None
    assert (found.attention.name, found.rest.name) == (attention, rest)
    assert found.choice.nbytes <= limit
    said = f"all in {rest}" if attention == rest else f"attention and ends {attention}, the rest"
    assert found.name.startswith(said)
    assert plain_rule(given, smallest(given).nbytes - 1) is None


@given(st.floats(2.63, 9))
def test_the_plain_rule_of_others_takes_the_pair_with_the_least_error(of_bits: float) -> None:
    given = unmeasured(DENSE, lambda name: 64 if "ffn" in name else 32)
    limit = int(of_bits * 128 * 256 / 8)
    found = plain_rule(given, limit)
    assert found is not None
    errors = [
        2 * 4 ** -bits(a) + 4 ** -bits(b)
        for a, b in itertools.product(FOUR, FOUR)
        if bits(a) >= bits(b) and a.nbytes((64, 256)) + b.nbytes((64, 256)) <= limit
    ]
    made = sum(4 ** -bits(t) for t in found.choice.types.values())
    assert made == pytest.approx(min(errors))


def test_the_plain_rule_goes_by_costs_where_they_are_known() -> None:
    costs = {name: {"Q8_0": 0.0, "Q6_K": 0.5, "Q4_K": 0.2, "Q2_K": 0.9} for name in EXPERTS}
    given = problem(costs, large_experts)
    found = plain_rule(given, given.total(finest(given).types) - 1)
    assert found is not None
    assert found.rest == Q4_K  # Q6_K is larger, and costs more
    assert found.choice.cost == pytest.approx(0.2)


def test_the_plain_rule_keeps_groups_together_and_rows_whole() -> None:
    free = (
        FreeTensor("blk.0.attn_q.weight", (8, 256), FOUR),
        FreeTensor("blk.0.attn_k.weight", (8, 256), FOUR[2:]),
        FreeTensor("blk.0.ffn_up_exps.weight", (8, 96), FOUR[:1]),
    )
    given = Problem(free, 0, 32, ((0, 1),), lambda name, t: None)
    found = plain_rule(given, 10**6)
    assert found is not None
    assert {n: t.name for n, t in found.choice.types.items()} == {
        "blk.0.attn_q.weight": "Q4_K",
        "blk.0.attn_k.weight": "Q4_K",
        "blk.0.ffn_up_exps.weight": "Q8_0",
    }
