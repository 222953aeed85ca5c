"""Metadata of a GGUF file made of another: all of it, but for what says how tensors are stored.

Source: llama_model_quantize_impl in src/llama-quant.cpp and llama_model_loader in
src/llama-model-loader.cpp of llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from weightcast.converters.graph import Tensor, TensorGraph
from weightcast.converters.graph.layers import llama_cpp_order
from weightcast.converters.recipes import COPY, RECIPES, Recipe, recipe_named
from weightcast.converters.sources.prune import BLOCK_COUNT
from weightcast.converters.targets.search_record import SEARCH_KEYS
from weightcast.converters.targets.target import Request
from weightcast.formats.gguf.header import TYPE_NAMES, Metadata, raw_uint
from weightcast.formats.gguf.read import ALIGNMENT_KEY, SPLIT_KEYS, whole_number
from weightcast.quant.types import FLOAT_NAMES, FLOAT_TYPES, LOSSY_NAMES

FILE_TYPE_KEY: Final = "general.file_type"
QUANTIZATION_VERSION_KEY: Final = "general.quantization_version"
# LLAMA_FTYPE_GUESSED, and a type that llama.cpp takes for none when it guesses.
_GUESSED: Final = 1024
_NEVER_GUESSED: Final = ("MXFP4",)


def file_type_of(recipe: Recipe, made: Sequence[Tensor]) -> int:
    """Number the type that the file is; if no tensor is quantized, the floats that most are."""
    if recipe.base in FLOAT_TYPES or any(tensor.dtype in LOSSY_NAMES for tensor in made):
        return recipe.file_type
    sizes = Counter[str]()
    for tensor in made:
        sizes[tensor.dtype] += tensor.size
    floats = max(sorted(FLOAT_NAMES), key=lambda name: sizes[name])
    return RECIPES[floats].file_type if sizes[floats] else recipe.file_type


def renewed_metadata(
    graph: TensorGraph,
    request: Request,
    file_type: int,
    provenance: Mapping[str, bytes],
    *,
    keep_order: bool,
) -> dict[str, bytes]:
    """Keep all metadata of a graph, and renew what is asked for or says how tensors are stored.

    llama-quantize sets these keys anew, one after the other, which puts each behind all others.
    Values that are asked for are those of the matrix and the layers, too. `provenance` says by what
    matrix and rule tensors were made.
    """
    from gguf import GGML_QUANT_VERSION

    assert graph.metadata is not None
    there = {key: raw for key, raw in graph.metadata.raw.items() if key not in SPLIT_KEYS}
    if request.recipe != COPY:  # what is made anew is made by another rule, unless that is said
        there = {key: raw for key, raw in there.items() if key not in SEARCH_KEYS}
    renewed = {
        QUANTIZATION_VERSION_KEY: raw_uint(GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_uint(file_type),
    }
    asked = request.metadata
    key = f"{graph.family.architecture}.{BLOCK_COUNT}"
    layers = {key: there[key]} if request.pruned and key in there else {}
    for key, raw in (*asked.items(), *provenance.items(), *layers.items()):
        renewed.pop(key, None)
        renewed[key] = asked.get(key, raw)
    if keep_order:
        return there | renewed
    return {key: raw for key, raw in there.items() if key not in renewed} | renewed


def copied_file_type(graph: TensorGraph) -> int:
    """Give the file type that a source says, or else guess it as llama.cpp does."""
    assert graph.metadata is not None
    said = whole_number(graph.metadata, FILE_TYPE_KEY)
    # Written as uint32: what no longer fits is no file type.
    if said is not None and 0 <= said < 1 << 32:
        return said
    dtypes = [graph[name].dtype for name in sorted(graph, key=llama_cpp_order)]
    counts: Counter[str] = Counter()
    most = "F32"
    for dtype in dtypes:
        counts[dtype] += 1
        if counts[dtype] > counts[most]:
            most = dtype
    found = None if most in _NEVER_GUESSED else recipe_named(most)
    return _GUESSED | (0 if found is None else found.file_type)


def alignment_note(metadata: Metadata) -> Iterator[str]:
    """Say so if the alignment is kept in another type than the source's."""
    kind = TYPE_NAMES[metadata.kind(ALIGNMENT_KEY)] if ALIGNMENT_KEY in metadata else "uint32"
    if kind != "uint32":
        yield f"{ALIGNMENT_KEY} is {kind} in the source; written as uint32, as llama.cpp reads it"
