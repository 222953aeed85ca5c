"""GGUF from GGUF: the same metadata and tensors, tensors in other types.

A factor beside weights (formats/gguf/factors.py) stays beside them, and their blocks are quantized
without it: llama.cpp multiplies by it whatever their type, and the bytes are llama-quantize's. Only
where llama.cpp would refuse or ignore the factor with a type that NVFP4 becomes, which depends on
the tensor and the architecture, are the weights multiplied, and the factor and the scale of
activations beside it left out. What stays NVFP4 stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import (
    AddLowRank,
    Quantize,
    Rows,
    Scaled,
    Tensor,
    TensorGraph,
    first_array,
    is_sum,
    quantized,
    scaled,
    unscaled,
    windows,
)
from weightcast.converters.graph.layers import llama_cpp_order
from weightcast.converters.recipes import (
    COPY,
    RECIPES,
    Decision,
    ImportanceMap,
    Recipe,
    match_importance,
    provenance_metadata,
    recipe_named,
)
from weightcast.converters.recipes.common_part import common_part
from weightcast.converters.sources import BLOCK_COUNT, pruned, renumbered
from weightcast.converters.targets.gguf_factors import find_factors
from weightcast.converters.targets.gguf_files import (
    QUANTIZE_KEYS,
    GgufFiles,
    lay_out_files,
    lay_out_parts,
)
from weightcast.converters.targets.gguf_readers import unread_notes
from weightcast.converters.targets.target import (
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
)
from weightcast.converters.targets.types import decide_types
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.factors import FACTOR, INPUT_SCALE, factor_name, is_multiplied
from weightcast.formats.gguf.header import TYPE_NAMES, Metadata, raw_uint
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.gguf.layout import Entry, ggml_shape
from weightcast.formats.gguf.read import ALIGNMENT_KEY, SPLIT_KEYS, whole_number
from weightcast.quant.types import F32, FLOAT_TYPES, NVFP4, STORED_TYPES, TYPES
from weightcast.text import count, option, shown, spoken

FILE_TYPE_KEY: Final = "general.file_type"
QUANTIZATION_VERSION_KEY: Final = "general.quantization_version"
# LLAMA_FTYPE_GUESSED, and a type that llama.cpp takes for none when it guesses.
_GUESSED: Final = 1024
_NEVER_GUESSED: Final = ("MXFP4",)
_EXACT: Final = {t.name for t in FLOAT_TYPES}
_LOSSY: Final = TYPES.keys() - _EXACT


def lay_out_copy(
    graph: TensorGraph, metadata: Metadata, request: Request, context: Context
) -> Output:
    """Lay out a GGUF output that keeps everything but types. Raises CheckpointError.

    Metadata and tensors come in the order in which llama-quantize writes them, unless the context
    keeps the source's.
    """
    recipe, imatrix = request.recipe, context.imatrix
    source, whole = graph, metadata
    if request.pruned:
        graph, imatrix = pruned(graph, request.pruned), renumbered(imatrix, request.pruned)
        assert graph.metadata is not None
        metadata = graph.metadata
    names = _order(graph, context)
    shapes = [(name, graph[name].shape) for name in names]
    # The rules see the new numbers of layers, and how many there were, as in llama-quantize.
    decided, unchanged = decide_types(
        request,
        shapes,
        whole,
        has_importance=imatrix is not None,
        in_order=context.keep_split,
    )
    chosen = {name: _possible(graph[name], d) for name, d in zip(names, decided, strict=True)}
    multiplied = _multiplied(graph, chosen)
    for name in multiplied:
        for ending in (FACTOR, INPUT_SCALE):
            chosen.pop(factor_name(name, ending), None)
    found = find_factors(graph, chosen) if request.nvfp4_factors else {}
    beside = {**graph.factors.of, **found, **dict.fromkeys(multiplied, ())}
    shapes = [(name, shape) for name, shape in shapes if name in chosen]
    decisions = list(chosen.values())
    made = [
        _made(_divided(graph[name], beside.get(name, ())), decision)
        for name, decision in chosen.items()
    ]
    copied = {tensor.name for tensor in made if not isinstance(tensor.origin, Quantize)}
    importance = match_importance(imatrix, shapes, decisions, copied)
    file_type = _copied_file_type(source, whole) if recipe == COPY else _file_type(recipe, made)
    raw = _metadata(metadata, file_type, imatrix, request, keep_order=context.keep_order)
    entries = [entry for t in made for entry in _entries(t, found, keeps_shape=context.keep_order)]
    placed = _place(graph, request.path, raw, entries, context)
    tensors = tuple(
        PlannedTensor(
            tensor,
            STORED_TYPES[tensor.dtype],
            *placed.offsets[tensor.name],
            _rows_for(importance, tensor),
            factors=beside.get(tensor.name, ()),
        )
        for tensor in made
    )
    constants = tuple(
        (*placed.offsets[factor_name(name)], np.array(factors, "<f4").tobytes())
        for name, factors in found.items()
    )
    notes = (
        *graph.notes,
        *choice_notes(chosen.items()),
        *unchanged,
        *importance.notes(),
        *_factor_notes(graph, chosen, multiplied),
        *_alignment_note(metadata),
        *unread_notes(raw, entries),
    )
    if request.nvfp4_factors:
        notes += (f"NVFP4 with a factor beside it: {count(len(found), 'tensor')}",)
    return Output(request, placed.files, tensors, {}, notes, importance, constants)


def _divided(tensor: Tensor, factors: Sequence[float]) -> Tensor:
    """Give what lies in an output with factors beside it: the stored blocks if these have them."""
    if not factors:
        return tensor
    if isinstance(tensor.origin, Scaled):
        return unscaled(tensor)
    return scaled(tensor, [1 / factor for factor in factors])


def _entries(
    tensor: Tensor, factors: Mapping[str, Sequence[float]], *, keeps_shape: bool
) -> Iterator[Entry]:
    """List a tensor of a file, and the factor that it gets."""
    yield entry_of(tensor, keeps_shape=keeps_shape)
    if tensor.name in factors:
        yield Entry(factor_name(tensor.name), F32, (len(factors[tensor.name]),))


def _multiplied(graph: TensorGraph, chosen: Mapping[str, Decision]) -> list[str]:
    """List the tensors with factors that become something with none beside it.

    They are those of NVFP4 that become a type which llama.cpp multiplies by no factor, and those
    that adapters are added to.
    """
    return [
        name
        for name in graph.factors.of
        if is_sum(graph[name])
        or (
            graph[name].dtype == NVFP4.name
            and (made := chosen[name].type) not in (None, NVFP4)
            and not is_multiplied(graph.family.architecture, name, made.name)
        )
    ]


def _factor_notes(
    graph: TensorGraph, chosen: Mapping[str, Decision], multiplied: Sequence[str]
) -> Iterator[str]:
    if multiplied:
        yield (
            "multiplied by the factor beside it, which llama.cpp would not do with that type: "
            f"{count(len(multiplied), 'tensor')}, for example {multiplied[0]}"
        )
    ignored = [
        name
        for name in graph.factors.of
        if name in chosen and name not in multiplied and graph[name].dtype == NVFP4.name
        if not is_multiplied(graph.family.architecture, name, NVFP4.name)
    ]
    if ignored:
        yield (
            "copied with a factor beside it, which llama.cpp refuses or ignores in this "
            f"architecture, but not once it has another type: {count(len(ignored), 'tensor')}, "
            f"for example {ignored[0]}"
        )


def _order(graph: TensorGraph, context: Context) -> list[str]:
    """Put the tensors' names in the order of the output."""
    if context.keep_order:
        return list(graph)
    if context.keep_split:
        places = _places(graph)
        return sorted(graph, key=lambda name: places[name])
    return sorted(graph, key=llama_cpp_order)


