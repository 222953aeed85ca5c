"""What config.json says about the packed weights of a directory, and who cannot read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weightcast.converters.families.grok1.modules import (
    ATTENTION,
    Module,
    patterns,
    unlike_in_vllm,
    words,
)
from weightcast.converters.recipes.weight_types import (
    COMPRESSED_TENSORS,
    WEIGHTCAST,
    WeightType,
    is_plain,
)
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import Scheme
from weightcast.quant.groups import GroupType

Types = Mapping[Module, WeightType]
_ALWAYS_FLOATS: Final = ("lm_head", "re:.*gate$")


def quantization_config(layout: str, types: Types) -> dict[str, Any] | None:
    """Describe the matrices of all layers; None where all are plain floats.

    The type that most of them have is that of every "Linear" without a pattern: SGLang's humming
    reads no other one.
    """
    by_type = _packed(types)
    if not by_type:
        return None
    main = max(by_type, key=lambda kind: len(by_type[kind]))
    schemes = [
        Scheme(tuple(patterns(modules, types)), kind)
        for kind, modules in by_type.items()
        if kind != main
    ]
    # Names count before classes, but compressed-tensors warns of those that come after: "could not
    # match". The first scheme of GPTQ is that of all modules.
    schemes.insert(0 if layout.startswith("gptq") else len(schemes), Scheme(("Linear",), main))
    floats = [module for module, kind in types.items() if is_plain(kind)]
    ignore = [*_ALWAYS_FLOATS, *(words if layout == "awq" else patterns)(floats, types)]
    has_attention = any(m.expert is None for modules in by_type.values() for m in modules)
    block_modules = ATTENTION if has_attention else ()
    return LAYOUTS[layout].quantization_config(schemes, ignore, block_modules)


def reader_notes(layout: str, types: Types) -> Iterator[str]:
    """Which readers cannot make use of a mix of types."""
    by_type = _packed(types)
    if not by_type or layout == WEIGHTCAST:  # which is for readers of one's own
        return
    has_experts = any(m.expert is not None for modules in by_type.values() for m in modules)
    unlike = unlike_in_vllm((m, None if is_plain(t) else t) for m, t in types.items())
    if unlike:
        yield (
            "vLLM and SGLang cannot load this: they need one type for q, k and v of a layer, and "
            f"one for all its experts, and layer {unlike[0]} has several"
        )
    elif _differs_by_layer(types):
        yield "SGLang cannot load this: layers differ, and its names of modules do not say which"
    elif len(by_type) > 1 and layout == COMPRESSED_TENSORS and has_experts:
        yield (
            "SGLang's humming, its only kernels for packed experts of Grok, takes all matrices for "
            "one type of compressed-tensors; in GPTQ layouts they may differ"
        )
    if len(by_type) > 1 and layout == COMPRESSED_TENSORS:
        yield "llama.cpp's converter refuses several config groups; weightcast makes GGUF of them"
    elif layout.startswith("gptq") and len({_bits(kind) for kind in by_type}) > 1:
        yield "llama.cpp's converter takes all matrices for one type; weightcast makes GGUF of them"


def _packed(types: Types) -> dict[WeightType, list[Module]]:
    found: dict[WeightType, list[Module]] = defaultdict(list)
    for module, kind in types.items():
        if not is_plain(kind):
            found[kind].append(module)
    return found


def _bits(kind: WeightType) -> int:
    return kind.bits if isinstance(kind, GroupType) else 0


def _differs_by_layer(types: Types) -> bool:
    by_layer: dict[int, dict[tuple[int | None, str], WeightType | None]] = defaultdict(dict)
    for module, kind in types.items():
        by_layer[module.layer][module.expert, module.name] = None if is_plain(kind) else kind
    first, *others = by_layer.values()
    return any(layer != first for layer in others)
