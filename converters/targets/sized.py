"""Lay out GGUF files for a size: choose types until the whole file, headers and all, fits.

Headers have the same length whatever the types are, but for what is said of importance and search,
and but for the number of parts: they are known when a choice was laid out, and the next one counts
with them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from weightcast.converters.recipes import (
    BY_SIZE,
    COPY,
    RECIPES,
    Decision,
    Override,
    facts_from_metadata,
    recipe_of_type,
)
from weightcast.converters.recipes.decide import decide
from weightcast.converters.recipes.size import (
    Choice,
    FreeTensor,
    Goal,
    Mix,
    PlainRule,
    Problem,
    SizedRecipe,
    cost_text,
    finest,
    fit_cost,
    fit_size,
    groups_of,
    plain_rule,
    plain_types,
    smallest,
    stays_in,
    types_for,
)
from weightcast.converters.recipes.written import WrittenRule, recipe_text, rules_of
from weightcast.converters.targets.target import Context, Output, Request
from weightcast.errors import LayoutError, RequestError
from weightcast.formats.gguf.read import header_of_bytes
from weightcast.quant.types import FLOAT_TYPES, TYPES, QuantType
from weightcast.text import bytes_text, count, option

# Who asked for these types, in notes and reports.
_ORIGIN: Final = "the recipe for the size"
# Headers, whose length a choice can change, are known after the first of these.
_MOST_ROUNDS: Final = 6
_MIXES: Final = tuple(
    recipe for recipe in RECIPES.values() if not recipe.pure and recipe.base not in FLOAT_TYPES
)

LayOut = Callable[[Request], Output]


@dataclass(frozen=True)
class _Model:
    """A model as it would be written: what is free, and what its other tensors take.

    `shapes` has all tensors, `fixed` the types of those that are not free. `guessed` are fixed
    because they were not measured. `overhead` is what files take beside tensors.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    free: tuple[FreeTensor, ...]
    fixed: Mapping[str, QuantType]
    guessed: Mapping[str, QuantType]
    metadata: Mapping[str, Any]
    alignment: int
    overhead: int

    @property
    def weights(self) -> int:
        return sum(_size(shape) for _, shape in self.shapes)

    def overhead_of(self, output: Output) -> int:
        """Count the bytes of files beside tensors and their padding."""
        return output.size - sum(_padded(t.nbytes, self.alignment) for t in output.tensors)

    def problem(self, goal: Goal, overhead: int) -> Problem:
        """State what is to be chosen: for bits of tensors alone, or for bytes of whole files."""
        only_data = goal.bits is not None
        alignment = 1 if only_data else self.alignment
        fixed = sum(
            _padded(self.fixed[name].nbytes(shape), alignment)
            for name, shape in self.shapes
            if name in self.fixed
        )
        together = groups_of(self.free, goal.together)
        total = fixed + (0 if only_data else overhead)
        return Problem(self.free, total, alignment, together, goal.cost)


def lay_out_sized(lay_out: LayOut, request: Request, context: Context) -> Output:
    """Lay out the output of a request that has a goal; `lay_out` lays out those that have none.

    Raises CheckpointError: LayoutError if nothing fits.
    """
    goal = request.goal
    assert goal is not None
    _check(request, goal)
    user = replace(request, goal=None)
    model = _model(lay_out(replace(user, recipe=RECIPES["F16"])), user, goal, context)
    overhead, best = model.overhead, None
    for _ in range(_MOST_ROUNDS):
        problem = model.problem(goal, overhead)
        choice, plain = _choose(problem, goal, model)
        if choice is None:
            if best is not None:
                break
            raise _infeasible(lay_out, user, goal, model, problem)
        recipe, rules = _rules(user, model, choice)
        output = lay_out(replace(user, recipe=recipe, overrides=(*user.overrides, *rules)))
        measured = model.overhead_of(output)
        fits = goal.nbytes is None or output.size <= goal.nbytes
        if fits and (best is None or _is_better(choice, best[1])):
            best = output, choice, plain, problem
        if goal.bits is not None or measured == overhead:
            break
        overhead = measured
    if best is None:
        raise _infeasible(lay_out, user, goal, model, problem)
    return _described(goal, model, user, context, *best)


def _check(request: Request, goal: Goal) -> None:
    """Refuse what a size makes no sense with. Raises RequestError."""
    if request.recipe == COPY:
        raise RequestError(
            f"{request.path}: COPY leaves tensors as they are, and {_asked(goal)} asks for other "
            "types; name another type, or none"
        )
    both = [name for name in ("pure", "nvfp4_factors") if getattr(request, name)]
    if both:
        raise RequestError(f"{option(both[0])} and {_asked(goal)} are asked for at once")


