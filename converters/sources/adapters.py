"""Adapters (LoRA): directories of peft and GGUF files of llama.cpp, and models merged with them.

An adapter adds multiplier * b @ a to some of a model's tensors. Its factors go by the names and in
the order of rows that llama.cpp has, whatever the adapter was read from.
Source of the GGUF: llama_adapter_lora_init_impl in src/llama-adapter.cpp and get_scale in
src/llama-adapter.h of llama.cpp.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from weightcast.converters.families import FAMILIES, of_architecture
from weightcast.converters.families.linear_layers import (
    MAKE_ADAPTER,
    BaseModel,
    Target,
    base_of_config,
    base_of_graph,
)
from weightcast.converters.graph import (
    Tensor,
    TensorGraph,
    affine,
    check_readable,
    interleaved_halves,
    stacked,
    stored,
    transposed,
    with_low_rank,
)
from weightcast.converters.graph.values import chunks
from weightcast.converters.sources.detect import resolve_source
from weightcast.converters.sources.options import parse_lora
from weightcast.errors import (
    CheckpointError,
    FormatError,
    LayoutError,
    MissingTensorError,
)
from weightcast.formats.gguf import read as gguf
from weightcast.formats.peft import CONFIG_NAME, LoraModule, PeftAdapter, is_adapter, read_adapter
from weightcast.formats.reading import read_json_object
from weightcast.quant.types import FLOAT_TYPES, TYPES
from weightcast.text import bytes_text, count, option, shown, some

ALPHA_KEY: Final = "adapter.lora.alpha"
INVOCATION_KEY: Final = "adapter.alora.invocation_tokens"
EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
# Of both factors of a matrix as float32, which a slab has beside the matrix's own rows.
_MAX_FACTOR_BYTES: Final = 1 << 27
_KINDS: Final = f"an adapter is a directory with {CONFIG_NAME} (of peft), or a GGUF file"
_MERGE: Final = "merge it with peft (merge_and_unload)"


@dataclass(frozen=True, slots=True)
class Factors:
    """What is added to a tensor: multiplier * b [..., out, rank] @ a [..., rank, in]."""

    a: Tensor
    b: Tensor
    multiplier: float

    @property
    def rank(self) -> int:
        """Give the rank of the product, at most."""
        return self.a.shape[-2]


@dataclass(frozen=True)
class Adapter:
    """The factors of an adapter by the names of the tensors in GGUF.

    Tokens of `invocation` start an activated adapter, which does nothing before them.
    """

    path: Path
    factors: Mapping[str, Factors]
    invocation: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def lora_files(texts: Sequence[str]) -> dict[str, Path]:
    """List the files of adapters by their roles as inputs: adapter, adapter config, adapter 2 ...

    Raises CheckpointError for what is no adapter.
    """
    found = {}
    for number, (path, _) in enumerate(map(parse_lora, texts), 1):
        role = "adapter" if number == 1 else f"adapter {number}"
        for name, file in _files_of(_located(path)).items():
            found[f"{role}{name}"] = file
    return found


def _files_of(path: Path) -> dict[str, Path]:
    if path.is_file():
        parts = enumerate(gguf.read_split(path).paths, 1)
        return {"" if number == 1 else f" part {number}": part for number, part in parts}
    return {"": read_adapter(path).files[0], " config": path / CONFIG_NAME}


def _located(path: Path) -> Path:
    """Go from what somebody names to an adapter's directory or file. Raises MissingTensorError."""
    path = resolve_source(path)
    if is_adapter(path) or (path.is_file() and _is_gguf(path)):
        return path
    found = "no such file or directory"
    if path.exists():
        found = f"no {CONFIG_NAME} in it" if path.is_dir() else "not a GGUF file"
    raise MissingTensorError(f"{path}: {found}; {_KINDS}")


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(gguf.MAGIC)) == gguf.MAGIC
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None