def _places(graph: TensorGraph) -> dict[str, tuple[int, int]]:
    """Tell where each tensor lies: the number of the source's file, and the byte."""
    numbers = {path: number for number, path in enumerate(graph.files)}
    arrays = {name: first_array(tensor) for name, tensor in graph.items()}
    return {name: (numbers[array.path], array.offset) for name, array in arrays.items()}


def _place(
    graph: TensorGraph,
    path: Path,
    raw: Mapping[str, bytes],
    entries: Sequence[Entry],
    context: Context,
) -> GgufFiles:
    """Place tensors in files: as many as the source's, or as large as they may be."""
    if not context.keep_split or len(graph.files) == 1:
        return lay_out_files(path, raw, entries, context.split_bytes)
    parts: list[list[Entry]] = [[] for _ in graph.files]
    places = _places(graph)
    number = 0
    for entry in entries:
        if entry.name in places:  # a factor that is found goes with its weight
            number = places[entry.name][0]
        parts[number].append(entry)
    return lay_out_parts(path, raw, parts, QUANTIZE_KEYS)


def entry_of(tensor: Tensor, *, keeps_shape: bool = False) -> Entry:
    """Describe a tensor as it is written, of the shape that ggml gives it."""
    shape = tensor.shape if keeps_shape else ggml_shape(tensor.shape)
    return Entry(tensor.name, STORED_TYPES[tensor.dtype], shape)


