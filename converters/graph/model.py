"""Describe models: a family as data, and the tensor graph of one checkpoint.

A tensor of a family has one canonical name, GGUF's: recipes, importance matrices, reports and the
graph all go by it. What other containers call it is a table of names for each convention. Models
of which there is no table keep the names of their source.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from weightcast.converters.graph.dimensions import Dimensions, Number
from weightcast.converters.graph.tensor import Tensor
from weightcast.errors import LayoutError
from weightcast.formats.gguf.factors import Factors
from weightcast.formats.gguf.header import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from weightcast.formats.tokenizer import Vocabulary

Storage = Literal["packed", "float", "float32"]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of tensor under its GGUF name, such as "ffn_gate_exps".

    `axes` name the dimension of each axis, row-major [..., out, in]. `storage` is what a tensor
    can become in a directory: "packed" any type, "float" plain floats only, as embeddings, and
    "float32" float32 unless a rule asks for other floats, as norms and routers. A role that is
    `tied_to` another holds the same values and is no tensor of the graph.
    """

    name: str
    axes: tuple[str, ...]
    per_layer: bool = True
    storage: Storage = "packed"
    tied_to: str | None = None

    @property
    def is_experts(self) -> bool:
        """True if the first axis counts experts."""
        return len(self.axes) == 3


@dataclass(frozen=True, slots=True)
class Place:
    """A role in one layer; `layer` is None outside the layers."""

    role: Role
    layer: int | None

    @property
    def name(self) -> str:
        """The canonical name."""
        stem = self.role.name if self.layer is None else f"blk.{self.layer}.{self.role.name}"
        return f"{stem}.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """A role as a convention stores it: a name with {layer} and, of single experts, {expert}.

    `earlier` are names that files of the past have. `read` turns what is stored into [..., out,
    in], by operations of the graph: Grok-1's shards transpose their matrices. `write` turns that
    back, for targets of the convention.
    """

    name: str
    earlier: tuple[str, ...] = ()
    read: Callable[[Tensor], Tensor] | None = None
    write: Callable[[Tensor], Tensor] | None = None

    @property
    def is_one_expert(self) -> bool:
        """True if each expert is a tensor of its own."""
        return "{expert}" in self.name


@dataclass(frozen=True, slots=True)
class Key:
    """The place of a hyperparameter in a file, and its value if absent.

    `others` are names that some tools give it, the second part after a dot lies in an object of the
    first. Where they are of something else if both are there, `others_may_differ`. A `default`
    that is a function gets what was read before. An `optional` key may be absent without one:
    shapes tell the value too.
    """

    name: str
    default: Number | Callable[[Mapping[str, Number]], Number] | None = None
    optional: bool = False
    others: tuple[str, ...] = ()
    others_may_differ: bool = False


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A hyperparameter: its keys in GGUF metadata and config.json, its defaults, its check.

    `default` is what the reference code fixes; `is_told` that no shape tells it, so that a
    specification must; `released` is the value of the release that the family is named after.
    """

    name: str
    gguf: Key | None = None
    config: Key | None = None
    is_float: bool = False
    is_told: bool = False
    default: Number | None = None
    released: Number | None = None


class Spec(Protocol):
    """The hyperparameters of one model."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""

    def describe(self) -> Mapping[str, Any]:
        """Give all hyperparameters as JSON values."""


@dataclass(frozen=True, slots=True)
class Module:
    """A matrix of a layer as runtimes see it: a projection, or one matrix of an expert."""

    layer: int
    expert: int | None
    name: str


Modules = Collection[Module]


class ModuleNames(Protocol):
    """Runtimes' names of a family's modules, for the patterns of a quantization_config."""

    @property
    def floats(self) -> tuple[str, ...]:
        """Patterns of modules that are never packed."""

    def patterns(self, wanted: Modules, every: Modules) -> list[str]:
        """Name the `wanted` of all modules in regular expressions ("re:...")."""

    def words(self, wanted: Modules, every: Modules) -> list[str]:
        """Name them in parts of names, which is all that AWQ's readers look for."""

    def ends(self, wanted: Modules, every: Modules) -> list[str]:
        """Name them in ends of names, which is how GPTQ's readers are told what is packed."""

    def fused(self, module: Module) -> Hashable:
        """Name the set of matrices that fusing runtimes hold as one, which a module belongs to."""

    def unlike_when_fused(self, types: Iterable[tuple[Module, object]]) -> list[int]:
        """List the layers whose types differ where fusing runtimes need one."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """Facts that explain mistakes which other converters make with a family.

    `multipliers` name hyperparameters that may have been folded into weights, also several of them
    at once. `head_size` names the hyperparameter with the rows of a head in the `rotary` roles.
    """

    multipliers: tuple[tuple[str, ...], ...] = ()
    rotary: tuple[str, ...] = ()
    head_size: str = ""
    rotary_rule: str = ""
    norm_rule: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A family's facts for model cards: its tag, licence, and the release it is named after.

    A model with the release's `release_sizes` is taken for the release.
    """

    tag: str
    license: str
    base_model: str
    release_sizes: tuple[str, ...]
    release: str
    license_text: str