def _asked(goal: Goal) -> str:
    """Name the option that a goal was given by."""
    if goal.nbytes is not None:
        return option("target_size")
    return option("target_bpw" if goal.bits is not None else "max_kl")


def _model(probe: Output, request: Request, goal: Goal, context: Context) -> _Model:
    """Sort tensors into those that are free and the others, by a file that is laid out."""
    header = header_of_bytes(probe.files[0].header, probe.files[0].path)
    metadata = header.metadata
    shapes = tuple((planned.tensor.name, planned.tensor.shape) for planned in probe.tensors)
    if goal.sensitivities is not None:
        goal.sensitivities.check_model(shapes)
    facts = facts_from_metadata(metadata, has_importance=context.imatrix is not None)
    decisions = decide(RECIPES["F16"], shapes, facts, request.overrides, ends=request.ends)
    free, guessed = [], {}
    fixed = {planned.tensor.name: planned.type for planned in probe.tensors}
    for (name, shape), decision in zip(shapes, decisions, strict=True):
        if decision.type is None or decision.override is not None or fixed[name].name not in TYPES:
            continue
        types = _types(name, shape, goal, context)
        del fixed[name]
        if types:
            free.append(FreeTensor(name, shape, types))
        else:
            fixed[name] = guessed[name] = stays_in(name, shape[-1])
    model = _Model(shapes, tuple(free), fixed, guessed, metadata, header.alignment, 0)
    return replace(model, overhead=model.overhead_of(probe))


def _types(
    name: str, shape: tuple[int, ...], goal: Goal, context: Context
) -> tuple[QuantType, ...]:
    """List the types that a tensor may get: those that are allowed, measured, and possible."""
    matrix = context.imatrix
    has_importance = matrix is not None and name in matrix.entries
    if goal.sensitivities is None:
        allowed = goal.types or plain_types(shape[-1], has_importance=has_importance)
    else:
        measured = goal.sensitivities.types
        allowed = tuple(TYPES[n] for n in measured if goal.cost(name, n) is not None)
        allowed = tuple(t for t in allowed if not goal.types or t in goal.types)
    return types_for(name, shape, allowed, has_importance=has_importance)


def _choose(problem: Problem, goal: Goal, model: _Model) -> tuple[Choice | None, PlainRule | None]:
    """Choose types, and what the plain rule makes of the same size."""
    limit = goal.nbytes
    if goal.bits is not None:
        limit = int(goal.bits * model.weights / 8)
    if goal.divergence is not None:
        choice = fit_cost(problem, goal.divergence)
        return choice, None if choice is None else plain_rule(problem, choice.nbytes)
    assert limit is not None
    plain = plain_rule(problem, limit)
    if goal.sensitivities is None and model.free:
        return (None if plain is None else plain.choice), plain
    return fit_size(problem, limit), plain


def _is_better(choice: Choice, other: Choice) -> bool:
    if choice.cost is None or other.cost is None:
        return choice.nbytes > other.nbytes
    return (choice.cost, choice.nbytes) < (other.cost, other.nbytes)


def _rules(request: Request, model: _Model, choice: Choice) -> tuple[Any, list[Override]]:
    """Give the recipe of most weights, unless one is asked for, and rules for all tensors."""
    types = {**choice.types, **model.guessed}
    recipe = request.recipe
    if recipe == BY_SIZE:
        weights: Counter[str] = Counter()
        for name, shape in model.shapes:
            if name in types:
                weights[types[name].name] += _size(shape)
        recipe = recipe_of_type(TYPES[max(weights, key=lambda n: (weights[n], n), default="F16")])
    ordered = {name: types[name] for name, _ in model.shapes if name in types}
    others = [name for name, _ in model.shapes if name not in types]
    written = rules_of(ordered, others)
    return recipe, [_override(rule) for rule in written]


def _override(rule: WrittenRule) -> Override:
    return Override(re.compile(rule.pattern, re.IGNORECASE), TYPES[rule.type_name], _ORIGIN)


def _described(
    goal: Goal,
    model: _Model,
    request: Request,
    context: Context,
    output: Output,
    choice: Choice,
    plain: PlainRule | None,
    problem: Problem,
) -> Output:
    """Say in an output what was chosen for its size, and what else would have fitted."""
    limit = goal.nbytes or choice.nbytes
    mixes: tuple[Mix, ...] = ()
    if goal.sensitivities is not None:
        mixes = _mixes(model, problem, request, context, limit)
    sized = SizedRecipe(goal, choice, plain, mixes, tuple(model.guessed))
    sized = replace(sized, text=_text(sized, request, model, output))
    notes = (*output.notes, *sized.notes(), *_mismatches(goal, request, context))
    return replace(output, sized=sized, notes=notes)