def _possible(tensor: Tensor, decision: Decision) -> Decision:
    """Choose a type that is possible: whole numbers and float64 are no weights, they stay."""
    if decision.type is None or decision.type.name == tensor.dtype or tensor.dtype in TYPES:
        return decision
    if decision.override is None:
        return Decision(None)
    raise LayoutError(
        f"{decision.override}: {shown(tensor.name)} is {tensor.dtype}, which cannot become "
        f"{decision.type.name}"
    )


def _made(tensor: Tensor, decision: Decision) -> Tensor:
    """The tensor in its new type, or itself if it stays: its bytes are copied then."""
    if isinstance(tensor.origin, AddLowRank):
        kept = tensor.origin.source.dtype
        return quantized(tensor.name, tensor, kept if decision.type is None else decision.type.name)
    if decision.type is None or decision.type.name == tensor.dtype:
        return tensor
    return quantized(tensor.name, tensor, decision.type.name)


def _rows_for(importance: ImportanceMap, tensor: Tensor) -> NDArray[np.float32] | None:
    if not isinstance(tensor.origin, Quantize):
        return None
    rows = importance.rows.get(tensor.name)
    if rows is not None and isinstance(tensor.origin.source.origin, Rows):
        raise LayoutError(
            f"{shown(tensor.name)}: no importance can be given to shape {list(tensor.shape)}"
        )
    return rows


def _file_type(recipe: Recipe, made: Sequence[Tensor]) -> int:
    """Number the type that the file is; if no tensor is quantized, the floats that most are."""
    if recipe.base in FLOAT_TYPES or any(tensor.dtype in _LOSSY for tensor in made):
        return recipe.file_type
    sizes = Counter[str]()
    for tensor in made:
        sizes[tensor.dtype] += tensor.size
    floats = max(sorted(_EXACT), key=lambda name: sizes[name])
    return RECIPES[floats].file_type if sizes[floats] else recipe.file_type


