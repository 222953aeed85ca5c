"""Choose the type of each tensor of a family's model, as llama-quantize would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightcast.converters.graph import Place, Tensor, TensorGraph, matrices
from weightcast.converters.recipes import (
    RECIPES,
    Decision,
    facts_from_metadata,
    missed_notes,
    rule_candidates,
    unfollowed_notes,
)
from weightcast.converters.recipes.decide import decide
from weightcast.converters.targets.target import Request
from weightcast.formats.gguf.header import Metadata
from weightcast.quant.types import F32, Q8_0

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def shapes_of(graph: TensorGraph) -> list[tuple[str, tuple[int, ...]]]:
    """List canonical names and shapes in order."""
    return [(name, tensor.shape) for name, tensor in graph.items()]


def decide_types(
    request: Request,
    shapes: Shapes,
    metadata: Mapping[str, Any],
    *,
    has_importance: bool,
    in_order: bool = False,
) -> tuple[list[Decision], tuple[str, ...]]:
    """Choose types by all that is asked of a GGUF file; say what that does not change.

    `metadata` are those that describe the model before anything is asked; tensors are counted as in
    `decide`. Raises LayoutError.
    """
    facts = facts_from_metadata(_as_read(metadata, request.metadata), has_importance=has_importance)
    decisions = decide(
        request.recipe,
        shapes,
        facts,
        request.overrides,
        pure=request.pure,
        ends=request.ends,
        in_order=in_order,
    )
    notes = list(unfollowed_notes(request.overrides, rule_candidates(shapes, facts), "in GGUF"))
    if request.ends.keeps_output and all(name != "output.weight" for name, _ in shapes):
        notes.append("no output.weight can stay as it is: the embedding table is the output")
    notes += missed_notes(request.recipe, facts, shapes, decisions)
    return decisions, tuple(notes)


def _as_read(metadata: Mapping[str, Any], asked: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Give the values that llama.cpp reads: one that is asked for must be of the kind it knows.

    Source: GKV::set and get_key_or_arr in src/llama-model-loader.cpp of llama.cpp.
    """
    there = Metadata(asked)
    fitting = (
        key for key in there if key not in metadata or type(metadata[key]) is type(there[key])
    )
    return {**metadata, **{key: there[key] for key in fitting}} if asked else metadata


def choose(
    graph: TensorGraph, request: Request, *, has_importance: bool = False
) -> tuple[list[tuple[Place, Decision]], tuple[str, ...]]:
    """Choose every tensor's type as llama-quantize does, with notes; norms and routers stay F32.

    In a Q8_0 output int8 tensors without an exact Q8_0 form, because their rows do not fill blocks
    or their scale groups end inside them, stay exact as F32; none of Grok-1's release is like that.
    """
    decisions, notes = decide_types(
        request, shapes_of(graph), _hyperparameters(graph), has_importance=has_importance
    )
    chosen = []
    for place, decision in zip(graph.places.values(), decisions, strict=True):
        if decision.type is None:
            decision = replace(decision, type=F32)
        elif request.recipe == RECIPES["Q8_0"] and decision.override is None:
            decision = _exact(graph[place.name], decision)
        chosen.append((place, decision))
    return chosen, notes


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
