"""Choose types for a size: of all recipes that fit it, the one that costs least.

What a tensor costs in a type, a file of sensitivities says. Without one there is a plain rule: the
attention and the ends in one type, Q8_0 where that fits, the rest in another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weightcast.converters.graph.layers import find_layer
from weightcast.converters.recipes import knapsack
from weightcast.converters.recipes.decide import fallback, needs_importance
from weightcast.converters.recipes.sensitivity import Sensitivities, by_bits
from weightcast.errors import LayoutError
from weightcast.quant.types import (
    F16,
    IQ1_M,
    IQ1_S,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_XXS,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TYPES,
    QuantType,
)
from weightcast.text import bytes_text, count, some

# Those that the plain rule chooses from, large ones first; the others are no better at their sizes.
_PLAIN_TYPES: Final = (
    *(Q8_0, Q6_K, Q5_K, Q4_K, IQ4_XS, Q3_K, IQ3_XXS),
    *(Q2_K, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S),
)
# In rows that do not fill blocks of 256.
_SMALL_BLOCKS: Final = (Q8_0, Q5_1, Q5_0, IQ4_NL)
_EXPERTS: Final = re.compile(r"_exps\.")
_FEED_FORWARD: Final = re.compile(r"\.ffn_")
# Recipes of llama-quantize that are told of in words, those that cost least.
_MOST_MIXES: Final = 4
# Sums of costs, as whole numbers, stay below this power of two.
_COST_BITS: Final = 60


@dataclass(frozen=True)
class Goal:
    """What a file is to be chosen for: most bytes, most bits for each weight, or a divergence.

    Tensors get `types` alone, if there are some; those of a layer in whose names the same pattern
    of `together` is found get the same type.
    """

    nbytes: int | None = None
    bits: float | None = None
    divergence: float | None = None
    types: tuple[QuantType, ...] = ()
    together: tuple[re.Pattern[str], ...] = ()
    sensitivities: Sensitivities | None = None

    @property
    def text(self) -> str:
        """Say it in words, which do not depend on who asks."""
        if self.nbytes is not None:
            return bytes_text(self.nbytes)
        if self.bits is not None:
            return f"{self.bits:g} bits per weight"
        return f"a predicted divergence of {self.divergence:g}"

    def cost(self, name: str, type_name: str) -> float | None:
        """Give what a tensor costs in a type, if that was measured."""
        found = self.sensitivities
        return None if found is None else found.cost(name, type_name)


@dataclass(frozen=True, slots=True)
class FreeTensor:
    """A tensor that may get any of some types: GGUF name, shape [..., out, in], types by bits."""

    name: str
    shape: tuple[int, ...]
    types: tuple[QuantType, ...]

    def stand_in(self, wanted: QuantType) -> QuantType:
        """Give the type for one that may not be possible: the next larger, or else the largest."""
        if wanted in self.types:
            return wanted
        larger = [t for t in self.types if t.bits_per_weight >= wanted.bits_per_weight]
        return larger[-1] if larger else self.types[0]


@dataclass(frozen=True, slots=True)
class Problem:
    """The tensors that are free, and what all else takes, in bytes.

    Tensors are padded to `alignment` bytes. Those of a group in `together`, by their numbers,
    get the same type. `cost` gives what a tensor costs in a type, None if that is not known.
    """

    free: tuple[FreeTensor, ...]
    fixed_bytes: int
    alignment: int
    together: tuple[tuple[int, ...], ...]
    cost: Callable[[str, str], float | None]

    def nbytes(self, tensor: FreeTensor, quant_type: QuantType) -> int:
        """Count the bytes of a tensor in a type, with padding."""
        return -(-quant_type.nbytes(tensor.shape) // self.alignment) * self.alignment

    def total(self, types: Mapping[str, QuantType]) -> int:
        """Count all bytes, with these types of the free tensors."""
        return self.fixed_bytes + sum(self.nbytes(t, types[t.name]) for t in self.free)

    def total_cost(self, types: Mapping[str, QuantType]) -> float | None:
        """Sum up what types cost; None if that of one is not known."""
        costs = [self.cost(t.name, types[t.name].name) for t in self.free]
        known = [cost for cost in costs if cost is not None]
        return math.fsum(known) if len(known) == len(costs) else None


@dataclass(frozen=True, slots=True)
class Choice:
    """Types by the names of free tensors; what they take and cost, if that is known.

    `is_best` if no other choice of the same size, or at the same cost, is better.
    """

    types: Mapping[str, QuantType]
    nbytes: int
    cost: float | None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class PlainRule:
    """The plain rule for a size: type of attention and ends, type of the rest, and the result."""

    attention: QuantType
    rest: QuantType
    choice: Choice

    @property
    def name(self) -> str:
        """Say the rule in words."""
        if self.attention == self.rest:
            return f"all in {self.rest.name}"
        return f"attention and ends {self.attention.name}, the rest {self.rest.name}"


def types_for(
    name: str,
    shape: tuple[int, ...],
    allowed: Iterable[QuantType],
    *,
    has_importance: bool,
) -> tuple[QuantType, ...]:
    """List the types that are possible for a tensor, large ones first.

    Rows must fill their blocks, and those that are garbage without importance need some.
    """
    possible = {
        t.name
        for t in allowed
        if t.fits(shape[-1]) and (has_importance or not needs_importance(t, name))
    }
    return tuple(TYPES[name] for name in by_bits(possible))


def plain_types(n_in: int, *, has_importance: bool) -> tuple[QuantType, ...]:
    """List the types that the plain rule chooses from, for rows of `n_in` values.

    None that wants importance comes without, not even for the embedding table, of which
    llama-quantize would make it.
    """
    if not Q8_0.fits(n_in):
        return (F16,)
    types = _PLAIN_TYPES if Q4_K.fits(n_in) else _SMALL_BLOCKS
    return tuple(t for t in types if has_importance or not needs_importance(t, ""))


def stays_in(name: str, n_in: int) -> QuantType:
    """Give the type of a tensor of which nothing is known."""
    return fallback(name, Q8_0, n_in)


def groups_of(
    tensors: Sequence[FreeTensor], patterns: Sequence[re.Pattern[str]]
) -> tuple[tuple[int, ...], ...]:
    """Group tensors of a layer in whose names the same pattern is found; by their numbers."""
    groups: dict[tuple[Any, int], list[int]] = {}
    for number, tensor in enumerate(tensors):
        found = next((n for n, p in enumerate(patterns) if p.search(tensor.name)), None)
        if found is None:
            continue
        layer = find_layer(tensor.name)
        place = None if layer is None else (layer.stack, layer.number)
        groups.setdefault((place, found), []).append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def fit_size(problem: Problem, limit: int) -> Choice | None:
    """Choose types of the least cost within `limit` bytes; None if nothing fits."""
    classes, _ = _classes(problem)
    solution = knapsack.solve([c.sums for c in classes], limit - problem.fixed_bytes)
    return None if solution is None else _choice(problem, classes, solution)


def fit_cost(problem: Problem, limit: float) -> Choice | None:
    """Choose types of the least size whose cost is at most `limit`; None if there are none."""
    classes, scale = _classes(problem)
    turned = [[(value, weight) for weight, value in c.sums] for c in classes]
    most = sum(max(weight for weight, _ in c) for c in turned)
    whole = most if math.ldexp(most, -scale) <= limit else math.floor(math.ldexp(limit, scale))
    # Costs are rounded up, each by less than 1: a sum that is just beyond may be within.
    for sums in (whole + len(classes), whole):
        solution = knapsack.solve(turned, min(sums, most))
        choice = None if solution is None else _choice(problem, classes, solution)
        if choice is None or choice.cost is None or choice.cost <= limit:
            break
    return choice


def smallest(problem: Problem) -> Choice:
    """Choose the smallest type of every tensor."""
    return _each(problem, lambda sums: (sums[0], sums[1]))


def finest(problem: Problem) -> Choice:
    """Choose the type of every tensor that costs least."""
    return _each(problem, lambda sums: (sums[1], sums[0]))


def _each(problem: Problem, rank: Callable[[tuple[int, int]], tuple[int, int]]) -> Choice:
    types: dict[str, QuantType] = {}
    for of in _classes(problem)[0]:
        first = min(zip(of.sums, of.types, strict=True), key=lambda pair: rank(pair[0]))
        types |= {problem.free[n].name: first[1] for n in of.tensors}
    return Choice(types, problem.total(types), problem.total_cost(types))


@dataclass(frozen=True, slots=True)
class _SameType:
    """Tensors, by their numbers, that get one type, and (bytes, cost as a whole number) of each."""

    tensors: tuple[int, ...]
    types: tuple[QuantType, ...]
    sums: tuple[tuple[int, int], ...]


def _classes(problem: Problem) -> tuple[list[_SameType], int]:
    """List what gets a type of its own; costs are multiplied by two to the power that is given."""
    grouped = {number: group for group in problem.together for number in group}
    alone = ((n,) for n in range(len(problem.free)))
    sets = list(dict.fromkeys(grouped.get(one[0], one) for one in alone))
    listed = [(numbers, _common(problem, numbers)) for numbers in sets]
    costs = [
        [math.fsum(_cost(problem, n, t) for n in numbers) for t in types]
        for numbers, types in listed
    ]
    highest = math.fsum(max(each) for each in costs)
    scale = _COST_BITS - math.frexp(highest)[1] if highest else 0
    classes = []
    for (numbers, types), each in zip(listed, costs, strict=True):
        sizes = [sum(problem.nbytes(problem.free[n], t) for n in numbers) for t in types]
        whole = [math.ceil(math.ldexp(cost, scale)) for cost in each]
        classes.append(_SameType(numbers, types, tuple(zip(sizes, whole, strict=True))))
    return classes, scale


def _cost(problem: Problem, number: int, quant_type: QuantType) -> float:
    found = problem.cost(problem.free[number].name, quant_type.name)
    return 0.0 if found is None else found  # where nothing was measured, bytes alone differ


def _common(problem: Problem, numbers: Sequence[int]) -> tuple[QuantType, ...]:
    """List the types that all tensors of a group can have. Raises LayoutError if there is none."""
    first, *others = (problem.free[n] for n in numbers)
    types = tuple(t for t in first.types if all(t in other.types for other in others))
    if not types:
        names = some([problem.free[n].name for n in numbers])
        raise LayoutError(f"{names} are to have the same type, and no type is possible for all")
    return types


def _choice(problem: Problem, classes: Sequence[_SameType], solution: knapsack.Solution) -> Choice:
    types = {
        problem.free[n].name: of.types[chosen]
        for of, chosen in zip(classes, solution.chosen, strict=True)
        for n in of.tensors
    }
    ordered = {tensor.name: types[tensor.name] for tensor in problem.free}
    return Choice(ordered, problem.total(ordered), problem.total_cost(ordered), solution.is_best)


@dataclass(frozen=True, slots=True)
class Mix:
    """A recipe of llama-quantize that fits the size: its name, bytes, and predicted cost."""

    name: str
    nbytes: int
    cost: float


@dataclass(frozen=True)
class SizedRecipe:
    """The types that were chosen for a goal, and what else would have fitted.

    `plain` is what the plain rule makes of the same size, `mixes` are llama-quantize's recipes.
    `guessed` tensors were not measured. `text` is the recipe as a TOML file.
    """

    goal: Goal
    choice: Choice
    plain: PlainRule | None
    mixes: tuple[Mix, ...] = ()
    guessed: tuple[str, ...] = ()
    text: str = ""

    @property
    def unit(self) -> str:
        """Say what costs are."""
        found = self.goal.sensitivities
        has_probes = found is not None and found.has_probes
        return "divergence (KL)" if has_probes else "sum of local effects"

    def lines(self) -> Iterator[str]:
        """Say what was chosen, and what else there is of that size."""
        choice, plain = self.choice, self.plain
        if self.goal.sensitivities is None:
            said = "no tensor can have another type" if plain is None else plain.name
            yield f"recipe for {self.goal.text}: the plain rule, {said}"
            return
        best = ", the least that there is" if choice.is_best else ""
        yield f"recipe for {self.goal.text}: predicted {self.unit} {cost_text(choice.cost)}{best}"
        if plain is not None:
            size, cost = bytes_text(plain.choice.nbytes), cost_text(plain.choice.cost)
            yield f"plain rule, {plain.name}: {cost}, {size}"
        for mix in sorted(self.mixes, key=lambda mix: mix.cost)[:_MOST_MIXES]:
            yield f"{mix.name} of llama-quantize: {cost_text(mix.cost)}, {bytes_text(mix.nbytes)}"

    def notes(self) -> Iterator[str]:
        """List what the user should know."""
        if self.guessed:
            tensors = count(len(self.guessed), "tensor")
            yield f"not measured, so as fine as Q8_0: {tensors}, {some(self.guessed)}"
        if self.goal.sensitivities is not None and not self.choice.is_best:
            yield "the recipe is close to the best for its size, but not proved to be that"

    def describe(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        found, plain, choice = self.goal.sensitivities, self.plain, self.choice
        return {
            "goal": {
                "bytes": self.goal.nbytes,
                "bits_per_weight": self.goal.bits,
                "divergence": self.goal.divergence,
            },
            "sensitivities": None if found is None else str(found.path),
            "cost_is": None if found is None else "kl" if found.has_probes else "local",
            "cost": choice.cost,
            "is_best": found is not None and choice.is_best,
            "plain_rule": None
            if plain is None
            else {
                "attention": plain.attention.name,
                "rest": plain.rest.name,
                "bytes": plain.choice.nbytes,
                "cost": plain.choice.cost,
            },
            "llama_quantize": [
                {"recipe": mix.name, "bytes": mix.nbytes, "cost": mix.cost} for mix in self.mixes
            ],
            "not_measured": list(self.guessed),
        }


def cost_text(cost: float | None) -> str:
    """Write a cost in four digits."""
    return "not known" if cost is None else f"{cost:.4g}"


# The plain rule.


def plain_rule(problem: Problem, limit: int) -> PlainRule | None:
    """Choose by the plain rule what fits `limit` bytes; None if nothing fits.

    Where costs are known the rest gets the type that costs least, or else that of most bits. In
    models of experts the attention is small, and Q8_0 as long as that fits; in others it gets the
    type with which the errors, as bits let one expect them, are least.
    """
    if not problem.free:
        return None
    has_experts = any(_EXPERTS.search(tensor.name) for tensor in problem.free)
    types = [TYPES[n] for n in by_bits({t.name for each in problem.free for t in each.types})]
    fine = Q8_0 if Q8_0 in types else types[0]
    coarser = [t for t in types if t.bits_per_weight <= fine.bits_per_weight]
    usual = [(fine, t) for t in coarser] if has_experts else []
    pairs = [(a, t) for n, a in enumerate(types) for t in types[n:]]
    for candidates in filter(None, (usual, pairs)):
        rules = [_by_rule(problem, *pair, has_experts=has_experts) for pair in candidates]
        fitting = [rule for rule in rules if rule.choice.nbytes <= limit]
        if fitting:
            return min(fitting, key=lambda rule: _judged(problem, rule.choice))
    return None


def _by_rule(
    problem: Problem, attention: QuantType, rest: QuantType, *, has_experts: bool
) -> PlainRule:
    bulk = _EXPERTS if has_experts else _FEED_FORWARD
    types = {t.name: t.stand_in(rest if bulk.search(t.name) else attention) for t in problem.free}
    for group in problem.together:
        tensors = [problem.free[n] for n in group]
        common = FreeTensor("", (), _common(problem, group))
        wanted = max((types[t.name] for t in tensors), key=lambda each: each.bits_per_weight)
        types |= {t.name: common.stand_in(wanted) for t in tensors}
    choice = Choice(types, problem.total(types), problem.total_cost(types))
    return PlainRule(attention, rest, choice)


def _judged(problem: Problem, choice: Choice) -> tuple[bool, float, int]:
    """Rank choices: by cost, or by what bits let one expect, as an error is a quarter a bit."""
    if choice.cost is not None:
        return False, choice.cost, choice.nbytes
    return True, math.fsum(4**-t.bits_per_weight for t in choice.types.values()), choice.nbytes