def _metadata(
    metadata: Metadata,
    file_type: int,
    imatrix: ImportanceMatrix | None,
    request: Request,
    *,
    keep_order: bool,
) -> dict[str, bytes]:
    """Keep all metadata, and renew what says how tensors are stored and what was asked for.

    As in llama-quantize, which sets these keys one after the other, and so puts each behind all
    others. Values that were asked for are those of the matrix and the layers, too.
    """
    from gguf import GGML_QUANT_VERSION

    layers_key = f"{metadata.get('general.architecture', '')}.{BLOCK_COUNT}"
    renewed = {
        QUANTIZATION_VERSION_KEY: raw_uint(GGML_QUANT_VERSION),
        FILE_TYPE_KEY: raw_uint(file_type),
    }
    asked, provenance = request.metadata, provenance_metadata(imatrix)
    is_changed = request.pruned and layers_key in metadata
    layers = {layers_key: metadata.raw[layers_key]} if is_changed else {}
    for key, raw in (*asked.items(), *provenance.items(), *layers.items()):
        renewed.pop(key, None)
        renewed[key] = asked.get(key, raw)
    dropped = SPLIT_KEYS if keep_order else (*SPLIT_KEYS, *renewed)
    kept = {key: raw for key, raw in metadata.raw.items() if key not in dropped}
    return kept | renewed


def _copied_file_type(graph: TensorGraph, metadata: Metadata) -> int:
    """Give the file type that a source says, or else guess it as llama.cpp does."""
    said = whole_number(metadata, FILE_TYPE_KEY)
    if said is not None and said >= 0:
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


def _alignment_note(metadata: Metadata) -> Iterator[str]:
    """Say so if the alignment is kept in another type than the source's."""
    kind = TYPE_NAMES[metadata.kind(ALIGNMENT_KEY)] if ALIGNMENT_KEY in metadata else "uint32"
    if kind != "uint32":
        yield f"{ALIGNMENT_KEY} is {kind} in the source; written as uint32, as llama.cpp reads it"


def check_requantized(outputs: Sequence[Output]) -> None:
    """Raise LayoutError for a tensor that would be quantized a second time."""
    for output in outputs:
        refused = [
            (planned, stored)
            for planned in output.tensors
            for stored in {view.array: None for view in windows(planned.tensor)}
            if _is_requantized(planned, stored)
        ]
        if refused:
            planned, stored = refused[0]
            raise LayoutError(
                f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}, and "
                f"{planned.type.name} made of that loses more than made of the original weights; "
                f"{_lossless(output, refused)}; {option('allow_requantize', True)} makes it, with "
                "that loss"
            )


def _lossless(output: Output, refused: Sequence[tuple[PlannedTensor, StoredArray]]) -> str:
    """Say how to do without losses: by a rule that keeps these tensors, or by keeping all."""
    planned, stored = refused[0]
    if is_sum(planned.tensor):
        return "F32 keeps these values"
    rule = _keeping_rule(output, refused)
    if rule is not None:
        return f"{option('tensor_types', rule)} keeps all such tensors as they are"
    if output.request.target.keeps_metadata and stored.path.suffix == ".gguf":
        copy = spoken(option("types", COPY.name), f"types={COPY.name!r}")
        others = spoken("weightcast split and merge", "weightcast.split and merge")
        return f"{copy} keeps all types as they are, as do {others}"
    return "F32 keeps these values"


def _is_requantized(planned: PlannedTensor, stored: StoredArray) -> bool:
    if stored.dtype not in _LOSSY or planned.type.name in _EXACT:
        return False
    return planned.type.name != stored.dtype or is_sum(planned.tensor)


def _keeping_rule(
    output: Output, refused: Sequence[tuple[PlannedTensor, StoredArray]]
) -> str | None:
    """Find a rule that keeps these tensors, all of one type, if others are left to quantize."""
    stored = {array.dtype for _, array in refused}
    names = {planned.tensor.name: None for planned, _ in refused}
    others = [t for t in output.tensors if t.tensor.name not in names]
    is_mixed = any(t.type.name in _LOSSY and t.type.name != _stored(t) for t in others)
    if len(stored) > 1 or not is_mixed:
        return None
    part = common_part([*names], [t.tensor.name for t in others])
    return None if part is None else f"{part}={stored.pop()}"


def _stored(planned: PlannedTensor) -> str:
    origin = planned.tensor.origin
    return origin.source.dtype if isinstance(origin, Quantize) else planned.tensor.dtype
