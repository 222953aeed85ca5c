"""The knapsack: the best choice, against all choices there are; at the scale of Grok-1."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.converters.recipes import knapsack
from weightcast.converters.recipes.knapsack import Class, Solution, solve
from weightcast.quant.types import TYPES

SMALL = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)
# Sizes as types have, and values of any size.
LARGE = st.lists(
    st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(0, 1 << 52)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)
GROK_TYPES = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    *("IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
)


def best_of_all(classes: Sequence[Class], limit: int) -> tuple[int, int] | None:
    """Try everything: the least value, then weight."""
    sums = (
        (sum(value for _, value in chosen), sum(weight for weight, _ in chosen))
        for chosen in itertools.product(*classes)
    )
    return min((s for s in sums if s[1] <= limit), default=None)


def check(classes: Sequence[Class], solution: Solution, limit: int) -> None:
    chosen = [options[n] for options, n in zip(classes, solution.chosen, strict=True)]
    assert solution.weight == sum(weight for weight, _ in chosen) <= limit
    assert solution.value == sum(value for _, value in chosen)


@given(SMALL, st.integers(0, 150))
def test_it_is_the_best_of_all_choices(classes: list[list[tuple[int, int]]], limit: int) -> None:
    solution, wanted = solve(classes, limit), best_of_all(classes, limit)
    if solution is None:
        assert wanted is None
        return
    check(classes, solution, limit)
    assert (solution.value, solution.weight) == wanted
    assert solution.is_best


@given(LARGE, st.integers(0, 1 << 42))
def test_large_numbers_are_exact(classes: list[list[tuple[int, int]]], limit: int) -> None:
    solution, wanted = solve(classes, limit), best_of_all(classes, limit)
    found = None if solution is None else (solution.value, solution.weight)
    assert found == wanted


@given(SMALL, st.lists(st.integers(0, 150), min_size=2, max_size=6))
def test_more_room_never_costs_more(
    classes: list[list[tuple[int, int]]], limits: list[int]
) -> None:
    found = [solve(classes, limit) for limit in sorted(limits)]
    values = [solution.value for solution in found if solution is not None]
    assert values == sorted(values, reverse=True)
    assert all(solution is not None for solution in found[len(found) - len(values) :])


def test_what_does_not_fit_has_no_solution() -> None:
    classes = [[(3, 1), (2, 5)], [(4, 0)]]
    assert solve(classes, 5) is None
    assert solve(classes, 6) == Solution((1, 0), 6, 5, is_best=True)
    assert solve([], 0) == Solution((), 0, 0, is_best=True)


def test_of_equal_values_the_lighter_counts() -> None:
    assert solve([[(9, 1), (5, 1), (5, 1), (1, 2)]], 100) == Solution((1,), 5, 1, is_best=True)


def like_grok(seed: int) -> list[list[tuple[int, int]]]:
    """64 layers of 7 matrices and an embedding table, costs as bits let one expect, with noise."""
    noise = random.Random(seed)
    matrix, group, experts = 6144 * 6144, 1024 * 6144, 8 * 32768 * 6144
    classes = []
    for size in (*(matrix, group, group, matrix, experts, experts, experts) * 64, 131072 * 6144):
        scale = 2 ** (44 + noise.gauss(0, 2))
        options = []
        for name in GROK_TYPES:
            bits = 8 * TYPES[name].block_bytes / TYPES[name].block_elements
            cost = scale * 4**-bits * 2 ** noise.gauss(0, 0.1)
            options.append((TYPES[name].nbytes((size,)), int(cost)))
        classes.append(options)
    return classes


@pytest.mark.parametrize("gigabytes", [85, 100, 130, 180, 250, 320])
def test_it_proves_the_best_at_the_scale_of_grok(gigabytes: int) -> None:
    classes, limit = like_grok(gigabytes), gigabytes * 10**9
    solution = solve(classes, limit)
    assert solution is not None
    check(classes, solution, limit)
    assert solution.is_best
    assert solution == solve(classes, limit)
    # No single tensor has a better type that fits.
    for options, chosen in zip(classes, solution.chosen, strict=True):
        weight, value = options[chosen]
        room = limit - solution.weight
        assert not any(w - weight <= room and v < value for w, v in options)
    # Nor do two of the same layer by taking from one what the other gets.
    for number in range(0, 448, 7):
        for a, b in itertools.combinations(range(number, number + 7), 2):
            now = [classes[n][solution.chosen[n]] for n in (a, b)]
            most = limit - solution.weight + now[0][0] + now[1][0]
            pairs = itertools.product(classes[a], classes[b])
            least = min(x[1] + y[1] for x, y in pairs if x[0] + y[0] <= most)
            assert least == now[0][1] + now[1][1]


def test_costs_in_proportion_to_bytes_are_solved_though_not_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [random.Random(n).randrange(1, 1 << 30) for n in range(60)]
    classes = [[(size * n, size * (9 - n)) for n in (2, 3, 4, 5, 6, 8)] for size in sizes]
    limit = int(sum(sizes) * 4.1)
    monkeypatch.setattr(knapsack, "_MOST_STATES", 0)
    monkeypatch.setattr(knapsack, "_LEAST_STATES", 20)
    solution = solve(classes, limit)
    assert solution is not None
    check(classes, solution, limit)
    assert not solution.is_best
    assert limit - solution.weight < min(sizes)  # or another step would fit
