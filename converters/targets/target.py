"""The vocabulary of outputs: a target, a request for one, and an output laid out.

Every file's header, size and offsets are known before a weight is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.graph import Tensor, TensorGraph
from weightcast.converters.recipes import (
    COPY,
    END_OPTIONS,
    NO_END_TYPES,
    Decision,
    DirectoryType,
    EndTypes,
    Goal,
    ImportanceMap,
    Override,
    Recipe,
    RecipeFile,
    SizedRecipe,
)
from weightcast.converters.sources import Form
from weightcast.converters.targets.packing import Packing
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.hessians import Hessians, StoredMoments
from weightcast.formats.tokenizer import Vocabulary
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType, WeightType
from weightcast.text import bytes_text, count, option, some

# In bytes: "Storage limits and recommendations" of the Hugging Face Hub.
_HUB_RECOMMENDS: Final = 50 * 10**9
_HUB_LIMIT: Final = 200 * 10**9


@dataclass(frozen=True, slots=True)
class Context:
    """The things that outputs of one source share: vocabulary, importance matrix, limit of files.

    `split_bytes` limits the tensor data of one file; 0 leaves the limit to the target. What is
    copied from GGUF to GGUF is put in llama-quantize's order unless they `keep_order`, and goes
    into as many files as it comes from if they `keep_split`.
    """

    vocabulary: Vocabulary | None = None
    imatrix: ImportanceMatrix | None = None
    split_bytes: int = 0
    keep_order: bool = False
    keep_split: bool = False


class Target(Protocol):
    """A kind of output: it parses names, lays outputs out, and tells which files are its own."""

    @property
    def name(self) -> str:
        """The word for it in JSON: "gguf" or "safetensors"."""

    @property
    def form(self) -> str:
        """The word for it in prose."""

    @property
    def library(self) -> str:
        """The library that loads it, as model hubs call it."""

    @property
    def is_directory(self) -> bool:
        """True if an output is a directory, not a file or several side by side."""

    @property
    def keeps_metadata(self) -> bool:
        """True if a source of the same kind goes there with all its metadata, whatever model."""

    @property
    def needs_tokenizer(self) -> str | None:
        """The runtime that needs a tokenizer; None if an output is of use without."""

    @property
    def convention(self) -> str:
        """The convention of its tensors' names."""

    @property
    def codes(self) -> Codes:
        """The fate of a source's int8 codes."""

    def parse(
        self, text: str, type_name: str | None, file: RecipeFile | None, default: Recipe | None
    ) -> Request | None:
        """Tell from a name and a type what is asked for; None if the name is another target's.

        A GGUF file whose name does not say it gets the recipe that is the `default`, if there is
        one. Raises RequestError.
        """

    def check_rules(self, request: Request) -> Request:
        """Fit a request to its rules. Raises RequestError for types that it cannot hold."""

    def lay_out(self, graph: TensorGraph, request: Request, context: Context) -> Output:
        """Lay out an output. Raises CheckpointError."""

    def owns(self, name: str) -> bool:
        """Tell whether a file of this name in a directory is one that a conversion writes."""

    def owns_part(self, output: Path, name: str) -> bool:
        """Tell whether a file of this name can be one of an output's large files."""

    def read(self, path: Path) -> Mapping[str, StoredArray]:
        """Read the index of one file that was written. Raises CheckpointError."""

    def remedy(self, tensor: str, other: QuantType, effect: str) -> str:
        """Say how a tensor gets another type, and what the effect is if that is not plain."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A target's words for int8 codes that it keeps: its unit of them, and its key in JSON."""

    unit: str
    key: str
    proof: str
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """One output asked for: where, of which target, by which recipe.

    For a directory the recipe gives the type of the plain floats, `directory` that of the rest.
    `overrides` ask for types that the output can hold, `ends` for those of a GGUF file's ends. If
    the name `says_imatrix`, the errors must be weighed by one. `metadata` are raw values that a
    GGUF file is to have in the place of others, `pruned` the numbers of layers that are left out.
    With `nvfp4_factors` copies of GGUF, and directories, get factors beside what becomes NVFP4.
    Scales and codes are chosen as `search` says. With a `goal` a GGUF file gets the types that are
    best for a size.
    """

    path: Path
    target: Target
    recipe: Recipe
    overrides: tuple[Override, ...] = ()
    pure: bool = False
    directory: DirectoryType | None = None
    says_imatrix: bool = False
    ends: EndTypes = NO_END_TYPES
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    pruned: tuple[int, ...] = ()
    nvfp4_factors: bool = False
    search: Search = GGML
    goal: Goal | None = None

    @property
    def type_name(self) -> str:
        """The requested type, as the name of the output says it."""
        packed = self.directory is not None and self.directory.is_packed
        return self.directory.name if self.directory and packed else self.recipe.name

    def with_rules(self, overrides: tuple[Override, ...], *, pure: bool = False) -> Request:
        """Add the rules of a command. Raises RequestError for types that the output cannot hold."""
        return self.target.check_rules(replace(self, overrides=overrides, pure=pure))

    @property
    def form(self) -> Form:
        """The form of the output, which decides what options are of use."""
        if self.directory is None:
            return "copy" if self.recipe == COPY and not self.overrides else "gguf"
        return "packed" if self.directory is not None and self.directory.is_packed else "plain"

    def that_may_change(self) -> Request:
        """The same, but int8 codes that cannot be carried unchanged are quantized anew."""
        if self.directory is None:
            return self
        return replace(self, directory=replace(self.directory, allow_requantize=True))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: final path, first bytes, size in bytes."""

    path: Path
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """The packing of a matrix, and its parts' places: (file, byte offset) by suffix."""

    packing: Packing
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of an output and its place: index of the file, byte offset in it.

    `importance`, float32 [matrices, in], weighs the errors of its columns; `moments`, one for each
    matrix, are for error feedback. What is `packed` has several places, and `type` is that of the
    values that are packed. `expert` is the number of the matrix in the GGUF tensor that it is of.
    """

    tensor: Tensor
    type: QuantType
    file: int
    offset: int
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    packed: Packed | None = None
    gguf: str = ""  # its name there, if that is another one
    factors: tuple[float, ...] = ()  # that lie beside it, one or one for each matrix
    moments: tuple[StoredMoments | None, ...] = ()
    expert: int | None = None

    @property
    def gguf_name(self) -> str:
        return self.gguf or self.tensor.name

    @property
    def type_name(self) -> str:
        return self.type.name if self.packed is None else self.packed.packing.label

    @property
    def nbytes(self) -> int:
        if self.packed is not None:
            n_out, n_in = self.tensor.shape
            return sum(part.nbytes for part in self.packed.packing.parts(n_out, n_in))
        return self.type.nbytes(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class FeedbackMap:
    """What a file of second moments is used for in an output, by GGUF name.

    `missing` tensors have no entry, `without` are of types without feedback, and no token reached
    the matrices in `unused`.
    """

    hessians: Hessians
    missing: tuple[str, ...]
    without: tuple[str, ...]
    unused: Mapping[str, tuple[int, ...]]

    def describe(self) -> dict[str, Any]:
        """Describe the file that was used, as JSON values."""
        return {
            "file": str(self.hessians.path),
            "tokens": self.hessians.tokens,
            "entries": len(self.hessians.entries),
            "missing": list(self.missing),
            "without_feedback": list(self.without),
            "unused_experts": {name: list(found) for name, found in self.unused.items()},
        }

    def notes(self) -> Iterator[str]:
        """List what the user should know."""
        path = self.hessians.path
        if self.missing:
            missing = count(len(self.missing), "quantized tensor")
            yield f"{path} has no entry for {missing}, made without feedback: {some(self.missing)}"
        if self.without:
            of = count(len(self.without), "tensor")
            yield f"of types without error feedback: {of}, for example {self.without[0]}"
        if self.unused:
            examples = [f"{name} {list(found)}" for name, found in self.unused.items()]
            experts = count(sum(map(len, self.unused.values())), "expert")
            yield f"{path} has zeros for {experts}, made without feedback: {some(examples)}"


@dataclass(frozen=True)
class Output:
    """One output: its large files, the small files of a directory, its tensors.

    `constants` are bytes that do not depend on the weights: file, offset, content. `tokenizer` is
    the file that its tokens come from, if it is not the source's own. `sized` tells of types that
    were chosen for a size.
    """

    request: Request
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    companions: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    importance: ImportanceMap = field(default_factory=ImportanceMap)
    constants: tuple[tuple[int, int, bytes], ...] = field(default=(), repr=False)
    tokenizer: Path | None = None
    feedback: FeedbackMap | None = None
    sized: SizedRecipe | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files) + sum(map(len, self.companions.values()))

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data alone, without headers and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight that is stored; 0 for a file of metadata alone."""
        weights = sum(planned.tensor.size for planned in self.tensors)
        return 8 * self.data_bytes / weights if weights else 0.0

    def describe(self) -> dict[str, Any]:
        return {
            "path": str(self.request.path),
            "kind": self.request.target.name,
            "type": self.request.type_name,
            "bytes": self.size,
            "tensor_bytes": self.data_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "tensors": len(self.tensors),
            "types": dict(sorted(Counter(t.type_name for t in self.tensors).items())),
            "files": [{"name": file.path.name, "bytes": file.size} for file in self.files],
            "search": self.request.search.describe(),
            "importance": self.importance.describe(),
            **({} if self.feedback is None else {"feedback": self.feedback.describe()}),
            **({} if self.sized is None else {"sized": self.sized.describe()}),
            "notes": list(self.notes),
        }


