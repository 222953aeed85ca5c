"""Patterns of modules' names that say the same to every reader of a quantization_config.

The readers call a layer's modules differently:

    transformers   model.layers.3.self_attn.q_proj    model.layers.3.block_sparse_moe.experts.5.w1
    vLLM           model.layers.3.attn.qkv_proj       model.layers.3.moe_block.experts.5.gate_proj
    SGLang         attn.qkv_proj                      .0.gate_proj, or no name at all

All of them match patterns from the start of a name, and look for patterns before they look for
classes of modules ("Linear"). Sources: match_targets in compressed_tensors/utils/match.py of
compressed-tensors 0.20; find_matched_target and should_ignore_layer in vllm/model_executor/layers/
quantization/compressed_tensors/utils.py, get_dynamic_override in .../utils/gptq_utils.py and
is_layer_skipped in .../utils/quant_utils.py of vLLM 0.24; the same in sglang/srt/layers/
quantization of SGLang 0.5.23, and is_layer_skipped in humming.py there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Final, TypeVar

from weightcast.converters.graph import Module
from weightcast.converters.graph.model import Modules

# A layer's attention as vLLM and SGLang have it: the first three are one module.
FUSED: Final = ("q_proj", "k_proj", "v_proj")
ATTENTION: Final = (*FUSED, "o_proj")
# An expert's matrices, and what vLLM and SGLang call them.
EXPERT: Final = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
GATE_AND_UP: Final = ("w1", "w3")
# SGLang gives experts no name; for compressed-tensors it looks up one that begins with a dot.
_NAMELESS_EXPERTS: Final = r"re:(\.\d+\.(gate|up|down)_proj)?$"
_Parts = frozenset[tuple[int, str]]
_Same = TypeVar("_Same", bound=Hashable)


def patterns(wanted: Modules, every: Modules) -> list[str]:
    """Say in patterns ("re:...") which of all modules are meant: these, and no others of `every`.

    One expert's matrices have names of their own only in transformers and, of vLLM's, expert 0's.
    """
    layers = {module.layer for module in every}
    whole_layer = _experts_by_layer(every)
    found = []
    for names, where in _alike(_attention_by_layer(wanted)).items():
        found.append(f"re:.*{_attention(_layers(where, layers), names)}")
    for parts, where in _alike(_experts_by_layer(wanted)).items():
        is_whole = all(parts == whole_layer[layer] for layer in where)
        if not is_whole:
            owner = f"{_layers(where, layers)}.*" if set(where) != layers else ""
            found += [f"re:.*{owner}{part}" for part in _experts(parts, every)]
        elif set(where) == layers:
            found += ["re:.*experts.*", _NAMELESS_EXPERTS]
        else:
            found.append(f"re:.*{_layers(where, layers)}.*experts.*")
    return found


def words(wanted: Modules, every: Modules) -> list[str]:
    """Say it in parts of names, which is all that AWQ's readers look for; transformers in ends."""
    layers = {module.layer for module in every}
    whole_layer = _experts_by_layer(every)
    found: list[str] = []
    for names, where in _alike(_attention_by_layer(wanted)).items():
        owners = ["attn."]
        if set(where) != layers:
            owners = [
                f"layers.{n}.{attention}." for n in where for attention in ("self_attn", "attn")
            ]
        listed = sorted(names | {"qkv_proj"} if names.issuperset(FUSED) else names)
        found += [owner + name for owner in owners for name in listed]
    for parts, where in _alike(_experts_by_layer(wanted)).items():
        is_whole = all(parts == whole_layer[layer] for layer in where)
        if is_whole and set(where) == layers:
            found += ["experts", *(f".{name}" for name in EXPERT)]
            continue
        for layer in where:
            if is_whole:
                found.append(f"layers.{layer}.moe_block.experts")
            found += [
                f"layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                for expert, name in sorted(parts)
            ]
    return found