def _mismatches(goal: Goal, request: Request, context: Context) -> list[str]:
    """Say in what way sensitivities were measured otherwise than the output is made."""
    found = goal.sensitivities
    if found is None:
        return [
            "types were chosen by a plain rule; what tensors cost, as measured, chooses better: "
            f"{option('sensitivity', 'FILE')}"
        ]
    notes = []
    if found.measured.search != request.search.name:
        notes.append(
            f"{found.path} was measured with the rule {found.measured.search}, and the output is "
            f"made by {request.search.name}"
        )
    if found.measured.importance != (context.imatrix is not None):
        with_, without = "with an importance matrix", "without one"
        said = (with_, without) if found.measured.importance else (without, with_)
        notes.append(f"{found.path} was measured {said[0]}, and the output is made {said[1]}")
    return notes


def _mixes(
    model: _Model, problem: Problem, request: Request, context: Context, limit: int
) -> tuple[Mix, ...]:
    """List the recipes of llama-quantize that fit and whose cost is known, large ones first."""
    facts = facts_from_metadata(model.metadata, has_importance=context.imatrix is not None)
    free = {tensor.name for tensor in model.free}
    found = []
    for recipe in _MIXES:
        decisions = decide(recipe, model.shapes, facts, request.overrides, ends=request.ends)
        named = zip((name for name, _ in model.shapes), decisions, strict=True)
        chosen = {name: decision for name, decision in named if name in free}
        types = {name: d.type for name, d in chosen.items() if d.type is not None}
        if any(_lacks(context, name, decision) for name, decision in chosen.items()):
            continue
        nbytes, cost = problem.total(types), problem.total_cost(types)
        if nbytes <= limit and cost is not None:
            found.append(Mix(recipe.name, nbytes, cost))
    return tuple(sorted(found, key=lambda mix: (-mix.nbytes, mix.cost, mix.name)))


def _lacks(context: Context, name: str, decision: Decision) -> bool:
    """Tell whether a tensor would be garbage for want of importance."""
    entries = {} if context.imatrix is None else context.imatrix.entries
    return decision.needs_importance and name not in entries


def _text(sized: SizedRecipe, request: Request, model: _Model, output: Output) -> str:
    """Write the recipe as a file, which gives the same types without sensitivities."""
    goal, found = sized.goal, sized.goal.sensitivities
    about = [
        f"Types for {goal.text}: the file has {bytes_text(output.size)}, its tensors "
        f"{output.bits_per_weight:.4g} bits per weight."
    ]
    if found is not None:
        source, measured = found.source, found.measured
        about.append(
            f"Measured on {source.name} ({source.parameters:,} parameters) over "
            f"{count(measured.tokens, 'token')} of {measured.text}, {measured.context:,} at a time."
        )
    about += [f"{line[:1].upper()}{line[1:]}." for line in sized.lines()]
    rules = [WrittenRule(p, t) for p, t, _ in request.ends.as_rules()]
    rules += (WrittenRule(o.pattern.pattern, o.type.label) for o in request.overrides)
    types = {**sized.choice.types, **model.guessed}
    ordered = {name: types[name] for name, _ in model.shapes if name in types}
    rules += rules_of(ordered, [name for name, _ in model.shapes if name not in types])
    return recipe_text(output.request.recipe.name, rules, about)


def _infeasible(
    lay_out: LayOut, request: Request, goal: Goal, model: _Model, problem: Problem
) -> LayoutError:
    """Say that nothing is so small, and how small it can be."""
    if goal.divergence is not None:
        best = finest(problem)
        return LayoutError(
            f"{request.path}: no recipe has {goal.text} or less: {cost_text(best.cost)} is the "
            f"least, with {_counted(best)}, {bytes_text(best.nbytes)}"
        )
    least = smallest(problem)
    recipe, rules = _rules(request, model, least)
    output = lay_out(replace(request, recipe=recipe, overrides=(*request.overrides, *rules)))
    size = bytes_text(output.size)
    if goal.bits is not None:
        size = f"{math.ceil(output.bits_per_weight * 1e4) / 1e4:g} bits per weight"
    return LayoutError(
        f"{request.path}: no recipe fits into {goal.text}: {size} is the least, with "
        f"{_counted(least)}{_remedy(goal)}"
    )


def _remedy(goal: Goal) -> str:
    return f"; {option('target_types')} may allow smaller ones" if goal.types else ""


def _counted(choice: Choice) -> str:
    """Count the types of a choice in words."""
    counts = Counter(quant_type.name for quant_type in choice.types.values())
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())) or "nothing to choose"


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
