"""Which type each tensor of a Grok-1 gets, given the recipe that an output is named after."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.families.grok1.tensors import Place, places
from weightcast.converters.graph.tensor import Tensor, TensorGraph
from weightcast.converters.graph.view import matrices
from weightcast.converters.recipes.decide import Decision, Override, decide
from weightcast.converters.recipes.llama_quantize import ModelFacts
from weightcast.converters.recipes.recipe import RECIPES, Recipe
from weightcast.quant.types import F32, Q8_0

ARCHITECTURE: Final = "grok"
Named = list[tuple[str, tuple[int, ...]]]


def gguf_tensors(graph: TensorGraph[Grok1Spec]) -> Named:
    """GGUF names and shapes in the order of `places`."""
    return [(place.gguf, graph[place.name].shape) for place in places(graph.spec.num_layers)]


def choose(
    graph: TensorGraph[Grok1Spec],
    recipe: Recipe,
    overrides: tuple[Override, ...] = (),
    *,
    pure: bool = False,
    has_importance: bool = False,
) -> list[tuple[Place, Decision]]:
    """Choose every tensor's type as llama-quantize does; norms and the router stay F32.

    In a Q8_0 output int8 tensors without an exact Q8_0 form, because their rows do not fill blocks
    or their scale groups end inside them, stay exact as F32; no tensor of the release is like that.
    """
    spec = graph.spec
    facts = ModelFacts(
        ARCHITECTURE,
        spec.num_layers,
        n_expert=spec.num_experts,
        groups=spec.num_q_heads // spec.num_kv_heads,
        has_importance=has_importance,
    )
    decisions = decide(recipe, gguf_tensors(graph), facts, overrides, pure=pure)
    chosen = []
    for place, decision in zip(places(spec.num_layers), decisions, strict=True):
        if decision.type is None:
            decision = replace(decision, type=F32)
        elif recipe == RECIPES["Q8_0"] and decision.override is None:
            decision = _exact(graph[place.name], decision)
        chosen.append((place, decision))
    return chosen


def _exact(tensor: Tensor, decision: Decision) -> Decision:
    scales = matrices(tensor)[0].scales
    if scales is None:
        return decision
    if decision.fallback:
        return replace(decision, type=F32)
    group = tensor.shape[-1] // scales.shape[1]
    if group % Q8_0.block_elements:
        return Decision(F32, f"scale groups of {group} rows end inside {Q8_0.name} blocks")
    return decision