def ends(wanted: Modules, every: Modules) -> list[str]:
    """Say it in ends of names for GPTQ's `modules_in_block_to_quantize`: no others end like that.

    optimum compares the ends of transformers' names (GPTQQuantizer.convert_model in optimum/gptq/
    quantizer.py of optimum 2.3), and gives random weights to what is packed and not listed. vLLM
    0.24 looks for the entries anywhere in its own names, of attention alone.
    """
    found: list[str] = []
    for name in (*ATTENTION, *EXPERT):
        modules = [module for module in wanted if module.name == name]
        if modules and len(modules) == sum(module.name == name for module in every):
            found.append(name)
            continue
        for module in modules:
            owners = ["self_attn", "attn"]
            if module.expert is not None:
                owners = [f"block_sparse_moe.experts.{module.expert}"]
            found += [f"layers.{module.layer}.{owner}.{name}" for owner in owners]
    return found


def fused(module: Module) -> tuple[int, int | None, str]:
    """Name what vLLM and SGLang concatenate: q, k and v of a layer, w1 and w3 of an expert.

    Other matrices are sets of their own. What a checkpoint says of a whole matrix, as the global
    scale of NVFP4, they take from one of a set.
    """
    name = module.name
    if module.expert is None:
        name = "qkv" if name in FUSED else name
    elif name in GATE_AND_UP:
        name = "w13"
    return module.layer, module.expert, name


def unlike_when_fused(types: Iterable[tuple[Module, object]]) -> list[int]:
    """The layers whose types differ where vLLM and SGLang need one: q, k, v, and all experts."""
    found: dict[tuple[int, bool], set[object]] = defaultdict(set)
    for module, kind in types:
        if module.expert is not None or module.name in FUSED:
            found[module.layer, module.expert is None].add(kind)
    return sorted({layer for (layer, _), kinds in found.items() if len(kinds) > 1})


def _attention_by_layer(modules: Modules) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for module in modules:
        if module.expert is None:
            found[module.layer].add(module.name)
    return {layer: frozenset(names) for layer, names in sorted(found.items())}


def _experts_by_layer(modules: Modules) -> dict[int, _Parts]:
    found: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for module in modules:
        if module.expert is not None:
            found[module.layer].add((module.expert, module.name))
    return {layer: frozenset(parts) for layer, parts in sorted(found.items())}


def _alike(by_layer: dict[int, _Same]) -> dict[_Same, list[int]]:
    """The layers that have the same modules."""
    found: dict[_Same, list[int]] = defaultdict(list)
    for layer, parts in by_layer.items():
        found[parts].append(layer)
    return found


def _layers(where: Collection[int], every: Collection[int]) -> str:
    """A pattern for a name's beginning up to the layer; nothing for all layers."""
    return "" if len(where) == len(every) else rf"layers\.{_any(map(str, sorted(where)))}\."


def _attention(layers: str, names: frozenset[str]) -> str:
    owner = rf"{layers}(self_)?attn" if layers else "attn"
    if len(names) == len(ATTENTION):
        return rf"{owner}\..*" if layers else f"{owner}.*"
    listed = [name.removesuffix("_proj") for name in ATTENTION if name in names]
    if set(FUSED) <= names:
        listed.append("qkv")
    return rf"{owner}\.{_any(listed)}_proj$"


def _experts(parts: _Parts, every: Modules) -> Iterator[str]:
    """Patterns for some matrices of some experts, those with the same matrices in one."""
    by_expert: dict[int, list[str]] = defaultdict(list)
    for expert, name in sorted(parts):
        by_expert[expert].append(name)
    count = len({module.expert for module in every if module.expert is not None})
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for expert, names in by_expert.items():
        alike[tuple(names)].append(expert)
    for names_of, experts in alike.items():
        numbers = r"\d+" if len(experts) == count else _any(map(str, experts))
        called = [name for own in names_of for name in (own, EXPERT[own])]
        last = ".*" if len(names_of) == len(EXPERT) else f"{_any(called)}$"
        yield rf"experts\.{numbers}\.{last}"


def _any(choices: Iterable[str]) -> str:
    listed = list(choices)
    return listed[0] if len(listed) == 1 else f"({'|'.join(listed)})"


class _Names:
    """Grok-1's modules, for the families' table."""

    floats: Final = ("lm_head", "re:.*gate$")
    patterns = staticmethod(patterns)
    words = staticmethod(words)
    ends = staticmethod(ends)
    fused = staticmethod(fused)
    unlike_when_fused = staticmethod(unlike_when_fused)


MODULES: Final = _Names()
