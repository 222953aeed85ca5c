"""Recipes: which type each tensor of a model gets, decided from names and shapes alone.

A recipe is what llama-quantize calls a type (Q4_K_M, IQ3_XS, ...): a base type, and rules that
give some tensors another one. `decide` knows GGUF names and nothing of any model family.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightcast.converters.graph.layers import find_layer
from weightcast.converters.recipes.llama_quantize import (
    CATEGORIES,
    FALLBACKS,
    FINER_ATTN_V_OF_70B,
    GLM_NOT_QUANTIZED,
    GLM_Q8_0,
    LOWEST_RECIPES,
    NEED_IMPORTANCE,
    NOT_QUANTIZED,
    RULES,
    Case,
    ModelFacts,
)
from weightcast.converters.recipes.recipe import Recipe
from weightcast.errors import LayoutError
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.quant.types import F16, FLOAT_TYPES, Q2_K, Q8_0, TYPES, QuantType, WeightType
from weightcast.text import closest, option


def facts_from_metadata(metadata: Mapping[str, Any], *, has_importance: bool) -> ModelFacts:
    """Collect the facts that the rules ask for from GGUF metadata; an absent one counts as none.

    Where heads differ from layer to layer the first counts, as in llama.cpp.
    """
    found = metadata.get("general.architecture")
    architecture = found if isinstance(found, str) else ""

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list) and value:
            value = value[0]
        return value if type(value) is int else default

    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    return ModelFacts(
        architecture,
        n_layer=number("block_count", 0),
        n_expert=number("expert_count", 0),
        groups=heads // kv_heads if kv_heads > 0 else 0,
        has_importance=has_importance,
    )


@dataclass(frozen=True, slots=True)
class Override:
    """A type asked for by hand: for tensors in whose GGUF name the pattern is found.

    Tensors that are not quantized otherwise (norms, routers) only follow a pattern that matches
    their whole name. `origin` says in messages where it was asked for. Not every output holds every
    type: requests are checked before they are laid out.
    """

    pattern: re.Pattern[str]
    type: WeightType
    origin: str


class Rules:
    """Overrides in order; remembers which of them were of use."""

    def __init__(self, overrides: Sequence[Override]) -> None:
        self._overrides = overrides
        self._used: set[int] = set()

    def find(self, *names: str, whole_name: bool) -> Override | None:
        """The first override that matches one of a tensor's names."""
        found = None
        for number, override in enumerate(self._overrides):
            match = override.pattern.fullmatch if whole_name else override.pattern.search
            if any(map(match, names)):
                self._used.add(number)
                found = found or override
        return found

    def check_used(self, names: Iterable[str], where: str) -> None:
        """Raise LayoutError for an override that no tensor follows; `where` its names are from."""
        names = list(names)
        for number, override in enumerate(self._overrides):
            if number in self._used:
                continue
            kept = next(filter(override.pattern.search, names), None)
            problem = f"no tensor has a name with this pattern {where}{_meant(override, names)}"
            if kept is not None:
                problem = (
                    f"only found in tensors that are not quantized, such as {kept}; match the "
                    "whole name to give them another type"
                )
            raise LayoutError(f"{override.origin}: {problem}")


