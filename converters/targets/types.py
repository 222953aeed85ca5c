"""Choose the type of each tensor of a family's model, as llama-quantize would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weightcast.converters.graph import Place, Tensor, TensorGraph, matrices
from weightcast.converters.recipes import RECIPES, Decision, facts_from_metadata
from weightcast.converters.recipes.decide import decide
from weightcast.converters.targets.target import Request
from weightcast.quant.types import F32, Q8_0


def shapes_of(graph: TensorGraph) -> list[tuple[str, tuple[int, ...]]]:
    """List canonical names and shapes in order."""
    return [(name, tensor.shape) for name, tensor in graph.items()]


def choose(
    graph: TensorGraph, request: Request, *, has_importance: bool = False
) -> list[tuple[Place, Decision]]:
    """Choose every tensor's type as llama-quantize does; norms and routers stay F32.

    In a Q8_0 output int8 tensors without an exact Q8_0 form, because their rows do not fill blocks
    or their scale groups end inside them, stay exact as F32; none of Grok-1's release is like that.
    """
    facts = facts_from_metadata(_hyperparameters(graph), has_importance=has_importance)
    recipe = request.recipe
    decisions = decide(recipe, shapes_of(graph), facts, request.overrides, pure=request.pure)
    chosen = []
    for place, decision in zip(graph.places.values(), decisions, strict=True):
        if decision.type is None:
            decision = replace(decision, type=F32)
        elif recipe == RECIPES["Q8_0"] and decision.override is None:
            decision = _exact(graph[place.name], decision)
        chosen.append((place, decision))
    return chosen


def _hyperparameters(graph: TensorGraph) -> Mapping[str, Any]:
    """Give the hyperparameters under their keys in GGUF metadata."""
    values = graph.spec.describe()
    rows = graph.family.hyperparameters
    keyed = {row.gguf.name: values[row.name] for row in rows if row.gguf and row.name in values}
    return {"general.architecture": graph.family.architecture, **keyed}


def _exact(tensor: Tensor, decision: Decision) -> Decision:
    group = matrices(tensor)[0].group_size
    if group is None:
        return decision
    if decision.fallback:
        return replace(decision, type=F32)
    if group % Q8_0.block_elements:
        return Decision(F32, f"scale groups of {group} rows end inside {Q8_0.name} blocks")
    return decision
