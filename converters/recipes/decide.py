"""Recipes: which type each tensor of a model gets, decided from names and shapes alone.

A recipe is what llama-quantize calls a type (Q4_K_M, IQ3_XS, ...): a base type, and rules that
give some tensors another one. `decide` knows GGUF names and nothing of any model family.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from weightcast.converters.graph.layers import find_layer, llama_cpp_order
from weightcast.converters.recipes.image_models import (
    IMAGE_CATEGORIES,
    IMAGE_FALLBACKS,
    IMAGE_MODELS,
    IMAGE_RULES,
)
from weightcast.converters.recipes.llama_quantize import (
    ARCHITECTURES,
    CATEGORIES,
    FALLBACKS,
    FINER_ATTN_V_OF_70B,
    GLM_NOT_QUANTIZED,
    GLM_Q8_0,
    KNOWN_ARCHITECTURES,
    LOWEST_RECIPES,
    NEED_IMPORTANCE,
    NOT_QUANTIZED,
    RULES,
    Architecture,
    Case,
    ModelFacts,
)
from weightcast.converters.recipes.recipe import COPY, Recipe
from weightcast.errors import LayoutError
from weightcast.formats.gguf.layout import GGML_AXES, ggml_shape
from weightcast.quant.types import F16, FLOAT_TYPES, Q2_K, Q8_0, TYPES, QuantType, WeightType
from weightcast.text import closest, option, shown

# GGUF names and shapes [..., out, in].
Named = Sequence[tuple[str, tuple[int, ...]]]

# The options that ask for the types of ends, as reports call them.
_OUTPUT: Final = "output_tensor_type"
_TOKEN_EMBD: Final = "token_embedding_type"
END_OPTIONS: Final = (_OUTPUT, _TOKEN_EMBD)


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

    known = ARCHITECTURES.get(architecture, Architecture())
    n_nextn = number("nextn_predict_layers", 0)
    loops = number(known.loops_key, 1) if known.loops_key else 1
    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    return ModelFacts(
        architecture,
        n_layer=known.n_layer(number("block_count", 0), n_nextn, loops),
        n_expert=number("expert_count", 0),
        groups=heads // kv_heads if kv_heads > 0 else 0,
        has_importance=has_importance,
        n_nextn=n_nextn,
    )


@dataclass(frozen=True, slots=True)
class Override:
    """A type asked for by hand: for tensors in whose GGUF name the pattern is found.

    Tensors that are not quantized otherwise (norms, routers) only follow a pattern that matches
    their whole name, see `find_overrides`. Vectors have no rows of blocks and only follow rules for
    floats. `origin` says in messages where the type was asked for. Not every output holds every
    type: requests are checked before they are laid out.
    """

    pattern: re.Pattern[str]
    type: WeightType
    origin: str

    def matches(self, candidate: Candidate) -> bool:
        """Tell whether a name has the pattern in it, or is all of it where that counts."""
        if candidate.is_vector and not self.type.is_plain:
            return False
        match = self.pattern.fullmatch if candidate.whole_name else self.pattern.search
        return any(map(match, candidate.names))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that rules may be for: its names, and whether only a whole one counts.

    A vector can only be floats.
    """

    names: tuple[str, ...]
    whole_name: bool
    is_vector: bool = False


def find_overrides(
    overrides: Sequence[Override], candidates: Sequence[Candidate]
) -> list[Override | None]:
    """Give each tensor the first override that it follows.

    A pattern that is also found in tensors that are quantized (`.*`, `blk.*`) means those alone, as
    in llama-quantize: it names no norm or router, though it matches their whole names.
    """
    quantized = [candidate for candidate in candidates if not candidate.whole_name]
    naming = [override for override in overrides if not any(map(override.matches, quantized))]
    return [
        next((o for o in (naming if c.whole_name else overrides) if o.matches(c)), None)
        for c in candidates
    ]


def unfollowed_notes(
    overrides: Sequence[Override], candidates: Sequence[Candidate], where: str
) -> Iterator[str]:
    """Say which overrides no tensor follows; `where` the candidates' names are from.

    That is no error: a recipe can be for many models, as llama-quantize's files of rules are.
    """
    names = {name: candidate for candidate in candidates for name in candidate.names}
    for override in overrides:
        if any(map(override.matches, candidates)):
            continue
        kept = next(filter(override.pattern.search, names), None)
        if kept is None:
            problem = f"no tensor has a name with this pattern {where}{_meant(override, names)}"
        elif names[kept].is_vector and not override.type.is_plain:
            problem = f"only found in vectors, such as {kept}, which can be F32, F16 or BF16"
        else:
            problem = (
                f"only found in tensors that are not quantized, such as {kept}; match the "
                "whole name to give them another type"
            )
        yield f"{override.origin} changes nothing: {problem}"


def _meant(override: Override, names: Iterable[str]) -> str:
    """Suggest the word of the tensors' names that is most like a pattern, if there is one."""
    words = {word for name in names for word in name.split(".") if not word.isdecimal()}
    pattern = override.pattern.pattern
    found = closest(pattern, sorted(words))
    return f"; did you mean {found}?" if found and found not in pattern else ""