@dataclass(frozen=True, slots=True)
class Download:
    """Where a release comes from: its repository on Hugging Face, and which files of that.

    `folder` has the shards there, `tokenizer` is the address of a file that lies elsewhere, and
    `code` the files by which a clone of the release's code is known.
    """

    repository: str
    folder: str
    tokenizer: str
    code: tuple[str, ...]

    def shards_command(self, folder: str | Path) -> str:
        """Give the command that downloads the shards into a folder."""
        what = f"{self.repository} --include '{self.folder}/*'"
        return f"hf download {what} --local-dir {shlex.quote(str(folder))}"

    def tokenizer_command(self, folder: str | Path) -> str:
        """Give the command that downloads the tokenizer into a folder."""
        return f"curl -L -O --output-dir {shlex.quote(str(folder))} {self.tokenizer}"


@dataclass(frozen=True, slots=True)
class Example:
    """A tiny synthetic checkpoint of a family, and the family's mathematics to run it with."""

    write: Callable[[Path, int], Path]
    sample_tokens: Callable[[TensorGraph, int], NDArray[np.int64]]
    logits: Callable[[TensorGraph, ArrayLike], NDArray[np.floating[Any]]]


def _no_notes(graph: TensorGraph, target: str) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models: tables of its tensors, names and hyperparameters, and a few functions.

    `names` has, by convention ("jax", "gguf", "hugging_face") and role, how it is stored.
    `dialects` lists, by convention, what others call the same tensors, conventions of their own in
    `names`. `config_mark` is the key that tells the family's config.json from others. Files for
    several ranks have their share of a tensor along the first of `split_axes` that it has.
    `config_fixed` are keys of config.json, with a dot for those of an object, and the values that
    change nothing: the family has no choice there.

    `told_sizes` names the dimensions that hyperparameters tell; `solve` makes the spec of what
    was told and what shapes say. `metadata` makes raw GGUF metadata, given the number of the file
    type; `companions` the small files of a directory, given the float type; `notes` what a user of
    a target ("gguf", "safetensors") must know. `code` is what transformers runs,
    `download` where the release comes from. `example` imports its mathematics.
    """

    name: str
    title: str = ""
    architecture: str = ""
    roles: tuple[Role, ...] = ()
    names: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    hyperparameters: tuple[Hyperparameter, ...] = ()
    dialects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_mark: str | None = None
    config_fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    split_axes: tuple[str, ...] = ()
    told_sizes: Callable[[Mapping[str, Number]], Iterable[tuple[str, int]]] = lambda told: ()
    solve: Callable[[Dimensions, Mapping[str, Number]], Spec] | None = None
    metadata: Callable[[TensorGraph, Vocabulary | None, int], dict[str, bytes]] | None = None
    companions: (
        Callable[[Spec, str, Vocabulary | None, Mapping[str, Any] | None], dict[str, bytes]] | None
    ) = None
    notes: Callable[[TensorGraph, str], Iterator[str]] = _no_notes
    modules: ModuleNames | None = None
    quirks: Quirks = Quirks()
    card: Card | None = None
    download: Download | None = None
    code: tuple[Path, ...] = ()
    example: Callable[[], Example] | None = None

    def __repr__(self) -> str:
        return f"Family({self.name!r})"

    @property
    def has_table(self) -> bool:
        """True if the tensors are known, so that another container's names can be given them."""
        return bool(self.roles)

    @cached_property
    def released(self) -> dict[str, Number]:
        """The hyperparameters of the release."""
        rows = self.hyperparameters
        return {row.name: row.released for row in rows if row.released is not None}

    def places(self, num_layers: int) -> list[Place]:
        """List all tensors of a model in order, layers by number."""
        own = [role for role in self.roles if role.tied_to is None]
        first = next((n for n, role in enumerate(own) if role.per_layer), len(own))
        layers = [Place(r, n) for n in range(num_layers) for r in own if r.per_layer]
        before = [Place(role, None) for role in own[:first]]
        after = [Place(role, None) for role in own[first:] if not role.per_layer]
        return [*before, *layers, *after]

    @cached_property
    def ties(self) -> dict[str, Place]:
        """The tied tensors by the canonical name of what they repeat."""
        tied = (role for role in self.roles if role.tied_to is not None)
        return {f"{role.tied_to}.weight": Place(role, None) for role in tied}

    def stored(self, place: Place, convention: str) -> Stored:
        """Look up how a convention stores a tensor."""
        return self.names[convention][place.role.name]

    def convention_in(self, names: Collection[str], convention: str) -> str:
        """Tell which dialect of a convention names are in: the one that most roles are found by."""

        def found(dialect: str) -> int:
            named = self.names[dialect].values()
            return sum(
                any(name.format(layer=0, expert=0) in names for name in (s.name, *s.earlier))
                for s in named
            )

        return max((convention, *self.dialects.get(convention, ())), key=found)

    def name_in(self, place: Place, convention: str, expert: int | str | None = None) -> str:
        """Give a tensor's name in a convention; "*" stands for every expert."""
        return self.stored(place, convention).name.format(layer=place.layer, expert=expert)

    def names_in(self, place: Place, convention: str) -> list[str]:
        """Give a tensor's name in a convention, and then its earlier ones."""
        stored = self.stored(place, convention)
        return [n.format(layer=place.layer) for n in (stored.name, *stored.earlier)]

    def written(self, place: Place, convention: str, tensor: Tensor) -> Tensor:
        """Turn a tensor, or one expert of it, into what a convention stores.

        Raises LayoutError if the convention stores something else, and the table does not say how
        to make it.
        """
        stored = self.stored(place, convention)
        if stored.read is not None and stored.write is None:
            raise LayoutError(f"{place.name}: {self.title} has no way to write it as {stored.name}")
        return tensor if stored.write is None else stored.write(tensor)

    def layer_pattern(self, convention: str) -> re.Pattern[str]:
        """Match the start of names of tensors in layers; the first group is the layer."""
        names = (stored.name for stored in self.names[convention].values())
        starts = {name.partition("{layer}")[0] for name in names if "{layer}" in name}
        return re.compile(rf"(?:{'|'.join(map(re.escape, sorted(starts)))})([0-9]{{1,6}})\b")

    def renamed(self, name: str) -> str:
        """Give the canonical name of a GGUF tensor that may bear an earlier one."""
        for role, stored in self.names.get("gguf", {}).items():
            for earlier in stored.earlier:
                tail = earlier.removeprefix("blk.{layer}")
                if name.endswith(tail):
                    return name.removesuffix(tail) + f".{role}.weight"
        return name