def _meant(override: Override, names: Iterable[str]) -> str:
    """Suggest the word of the tensors' names that is most like a pattern, if there is one."""
    words = {word for name in names for word in name.split(".") if not word.isdecimal()}
    found = closest(override.pattern.pattern, sorted(words))
    return f"; did you mean {found}?" if found else ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A tensor's type; None if it is not quantized, but stays as it is stored.

    `fallback` says why the type is another one than was meant to be, `override` who asked for it,
    `needs_importance` that it must not be made without an importance matrix.
    """

    type: QuantType | None
    fallback: str | None = None
    override: str | None = None
    needs_importance: bool = False


def decide(
    recipe: Recipe,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    facts: ModelFacts,
    overrides: Sequence[Override] = (),
    *,
    pure: bool = False,
) -> list[Decision]:
    """Choose a type for each tensor, given as GGUF name and shape [..., out, in].

    The first override that matches counts; `pure` leaves the recipe's rules out. Raises LayoutError
    for an override that matches nothing or does not fit, and for rows that no known type fits.
    """
    return _Decider(recipe, tensors, facts, overrides, pure).decide()


class _Decider:
    def __init__(
        self,
        recipe: Recipe,
        tensors: Sequence[tuple[str, tuple[int, ...]]],
        facts: ModelFacts,
        overrides: Sequence[Override],
        pure: bool,
    ) -> None:
        self._recipe = recipe
        self._tensors = tensors
        self._facts = facts
        self._rules = Rules(overrides)
        self._follows_rules = not (pure or recipe.pure or recipe.base in FLOAT_TYPES)
        self._is_tied = all(name != "output.weight" for name, _ in tensors)
        self._ranks: Counter[str] = Counter()
        self._n_attn_v = sum(category(name) == "attn_v" for name, _ in tensors)

    def decide(self) -> list[Decision]:
        # llama.cpp counts layers in this order, wherever tensors lie in the file.
        order = sorted(range(len(self._tensors)), key=lambda n: _sort_key(self._tensors[n][0]))
        decisions = {n: self._decide(*self._tensors[n]) for n in order}
        self._rules.check_used((name for name, _ in self._tensors), "in GGUF")
        return [decisions[n] for n in range(len(self._tensors))]

    def _decide(self, name: str, shape: tuple[int, ...]) -> Decision:
        allowed = is_quantized(name, shape, self._facts.architecture)
        override = self._rules.find(name, whole_name=not allowed)
        if override is not None:
            asked = _fitting(override, name, shape)
            return self._decision(name, asked, override=override.origin)
        if not allowed:
            return Decision(None)
        wanted = self._by_rules(name, shape) if self._follows_rules else self._recipe.base
        chosen = fallback(name, wanted, shape[-1])
        if chosen == wanted:
            return self._decision(name, wanted)
        reason = f"rows of {shape[-1]} do not fill {wanted.name} blocks"
        return self._decision(name, chosen, fallback=reason)

    def _decision(
        self,
        name: str,
        chosen: QuantType,
        *,
        fallback: str | None = None,
        override: str | None = None,
    ) -> Decision:
        is_low = chosen in NEED_IMPORTANCE or (self._recipe.name == "Q2_K_S" and chosen == Q2_K)
        forgiving = category(name) in ("output", "token_embd")
        needed = chosen.importance == "required" or (is_low and not forgiving)
        return Decision(chosen, fallback, override, needed)

    def _by_rules(self, name: str, shape: tuple[int, ...]) -> QuantType:
        facts, base, kind = self._facts, self._recipe.base, category(name)
        if facts.architecture == "glm5-next" and GLM_Q8_0.search(name):
            return Q8_0
        if kind == "token_embd" and self._is_tied:
            kind = "output"
        rank = layer = self._ranks[kind]
        self._ranks[kind] += 1
        found_layer = _layer(name)
        if facts.n_expert > 1 and found_layer is not None and kind != "attn_v":
            layer = found_layer
        n_layer = self._n_attn_v if kind == "attn_v" else facts.n_layer
        case = Case(facts, base, shape, rank, layer, n_layer)
        found = (rule.type for rule in RULES[kind] if rule.applies(self._recipe.name, case))
        chosen = next(found, base)
        if kind == "attn_v" and facts.is_70b and self._recipe.name not in LOWEST_RECIPES:
            chosen = FINER_ATTN_V_OF_70B.get(chosen, chosen)
        return chosen


def category(name: str) -> str:
    """Sort a tensor into one of the table's categories by its GGUF name."""
    return next(kind for pattern, kind in CATEGORIES if pattern.search(name))


def is_quantized(name: str, shape: tuple[int, ...], architecture: str) -> bool:
    """Tell whether llama-quantize changes a tensor's type at all; there, empty ones are an error.

    As they hold no weights, they stay.
    """
    if len(ggml_shape(shape)) < 2 or not all(shape):
        return False
    if not name.endswith("weight") or NOT_QUANTIZED.search(name):
        return False
    return architecture != "glm5-next" or not GLM_NOT_QUANTIZED.search(name)


def fallback(name: str, wanted: QuantType, n_in: int) -> QuantType:
    """The type for rows that may not fill blocks of the one wanted. Raises LayoutError."""
    if wanted.fits(n_in):
        return wanted
    if wanted not in FALLBACKS and wanted.block_elements > 32:
        raise LayoutError(
            f"{name}: rows of {n_in} do not fill {wanted.name} blocks of {wanted.block_elements}, "
            f"and no other type stands in for it; name one with {option('tensor_types')}"
        )
    smaller = FALLBACKS.get(wanted, wanted)
    return smaller if smaller.fits(n_in) else F16


def _fitting(override: Override, name: str, shape: tuple[int, ...]) -> QuantType:
    """The type that is asked for. Raises LayoutError if the tensor cannot have it."""
    asked = TYPES[override.type.label]
    if len(shape) < 2 and asked not in FLOAT_TYPES:
        axes = "one axis" if shape else "no axes"
        raise LayoutError(
            f"{override.origin}: {name} has {axes}; such tensors can be F32, F16 or BF16"
        )
    if shape and not asked.fits(shape[-1]):
        raise LayoutError(
            f"{override.origin}: rows of {name} have {shape[-1]} values, which do not fill "
            f"{asked.name} blocks of {asked.block_elements}"
        )
    return asked


def _sort_key(name: str) -> tuple[int, str]:
    layer = _layer(name)
    return (-1 if layer is None else layer, name)


def _layer(name: str) -> int | None:
    """The layer of the language model; llama.cpp does not count those of encoders."""
    found = find_layer(name)
    return None if found is None or found.stack else found.number