def with_adapters(graph: TensorGraph, texts: Sequence[str]) -> TensorGraph:
    """Add adapters, each given as PATH or PATH=SCALE, to the tensors of a model.

    Raises CheckpointError for what is no adapter of this model. Factors are looked through for
    what is not finite; a tensor that no adapter is for stays as it is.
    """
    if texts and graph.container == "peft":
        raise LayoutError(
            f"{graph.source}: an adapter itself, to which none can be added; name the model as "
            f"source, and each adapter as {option('lora')}"
        )
    tensors, notes = dict(graph.tensors), []
    for path, scale in map(parse_lora, texts):
        adapter = open_adapter(_located(path), _base_of(graph))
        if adapter.invocation:
            raise LayoutError(
                f"{adapter.path}: an activated adapter (aLoRA), which is for what follows some "
                "tokens only: it cannot be merged; use it with llama.cpp as a GGUF file"
            )
        for name, factors in adapter.factors.items():
            _check_fits(adapter, graph, name, factors)
            try:
                check_readable(tensors[name])
                by = scale * factors.multiplier
                tensors[name] = with_low_rank(tensors[name], factors.a, factors.b, by)
            except LayoutError as problem:
                raise LayoutError(f"{adapter.path}: {problem}") from None
        notes.append(
            f"merged {adapter.path.name} (scale {scale:g}) into "
            f"{count(len(adapter.factors), 'tensor')}, which are made anew, not carried over"
        )
        notes += adapter.notes
        if EMBEDDING in adapter.factors and _HEAD not in tensors:
            notes.append("the output head is the embedding table: the adapter changes both")
    return replace(graph, tensors=tensors, notes=(*graph.notes, *notes)) if texts else graph


def _check_fits(adapter: Adapter, graph: TensorGraph, name: str, factors: Factors) -> None:
    """Raise CheckpointError for factors that are not of a model, too large, or not finite."""
    tensor = graph.tensors.get(name)
    path, made = adapter.path, [*factors.b.shape[:-1], factors.a.shape[-1]]
    if tensor is None and name == _HEAD:
        raise LayoutError(
            f"{path}: adapts the output head, which is the embedding table in {graph.source}; "
            f"untie them (tie_word_embeddings), and {_MERGE}"
        )
    if tensor is None:
        raise LayoutError(
            f"{path}: an adapter for {shown(name)}, which {graph.source} does not have; name the "
            "model that it was trained on"
        )
    if list(tensor.shape) != made:
        raise LayoutError(
            f"{path}: an adapter for {shown(name)} of shape {made}, but in {graph.source} it is "
            f"{list(tensor.shape)}; name the model that it was trained on"
        )
    nbytes = 4 * factors.rank * sum(made[-2:])
    if nbytes > _MAX_FACTOR_BYTES:
        raise LayoutError(
            f"{path}: rank {factors.rank:,} for {shown(name)} {made}: factors of "
            f"{bytes_text(nbytes)}, which is too much; {_MERGE}"
        )
    for factor in (factors.a, factors.b):
        check_finite(path, factor)


def check_finite(path: Path, factor: Tensor) -> None:
    """Raise LayoutError for a value that is not finite, or for numbers that are no weights."""
    check_readable(factor)
    for index, values in chunks(factor):
        finite = np.isfinite(values)
        if not finite.all():
            place = np.argwhere(~finite)[0]
            first = [at.start or 0 if isinstance(at, slice) else at for at in index]
            lead, rows = first[: len(first) - 1], first[-1]
            where = [*map(int, lead), int(place[0]) + int(rows), int(place[1])]
            raise LayoutError(
                f"{path}: {factor.name}: {values[tuple(place)]} at {where}; train it again"
            )


def open_adapter(path: Path, base: BaseModel) -> Adapter:
    """Open an adapter of a model. Raises CheckpointError."""
    return _of_peft(read_adapter(path), base) if is_adapter(path) else _of_gguf(path, base)


# From peft.


def _of_peft(peft: PeftAdapter, base: BaseModel) -> Adapter:
    """Give the modules of peft llama.cpp's names: experts as stacks, heads in its order."""
    modules: dict[str, dict[int | None, tuple[Target, LoraModule]]] = defaultdict(dict)
    for module in peft.modules.values():
        try:
            target = base.target(module.name)
        except LayoutError as problem:
            raise LayoutError(f"{peft.path}: {problem}") from None
        if module.is_embedding != (target.name == EMBEDDING):
            what = "an embedding" if module.is_embedding else "a layer"
            raise LayoutError(f"{peft.path}: {shown(module.name)} is adapted as {what}; {_MERGE}")
        if target.expert in modules[target.name]:
            raise LayoutError(f"{peft.path}: {shown(module.name)} is there twice")
        modules[target.name][target.expert] = target, module
    factors = {name: _joined(peft, base, name, found) for name, found in modules.items()}
    return Adapter(peft.path, factors, peft.invocation)