@dataclass(frozen=True, slots=True)
class EndTypes:
    """Types that are asked for by what a matrix is: the output, and the embedding table.

    They come before rules, and count in plain floats too; where the embedding table is the output
    too, it gets the output's type unless it has one of its own. With `keeps_output` the output
    stays as it is stored. Source: llama_tensor_get_type, src/llama-quant.cpp of llama.cpp.
    """

    output: QuantType | None = None
    token_embd: QuantType | None = None
    keeps_output: bool = False

    def as_rules(self) -> Iterator[tuple[str, str, str]]:
        """Write them as rules, for reports: pattern, type, and who asked."""
        if self.output is not None:
            yield r"^output\.weight$", self.output.label, _OUTPUT
        if self.token_embd is not None:
            yield r"^(per_layer_)?token_embd\.weight$", self.token_embd.label, _TOKEN_EMBD


NO_END_TYPES: Final = EndTypes()


@dataclass(frozen=True, slots=True)
class Decision:
    """A tensor's type; None if it is not quantized, but stays as it is stored.

    `fallback` says why the type is another one than was meant to be, `override` who asked for it
    (or for what it could not be), `needs_importance` that it must not be made without an importance
    matrix.
    """

    type: QuantType | None
    fallback: str | None = None
    override: str | None = None
    needs_importance: bool = False


def decide(
    recipe: Recipe,
    tensors: Named,
    facts: ModelFacts,
    overrides: Sequence[Override] = (),
    *,
    pure: bool = False,
    ends: EndTypes = NO_END_TYPES,
    in_order: bool = False,
) -> list[Decision]:
    """Choose a type for each tensor, given as GGUF name and shape [..., out, in].

    The first override that matches counts; `pure` leaves the recipe's rules out. Tensors are
    counted by layer and name, as llama-quantize does, or `in_order`, as it does with --keep-split,
    and the tools of image models do. Raises LayoutError for rows that no known type fits.
    """
    order = range(len(tensors))
    in_order = in_order or facts.architecture in IMAGE_MODELS
    counted = order if in_order else sorted(order, key=lambda n: llama_cpp_order(tensors[n][0]))
    return _Decider(recipe, tensors, facts, overrides, pure, ends).decide(counted)


def rule_candidates(tensors: Named, facts: ModelFacts) -> list[Candidate]:
    """List what rules can be for."""
    return [_candidate(name, shape, facts) for name, shape in tensors]


def _candidate(name: str, shape: tuple[int, ...], facts: ModelFacts) -> Candidate:
    allowed = is_quantized(name, shape, facts.architecture)
    return Candidate((name,), whole_name=not allowed, is_vector=len(shape) < 2)


def missed_notes(
    recipe: Recipe, facts: ModelFacts, tensors: Named, decisions: Sequence[Decision]
) -> Iterator[str]:
    """Say if no tensor has the type that was asked for, and if the rules are guesses."""
    if recipe.base in FLOAT_TYPES or not tensors:
        return
    types = [decision.type for decision in decisions if decision.type is not None]
    if not types:
        yield f"nothing is {recipe.name}: {_why_none(recipe, tensors)}"
        return
    if recipe.base not in types:
        yield f"no tensor is {recipe.base.name}, which most are meant to be"
    is_known = facts.architecture in KNOWN_ARCHITECTURES or facts.architecture in IMAGE_MODELS
    if not is_known and any(d.type is not None and d.override is None for d in decisions):
        yield (
            f"no rules are known for architecture {shown(facts.architecture)}: types are chosen as "
            "for language models, by names alone; rules can keep sensitive tensors in F16"
        )


def _why_none(recipe: Recipe, tensors: Named) -> str:
    """Say why no tensor of a file is quantized, and what rule quantizes some."""
    if all(len(shape) < 2 for _, shape in tensors):
        return "all tensors are vectors, which stay floats"
    if any(name.endswith(("lora_a", "lora_b")) for name, _ in tensors):
        rule = f".*lora_[ab]={recipe.base.name}"
        return (
            "an adapter's names do not end in weight, and its tensors stay as they are; the rule "
            f"'{rule}' quantizes them"
        )
    return (
        "its matrices are none of those that are quantized, whose names end in weight; a rule "
        "that matches whole names quantizes them"
    )