@dataclass(frozen=True)
class TensorGraph(Mapping[str, Tensor]):
    """The tensors of one model by canonical name, in order, with its family; nothing is loaded.

    Tensors are [..., out, in], experts [experts, out, in]. A tensor is also found by the name that
    another convention of its family gives it. `container` says what the model was read from
    ("shards", "gguf", "safetensors"), and `spoken` by the names of which convention messages and
    lists call its tensors; `files` are those that were opened, where more than the tensors' own
    belong to the model; `metadata` are those of a GGUF file that is read under its own names;
    `notes` what is to be said of a source, in lines; `factors` are those that a GGUF file has
    beside weights, which the values of these are multiplied by.
    """

    family: Family
    source: str
    spec: Spec
    tensors: dict[str, Tensor] = field(repr=False)
    container: str = ""
    files: tuple[Path, ...] = field(default=(), repr=False)
    metadata: Metadata | None = field(default=None, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    spoken: str = "gguf"
    factors: Factors = field(default_factory=Factors, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors.get(name)
        return self.tensors[self._elsewhere[name]] if tensor is None else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights, each counted once."""
        return sum(tensor.size for tensor in self.tensors.values())

    @cached_property
    def places(self) -> dict[str, Place]:
        """The role and layer of each tensor; empty where the family has no table."""
        if not self.family.has_table:
            return {}
        return {place.name: place for place in self.family.places(self.spec.num_layers)}

    def spoken_name(self, name: str) -> str:
        """Give the name that messages and lists call a tensor by."""
        place = self.places.get(name)
        return name if place is None else self.family.name_in(place, self.spoken)

    def other_names(self) -> dict[str, tuple[str, int | None]]:
        """Map names that a convention of the family has to canonical ones, and maybe an expert."""
        found: dict[str, tuple[str, int | None]] = {}
        for names in self.family.names.values():
            for own, place in self.places.items():
                for each in (place, self.family.ties.get(own)):
                    stored = None if each is None else names.get(each.role.name)
                    if stored is None:
                        continue
                    experts = range(self.tensors[own].shape[0]) if stored.is_one_expert else [None]
                    for pattern, expert in product((stored.name, *stored.earlier), experts):
                        name = pattern.format(layer=place.layer, expert=expert)
                        found.setdefault(name, (own, expert))
        return found

    @cached_property
    def _elsewhere(self) -> dict[str, str]:
        found = self.other_names().items()
        return {name: own for name, (own, expert) in found if expert is None}