def _joined(
    peft: PeftAdapter,
    base: BaseModel,
    name: str,
    found: Mapping[int | None, tuple[Target, LoraModule]],
) -> Factors:
    """Make the factors of one tensor: of one module, or of one for each expert."""
    if None in found:
        target, module = found[None]
        return _of_module(name, target, module)
    numbers = sorted(number for number in found if number is not None)
    n_experts = base.num_experts or numbers[-1] + 1
    if numbers[-1] >= n_experts:
        raise LayoutError(f"{peft.path}: expert {numbers[-1]} of {n_experts} in {name}")
    missing = next((n for n in range(n_experts) if n not in found), None)
    if missing is not None:
        raise MissingTensorError(
            f"{peft.path}: expert {missing} of {name} is not adapted, but others are; {_MERGE}"
        )
    parts = [_of_module(name, *found[number]) for number in numbers]
    if len({part.multiplier for part in parts}) > 1 or len({part.rank for part in parts}) > 1:
        raise LayoutError(
            f"{peft.path}: experts of {name} have different ranks or alphas; {_MERGE}"
        )
    try:
        a = stacked(f"{name}.lora_a", tuple(part.a for part in parts))
        b = stacked(f"{name}.lora_b", tuple(part.b for part in parts))
    except LayoutError as problem:
        raise LayoutError(f"{peft.path}: {problem}") from None
    return Factors(a, b, parts[0].multiplier)


def _of_module(name: str, target: Target, module: LoraModule) -> Factors:
    a, b = stored(f"{name}.lora_a", module.a), stored(f"{name}.lora_b", module.b)
    if module.is_embedding:
        # Rows of the table are looked up: the product is transposed.
        return Factors(transposed(b), transposed(a), module.multiplier)
    if target.heads:
        b = interleaved_halves(b, target.heads)
    return Factors(a, b, module.multiplier)


# From GGUF.