def with_split_note(output: Output, split_bytes: int) -> Output:
    """Say so if tensors are larger than the limit of a file, or files than those of model hubs."""
    notes = list(output.notes)
    larger = [tensor for tensor in output.tensors if 0 < split_bytes < tensor.nbytes]
    if larger:
        notes.append(f"tensors larger than a file may be have one of their own: {len(larger)}")
    largest = max(file.size for file in output.files)
    if largest > _HUB_RECOMMENDS:
        does = "take no file above 200 GB" if largest > _HUB_LIMIT else "recommend 50 GB a file"
        notes.append(f"a file of {bytes_text(largest)}, and model hubs {does}: split it (48G)")
    return replace(output, notes=tuple(notes))


def choice_notes(chosen: Iterable[tuple[str, Decision]]) -> tuple[str, ...]:
    """List the tensors that got another type than the recipe's, and why."""
    return grouped_notes((name, _why(decision)) for name, decision in chosen)


def _why(decision: Decision) -> str | None:
    if decision.type is not None and decision.fallback:
        asked = f", which {_asker(decision.override)} asks for" if decision.override else ""
        return f"stored as {decision.type.name}, because {decision.fallback}{asked}"
    if decision.type is not None and decision.override:
        return asked_note(decision.type, decision.override)
    return None


def asked_note(weight_type: WeightType, origin: str) -> str:
    return f"stored as {weight_type.label}, as {_asker(origin)} asks"


def _asker(origin: str) -> str:
    """Call what asked for a type as users write it: an option, or a rule."""
    return option(origin) if origin in END_OPTIONS else origin


def grouped_notes(said: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Say the same of many tensors once."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, what in said:
        if what is not None:
            found[what].append(name)
    return tuple(
        f"{what}: {count(len(names), 'tensor')}, for example {names[0]}"
        for what, names in found.items()
    )


def type_of(decision: Decision) -> QuantType:
    assert decision.type is not None
    return decision.type