class _Decider:
    def __init__(
        self,
        recipe: Recipe,
        tensors: Named,
        facts: ModelFacts,
        overrides: Sequence[Override],
        pure: bool,
        ends: EndTypes,
    ) -> None:
        self._recipe = recipe
        self._tensors = tensors
        self._facts = facts
        self._overrides = overrides
        self._ends = ends
        self._image = IMAGE_MODELS.get(facts.architecture)
        if any(find_layer(name) for name, _ in tensors):
            self._image = None  # a language model that names no architecture
        self._follows_rules = not (pure or recipe.pure or recipe.base in FLOAT_TYPES)
        self._is_tied = all(name != "output.weight" for name, _ in tensors)
        self._ranks: Counter[str] = Counter()
        self._n_attn_v = sum(category(name) == "attn_v" for name, _ in tensors)

    def decide(self, order: Iterable[int]) -> list[Decision]:
        candidates = rule_candidates(self._tensors, self._facts)
        overrides = find_overrides(self._overrides, candidates)
        decisions = {n: self._decide(*self._tensors[n], overrides[n]) for n in order}
        return [decisions[n] for n in range(len(self._tensors))]

    def _decide(self, name: str, shape: tuple[int, ...], override: Override | None) -> Decision:
        allowed = is_quantized(name, shape, self._facts.architecture)
        if self._ends.keeps_output and category(name) == "output":
            return Decision(None)
        if allowed and (end := self._by_end(name, override)) is not None:
            return self._fitted(name, shape, *end)
        if override is not None:
            return self._fitted(name, shape, TYPES[override.type.label], override.origin)
        if not allowed or self._recipe == COPY:
            return Decision(None)
        wanted = self._by_rules(name, shape) if self._follows_rules else self._recipe.base
        return self._fitted(name, shape, wanted)

    def _by_end(self, name: str, override: Override | None) -> tuple[QuantType, str] | None:
        """The type that was asked for an end of the model, and who asked."""
        ends, kind = self._ends, category(name)
        output = None if ends.output is None else (ends.output, _OUTPUT)
        if kind == "output":
            return output
        if kind != "token_embd":
            return None
        # A table of its own beside the other one: a rule can name it.
        is_named = name.startswith("per_layer_") and override is not None
        if ends.token_embd is not None and not is_named:
            return ends.token_embd, _TOKEN_EMBD
        is_output = self._is_tied and self._follows_rules and override is None
        return output if is_output else None

    def _fitted(
        self, name: str, shape: tuple[int, ...], wanted: QuantType, override: str | None = None
    ) -> Decision:
        """Decide for a type, or for the one that stands in for it."""
        n_in = shape[-1] if shape else 1
        chosen = self._fallback(name, wanted, n_in)
        if chosen == wanted:
            return self._decision(name, wanted, override=override)
        reason = f"rows of {n_in} do not fill {wanted.name} blocks"
        return self._decision(name, chosen, fallback=reason, override=override)

    def _fallback(self, name: str, wanted: QuantType, n_in: int) -> QuantType:
        if self._image is not None and wanted in IMAGE_FALLBACKS and not wanted.fits(n_in):
            return F16
        return fallback(name, wanted, n_in)

    def _decision(
        self,
        name: str,
        chosen: QuantType,
        *,
        fallback: str | None = None,
        override: str | None = None,
    ) -> Decision:
        is_low_recipe = self._recipe.name == "Q2_K_S" and chosen == Q2_K
        needed = needs_importance(chosen, name) or (is_low_recipe and not _is_end(name))
        return Decision(chosen, fallback, override, needed)

    def _by_rules(self, name: str, shape: tuple[int, ...]) -> QuantType:
        facts, base, kind = self._facts, self._recipe.base, category(name)
        if self._image is not None:
            return self._by_image_rules(name, shape)
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

    def _by_image_rules(self, name: str, shape: tuple[int, ...]) -> QuantType:
        kind = next((kind for pattern, kind in IMAGE_CATEGORIES if pattern.search(name)), "other")
        rank = self._ranks[kind]
        self._ranks[kind] += 1
        case = Case(self._facts, self._recipe.base, shape, rank, rank, self._facts.n_layer)
        rules = IMAGE_RULES.get(kind, ())
        found = (rule.type for rule in rules if rule.applies(self._recipe.name, case))
        return next(found, self._recipe.base)


def category(name: str) -> str:
    """Sort a tensor into one of the table's categories by its GGUF name."""
    return next(kind for pattern, kind in CATEGORIES if pattern.search(name))


def _is_end(name: str) -> bool:
    return category(name) in ("output", "token_embd")


def needs_importance(quant_type: QuantType, name: str) -> bool:
    """Tell whether a tensor must not be made in a type without an importance matrix."""
    is_low = quant_type in NEED_IMPORTANCE
    return quant_type.importance == "required" or (is_low and not _is_end(name))


def is_quantized(name: str, shape: tuple[int, ...], architecture: str | None = None) -> bool:
    """Tell whether llama-quantize, or the tool of an image model, changes a type at all.

    Without an architecture it is told of models in general; "" is that of files that name none.
    Tensors without values stay; there, they are an error.
    """
    n_axes = len(ggml_shape(shape))
    if not 2 <= n_axes <= GGML_AXES or not all(shape):
        return False
    if not name.endswith("weight") or NOT_QUANTIZED.search(name):
        return False
    image = None if architecture is None else IMAGE_MODELS.get(architecture)
    if image is not None and not find_layer(name) and (n_axes > 2 or image.search(name)):
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


def _layer(name: str) -> int | None:
    """The layer of the language model; llama.cpp does not count those of encoders."""
    found = find_layer(name)
    return None if found is None or found.stack else found.number