def _of_gguf(path: Path, base: BaseModel) -> Adapter:
    """Open an adapter's GGUF file, or its parts, of the same architecture.

    Raises CheckpointError.
    """
    index = gguf.read_split(path)
    metadata = index.metadata
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        kind = shown(metadata.get("adapter.type", metadata.get("general.type", "model")))
        raise FormatError(path, None, f"a GGUF file of type {kind}, not an adapter (LoRA)")
    architecture = metadata.get("general.architecture")
    if architecture != base.architecture:
        raise LayoutError(
            f"{path}: an adapter for {shown(architecture)}, but {base.source} is "
            f"{shown(base.architecture)}"
        )
    alpha = metadata.get(ALPHA_KEY, 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise FormatError(path, None, f"{ALPHA_KEY} is {shown(alpha)}, not a number")
    factors, norms = {}, 0
    for name in index.tensors:
        stem, _, ending = name.rpartition(".")
        if ending == "lora_b":
            if f"{stem}.lora_a" not in index.tensors:
                raise MissingTensorError(f"{path}: {shown(stem)} has no lora_a")
            factors[stem] = _pair(path, index, stem, float(alpha))
        elif ending == "lora_a":
            if f"{stem}.lora_b" not in index.tensors:
                raise MissingTensorError(f"{path}: {shown(stem)} has no lora_b")
        elif name.endswith("_norm.weight"):
            norms += 1
        else:
            raise LayoutError(f"{path}: {shown(name)} is no factor of a LoRA; {MAKE_ADAPTER}")
    notes = (f"left out of {path.name}, as in llama.cpp: {count(norms, 'norm')}",) if norms else ()
    invocation = (0,) if INVOCATION_KEY in metadata else ()
    return Adapter(path, factors, invocation, notes)


def _pair(path: Path, index: gguf.GGUFIndex, name: str, alpha: float) -> Factors:
    a, b = (stored(f"{name}.{end}", index.tensors[f"{name}.{end}"]) for end in ("lora_a", "lora_b"))
    if name == EMBEDDING:  # rows of the table are looked up: the first factor lies turned
        a, b = b, a
    are_stacks = len(a.shape) == len(b.shape) in (2, 3) and a.shape[:-2] == b.shape[:-2]
    if name == EMBEDDING and are_stacks:
        a = _turned(path, a)
    if not are_stacks or a.shape[-2] != b.shape[-1] or not a.size or not b.size:
        raise LayoutError(
            f"{path}: {shown(name)}: factors {list(a.shape)} and {list(b.shape)} do not fit each "
            f"other; {MAKE_ADAPTER}"
        )
    return Factors(a, b, alpha / a.shape[-2] if alpha else 1.0)


def _turned(path: Path, factor: Tensor) -> Tensor:
    """Transpose a factor. Raises LayoutError for one in blocks, which lie along stored rows."""
    if factor.dtype in TYPES and TYPES[factor.dtype] not in FLOAT_TYPES:
        rule = option("tensor_types", ".*lora_[ab]=F32")
        raise LayoutError(
            f"{path}: {factor.name} is {factor.dtype}, which cannot be merged into an embedding "
            f"table; convert the adapter with {rule}, and merge that"
        )
    return transposed(factor)


# The model that an adapter of peft belongs to.


def find_base(peft: PeftAdapter, named: Path | None) -> BaseModel:
    """Find the model that an adapter belongs to: as it is named, or beside the adapter.

    Raises CheckpointError.
    """
    if named is not None:
        return _base_at(resolve_source(named))
    for folder in _possible_bases(peft):
        if (folder / "config.json").is_file():
            return _base_at(folder)
    raise not_a_model(peft)


def not_a_model(peft: PeftAdapter) -> FormatError:
    """Make the error for an adapter in the place of a model, or without its own."""
    of = "" if peft.base_model is None else f" of {shown(peft.base_model)}"
    return FormatError(
        peft.path,
        None,
        f"an adapter (LoRA){of}, not a model; to merge it, name it as {option('lora')} and the "
        f"model as SRC; for llama.cpp, name the model as {option('base')}",
    )


def _base_of(graph: TensorGraph) -> BaseModel:
    """Describe an opened model, also one whose GGUF file is read under its own names."""
    base = base_of_graph(graph)
    return replace(base, family=of_architecture(base.architecture))


def _possible_bases(peft: PeftAdapter) -> Iterator[Path]:
    yield peft.path
    if peft.base_model is not None and "\0" not in peft.base_model:
        yield Path(peft.base_model)
        yield peft.path / peft.base_model


def base_file(path: Path) -> Path:
    """Name the file that tells of a model: config.json of a directory, or the file itself."""
    return path / "config.json" if path.is_dir() else path


def _base_at(path: Path) -> BaseModel:
    from weightcast.converters.sources.open import open_graph

    config = base_file(path)
    if config.suffix != ".json" or not config.is_file():
        return _base_of(open_graph(path))
    values = read_json_object(config, "config")
    for family in FAMILIES.values():
        if family.config_mark is not None and family.config_mark in values:
            experts = values.get("num_local_experts", values.get("num_experts"))
            number = experts if type(experts) is int else 0
            return BaseModel(str(path), family.architecture, family, num_experts=number)
    found = base_of_config(path, values)
    if found is None:
        raise LayoutError(
            f"{config}: what becomes of the layers of {shown(values.get('architectures'))} in GGUF "
            f"is not known here; {MAKE_ADAPTER}"
        )
    return found


# As a source of its own.


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as llama.cpp reads it: tensors by name, in order, and the alpha of all of them."""

    tensors: Mapping[str, Tensor]
    alpha: float
    notes: tuple[str, ...] = ()


def as_file(adapter: Adapter) -> AdapterFile:
    """Make the tensors of a GGUF file, of which all multipliers are alpha / rank.

    alpha is what most tensors have; b of the others is scaled to make up for it. Raises LayoutError
    if that cannot be done.
    """
    alphas = {name: f.multiplier * f.rank for name, f in adapter.factors.items()}
    alpha = float(np.float32(Counter(alphas.values()).most_common(1)[0][0]))
    if alpha == 0:  # which llama.cpp takes for a multiplier of 1
        raise LayoutError(f"{adapter.path}: lora_alpha is 0 for most of it, so it adds nothing")
    tensors, scaled = {}, []
    notes: tuple[str, ...] = ()
    for name, factors in adapter.factors.items():
        check_readable(factors.a)
        check_readable(factors.b)
        a, b, by = factors.a, factors.b, alphas[name] / alpha
        if np.float32(alphas[name]) != np.float32(alpha):
            scaled.append(name)
            b = affine(b, by)
        if name == EMBEDDING:
            a, b = b, transposed(a)
        for tensor, ending in ((a, "lora_a"), (b, "lora_b")):
            own = f"{name}.{ending}"
            tensors[own] = replace(tensor, name=own)
    if scaled:
        notes = (f"lora_b is scaled, as llama.cpp has one alpha ({alpha:g}): {some(scaled)}",)
    return AdapterFile(tensors, alpha, notes)
