"""Write GGUF: parse the names of such outputs, and lay them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weightcast.converters.graph import TensorGraph, is_stored_as, quantized
from weightcast.converters.recipes import (
    COPY,
    RECIPES,
    Recipe,
    RecipeFile,
    directory_type,
    match_importance,
    provenance_metadata,
    recipe_named,
    recipe_numbered,
)
from weightcast.converters.targets.gguf_adapter import lay_out_adapter
from weightcast.converters.targets.gguf_copy import lay_out_copy
from weightcast.converters.targets.gguf_files import lay_out_files
from weightcast.converters.targets.names import (
    TypeNames,
    disagreement,
    impossible,
    plain_path,
)
from weightcast.converters.targets.search_record import search_metadata, search_of
from weightcast.converters.targets.sized import lay_out_sized
from weightcast.converters.targets.target import (
    Codes,
    Context,
    Output,
    PlannedTensor,
    Request,
    choice_notes,
    type_of,
)
from weightcast.converters.targets.types import choose, shapes_of
from weightcast.errors import RequestError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.layout import Entry
from weightcast.formats.gguf.read import read_file
from weightcast.formats.split import SPLIT_NAME
from weightcast.quant.types import TYPES, QuantType
from weightcast.text import option

_TYPES: Final = ", ".join(sorted(TYPES))
_ENDING: Final = ".gguf"
# What names are not found by as they are; a dot finds itself.
_IN_PATTERNS: Final = re.compile(r"[\\^$*+?{}\[\]|()]")


class Gguf:
    """GGUF files: one, or parts side by side."""

    name: Final = "gguf"
    form: Final = "GGUF"
    library: Final = "gguf"
    is_directory: Final = False
    keeps_metadata: Final = True
    needs_tokenizer: Final = "llama.cpp"
    convention: Final = "gguf"
    codes: Final = Codes("blocks", "q8_0", "", " scales are not exact in float16")

    def parse(
        self,
        text: str,
        type_name: str | None,
        file: RecipeFile | None,
        default: Recipe | None = None,
    ) -> Request | None:
        """Tell from its name what a file is to be: NAME-TYPE.gguf. See Target."""
        if not text.lower().endswith((_ENDING, f"{_ENDING}/")):
            return None
        stem, type_name = _stem(text, type_name), _by_number(type_name)
        if type_name is not None and recipe_named(type_name) == COPY:
            type_name = COPY.name
        found, has_imatrix = _NAMES.read(text, stem, type_name)
        if file is not None and found is None and file.base is None:
            raise disagreement(text, "is a GGUF file", file, ", a type of directories")
        if file is not None and found is None:
            found = file.base
        found = found or default
        if found is None:
            raise _NAMES.none_found(text, stem)
        if file is not None and found != file.base:
            raise disagreement(text, f"asks for {found.name}", file)
        return Request(plain_path(text), self, found, says_imatrix=has_imatrix and found != COPY)

    def check_rules(self, request: Request) -> Request:
        """Refuse rules that ask for a type that GGUF does not have. Raises RequestError."""
        for override in request.overrides:
            if not isinstance(override.type, QuantType):
                raise impossible(request, override, f"a GGUF file holds {_TYPES}")
        return request

    def lay_out(self, graph: TensorGraph, request: Request, context: Context) -> Output:
        """Lay out files: of any model in a GGUF file as a copy, of a family's from its table."""
        if request.goal is not None:
            if graph.container == "peft":
                raise RequestError(
                    f"{request.path}: types are chosen for a size in models only, and "
                    f"{graph.source} is an adapter"
                )
            return lay_out_sized(lambda r: self.lay_out(graph, r, context), request, context)
        if graph.metadata is not None and graph.container == "peft":
            return lay_out_adapter(graph, graph.metadata, request, context)
        if graph.metadata is not None:
            return lay_out_copy(graph, graph.metadata, request, context)
        return _lay_out_anew(graph, request, context)

    def owns(self, name: str) -> bool:
        """Say no: an output is no directory."""
        return False

    def owns_part(self, output: Path, name: str) -> bool:
        """Say whether a name is the output's own or that of a part of it."""
        stem = output.name.removesuffix(_ENDING)
        part = SPLIT_NAME.fullmatch(name)
        return name == f"{stem}{_ENDING}" or (part is not None and part[1] == stem)

    def read(self, path: Path) -> Mapping[str, StoredArray]:
        """Read the index of one file. Raises FormatError."""
        return read_file(path).tensors

    def remedy(self, tensor: str, other: QuantType, effect: str) -> str:
        """Say how a tensor gets another type, and the effect; nothing if no rule can name it."""
        if not tensor.isprintable():
            return ""
        pattern = re.escape(tensor) if _IN_PATTERNS.search(tensor) else tensor
        rule = option("tensor_types", f"{pattern}={other.name}")
        return f"; {rule} {effect}"


