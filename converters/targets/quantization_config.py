"""Describe the packed weights of a directory in config.json, and say who cannot read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from weightcast.converters.graph import Module, ModuleNames
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import Scheme
from weightcast.quant.types import WeightType

Types = Mapping[Module, WeightType]


def quantization_config(layout: str, types: Types, names: ModuleNames) -> dict[str, Any] | None:
    """Describe the matrices of all layers; None where all are plain floats.

    The type that most of them have is that of every "Linear" without a pattern: SGLang's humming
    reads no other one.
    """
    by_type = _packed(types)
    if not by_type:
        return None
    main = max(by_type, key=lambda weight_type: len(by_type[weight_type]))
    schemes = [
        Scheme(tuple(names.patterns(modules, types)), weight_type)
        for weight_type, modules in by_type.items()
        if weight_type != main
    ]
    # Names count before classes, but compressed-tensors warns of those that come after: "could not
    # match".
    schemes.append(Scheme(("Linear",), main))
    floats = [module for module, weight_type in types.items() if weight_type.is_plain]
    packed = LAYOUTS[layout]
    named = names.words if packed.traits.ignores_words else names.patterns
    ignore = [*names.floats, *named(floats, types)]
    quantized = [module for modules in by_type.values() for module in modules]
    return packed.quantization_config(schemes, ignore, names.ends(quantized, types))


def reader_notes(layout: str, types: Types, names: ModuleNames) -> Iterator[str]:
    """Name the readers that cannot make use of a mix of types."""
    by_type = _packed(types)
    if not by_type:
        return
    readers = LAYOUTS[layout].traits.readers
    if readers.unread:  # by any runtime
        return
    yield from filter(None, map(readers.activations, by_type))
    has_experts = any(m.expert is not None for modules in by_type.values() for m in modules)
    unlike = names.unlike_when_fused((m, None if t.is_plain else t) for m, t in types.items())
    if unlike:
        yield (
            "vLLM and SGLang cannot load this: they need one type for q, k and v of a layer, and "
            f"one for all its experts, and layer {unlike[0]} has several"
        )
    elif _differs_by_layer(types):
        yield "SGLang cannot load this: layers differ, and its names of modules do not say which"
    elif len(by_type) > 1 and has_experts and readers.mixed_experts:
        yield (
            "SGLang's humming, its only kernels for packed experts of Grok, "
            f"{readers.mixed_experts}"
        )
    refusal = readers.mixed_in_transformers(by_type)
    if refusal is not None:
        yield f"transformers cannot load this: {refusal}"
    refusal = readers.mixed_in_llama_cpp(by_type)
    if refusal is not None:
        yield f"llama.cpp's converter {refusal}; weightcast makes GGUF of them"


def _packed(types: Types) -> dict[WeightType, list[Module]]:
    found: dict[WeightType, list[Module]] = defaultdict(list)
    for module, weight_type in types.items():
        if not weight_type.is_plain:
            found[weight_type].append(module)
    return found


def _differs_by_layer(types: Types) -> bool:
    by_layer: dict[int, dict[tuple[int | None, str], WeightType | None]] = defaultdict(dict)
    for module, weight_type in types.items():
        packed = None if weight_type.is_plain else weight_type
        by_layer[module.layer][module.expert, module.name] = packed
    first, *others = by_layer.values()
    return any(layer != first for layer in others)