GGUF: Final = Gguf()


def _stem(text: str, type_name: str | None) -> str:
    """Give the name of a GGUF output without its ending. Raises RequestError."""
    if text.endswith("/"):
        raise RequestError(f"{text}: a GGUF output is a file; leave the slash out")
    stem = Path(text).name[: -len(_ENDING)]
    if not text.endswith(_ENDING):
        raise RequestError(f"{text}: write the ending in lower case, {stem}{_ENDING}")
    if type_name is None and SPLIT_NAME.fullmatch(f"{stem}{_ENDING}"):
        raise RequestError(
            f"{text}: this is the name of one part of a split file; leave {stem[-15:]} out, and "
            f"say with {option('split', 'SIZE')} how large parts may be"
        )
    return stem


def _by_number(type_name: str | None) -> str | None:
    """Name a type that is given by its number in llama-quantize, as 15 for Q4_K_M."""
    if type_name is None or re.fullmatch(r"[0-9]{1,3}", type_name) is None:
        return type_name
    found = recipe_numbered(int(type_name))
    return type_name if found is None else found.name


def _elsewhere(text: str, name: str) -> str | None:
    """Say what to do with a type that directories alone can have."""
    found = directory_type(name)
    if found is None or recipe_named(name) is not None:
        return None
    return f"{found.name} is a type of directories; leave {_ENDING} out, or take a type of GGUF"


def _recipe_at_end(written: str) -> Recipe | None:
    """Look up what a name ends in; "copy" in small letters is what file managers add."""
    found = recipe_named(written)
    return None if found == COPY and written != COPY.name else found


def _is_same(said: Recipe, asked: Recipe) -> bool:
    """Tell whether a name and a type agree; a copy is called as its source may be."""
    return asked in (said, COPY)


_KNOWN: Final = (*RECIPES, COPY.name)
_NAMES: Final[TypeNames[Recipe]] = TypeNames(
    "a GGUF file", "grok-1-Q4_K_M.gguf", _recipe_at_end, _is_same, lambda: _KNOWN, _elsewhere
)


def _lay_out_anew(graph: TensorGraph, request: Request, context: Context) -> Output:
    family, recipe, split_bytes = graph.family, request.recipe, context.split_bytes
    if request.pruned:
        raise RequestError(
            f"{graph.source}: {option('prune_layers')} makes a GGUF file of another one; convert "
            "this to GGUF first"
        )
    chosen, unchanged = choose(graph, request, has_importance=context.imatrix is not None)
    tensors = {p.name: family.written(p, GGUF.convention, graph[p.name]) for p, _ in chosen}
    copied = {p.name for p, d in chosen if is_stored_as(tensors[p.name], type_of(d).name)}
    decisions = [decision for _, decision in chosen]
    search = search_of(request.search, (type_of(d) for p, d in chosen if p.name not in copied))
    importance = match_importance(context.imatrix, shapes_of(graph), decisions, copied, search)
    entries = [Entry(p.name, type_of(d), tensors[p.name].shape) for p, d in chosen]
    assert family.metadata is not None
    metadata = family.metadata(graph, context.vocabulary, recipe.file_type)
    metadata |= provenance_metadata(context.imatrix) | search_metadata(search)
    metadata |= dict(request.metadata)
    made = lay_out_files(request.path, metadata, entries, split_bytes)
    planned = tuple(
        PlannedTensor(
            quantized(place.name, tensors[place.name], type_of(decision).name),
            type_of(decision),
            *made.offsets[place.name],
            importance.rows.get(place.name),
        )
        for place, decision in chosen
    )
    notes = (*choice_notes((p.name, d) for p, d in chosen), *unchanged, *importance.notes())
    notes += tuple(family.notes(graph, GGUF.name))
    if request.nvfp4_factors:
        notes += ("NVFP4 has no factors beside it: only copies of GGUF files get some",)
    return Output(request, made.files, planned, {}, notes, importance)
