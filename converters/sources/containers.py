"""Read models from each container: checkpoint shards, GGUF files, safetensors directories.

A container knows how its files are found and indexed, which files beside the tensors belong to a
model, and which convention of names its tensors follow. What the names mean, a family says.

What only some containers need is imported where they are opened.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from weightcast.converters.families import FAMILIES, any_gguf, of_architecture
from weightcast.converters.families.graphs import Told, graph_from_names, graph_from_shards
from weightcast.converters.families.hyperparameters import (
    config_notes,
    config_values,
    not_the_config,
    read_config,
    read_metadata,
    read_spec,
)
from weightcast.converters.graph import Family, TensorGraph
from weightcast.converters.sources.detect import (
    TOKENIZER_NAME,
    checkpoint_directory,
    container_of,
    find_beside,
    find_spec,
)
from weightcast.converters.sources.foreign_models import (
    foreign_config,
    foreign_gguf,
    foreign_tensors,
)
from weightcast.errors import FormatError, MissingTensorError
from weightcast.formats import peft, safetensors, torch_zip
from weightcast.formats.array import StoredArray
from weightcast.formats.directory import files_ending
from weightcast.formats.foreign import require_file
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.factors import read_factors
from weightcast.formats.jax import shards
from weightcast.text import option, shown

if TYPE_CHECKING:
    from weightcast.formats.tokenizer import Vocabulary

StoredEntry = tuple[str, StoredArray]


class Container(Protocol):
    """A kind of files that models are read from."""

    @property
    def name(self) -> str:
        """ "shards", "gguf", "safetensors", "torch" or "peft"."""

    @property
    def is_never_blank(self) -> bool:
        """Tell whether long runs of zeros in such files were never written, whatever the model."""

    @property
    def target(self) -> str | None:
        """Name the target that artifacts of this kind are held against; None for sources only."""

    @property
    def written(self) -> str:
        """The convention of names that an artifact of this kind has; sources go by GGUF's."""

    def open(self, source: Path, spec: Path | None) -> TensorGraph:
        """Open a model of a family with a table. Raises CheckpointError."""

    def open_as_it_is(self, source: Path) -> TensorGraph | None:
        """Open any model under its own names; None if this kind says too little for that."""

    def vocabulary(self, source: Path) -> Vocabulary | None:
        """Read a vocabulary that lies in the files themselves."""

    def file_type(self, source: Path) -> int | None:
        """Read llama.cpp's number for what the weights mostly are; None where nothing says it."""

    def find_tokenizer(self, source: Path) -> Path | None:
        """Look for a tokenizer's file in or beside the source."""

    def find_spec(self, source: Path) -> Path | None:
        """Look for a specification beside the source, where one is read."""

    def beside(self, source: Path) -> Iterator[Path]:
        """List small files that are read with the tensors."""


class Shards:
    """A directory of numbered pickles, as JAX checkpoints of xAI are."""

    name: Final = "shards"
    is_never_blank: Final = True
    target: Final = None
    written: Final = "gguf"

    def open(self, source: Path, spec: Path | None) -> TensorGraph:
        """Open the shards of a family that has such; of which, the specification tells."""
        directory = _shard_directory(source)
        family = next(f for f in FAMILIES.values() if "jax" in f.names)
        spec_file = spec or find_spec(directory)
        told = Told(family.released, f"the {family.name} preset")
        if spec_file is not None:
            told = Told(read_spec(family, spec_file), str(spec_file))
        return graph_from_shards(family, directory, shards.read_shards(directory), told)

    def open_as_it_is(self, source: Path) -> TensorGraph | None:
        """Give none: shards have no names."""
        return None

    def vocabulary(self, source: Path) -> Vocabulary | None:
        """Give none: it is a file of its own."""
        return None

    def file_type(self, source: Path) -> int | None:
        """Give none: nothing says it."""
        return None

    def find_tokenizer(self, source: Path) -> Path | None:
        """Look in the directory of the shards and beside it."""
        return find_beside(_shard_directory(source), TOKENIZER_NAME)

    def find_spec(self, source: Path) -> Path | None:
        """Look in the directory of the shards and beside it."""
        return find_spec(_shard_directory(source))

    def beside(self, source: Path) -> Iterator[Path]:
        """List nothing."""
        return iter(())


class Gguf:
    """A GGUF file, or the parts of a split one."""

    name: Final = "gguf"
    is_never_blank: Final = False
    target: Final = "gguf"
    written: Final = "gguf"

    def open(self, source: Path, spec: Path | None) -> TensorGraph:
        """Open a file of an architecture that a family has a table of."""
        index = _index_of_model(source)
        architecture = index.metadata.get("general.architecture")
        family = of_architecture(architecture)
        if family is None:
            titles = " and ".join(f.title for f in FAMILIES.values())
            given = f"{option('spec')}, {option('tokenizer')} and {option('no_tokenizer')}"
            raise FormatError(
                source,
                None,
                f"architecture {shown(architecture)}: directories, {given} are for {titles}; name "
                "a .gguf output, which keeps all metadata",
            )
        told = Told(read_metadata(family, source, index.metadata), f"the metadata of {source.name}")
        layers = int(told.values["num_layers"])
        if layers > len(index.tensors):
            raise MissingTensorError(f"{source}: {len(index.tensors)} tensors for {layers} layers")
        if spec is not None:
            told = Told(read_spec(family, spec), str(spec))
        convention = family.convention_in(index.tensors, self.name)
        factors = read_factors(index.tensors)
        beside = factors.names | factors.input_scales
        graph = graph_from_names(
            family,
            self.name,
            str(source),
            {name: array for name, array in index.tensors.items() if name not in beside},
            convention,
            layers,
            told,
            factors=factors.of,
        )
        notes = _dialect_note(convention, self.name)
        if factors.input_scales:
            from weightcast.converters.sources.weights import left_out

            notes += left_out(len(factors.input_scales))
        return replace(graph, files=index.paths, notes=notes)

    def open_as_it_is(self, source: Path) -> TensorGraph | None:
        """Open a file of any architecture."""
        return any_gguf(source, _index_of_model(source))

    def vocabulary(self, source: Path) -> Vocabulary | None:
        """Read the tokenizer in the metadata."""
        from weightcast.formats.tokenizer import from_gguf

        return from_gguf(source, gguf.read_file(source).metadata)

    def file_type(self, source: Path) -> int | None:
        """Read general.file_type."""
        said = gguf.read_file(source).metadata.get("general.file_type")
        return said if type(said) is int else None

    def find_tokenizer(self, source: Path) -> Path | None:
        """Look beside the file."""
        return find_beside(source, TOKENIZER_NAME)

    def find_spec(self, source: Path) -> Path | None:
        """Give none: the metadata have all."""
        return None

    def beside(self, source: Path) -> Iterator[Path]:
        """List nothing."""
        return iter(())


class Safetensors:
    """A safetensors file, or a directory of them with config.json."""

    name: str = "safetensors"
    is_never_blank: Final = False
    target: Final = "safetensors"
    index_name: str = safetensors.INDEX_NAME
    written: Final = "hugging_face"

    def open(self, source: Path, spec: Path | None) -> TensorGraph:
        """Open a directory whose config.json is a family's."""
        from weightcast.converters.sources.weights import weights_of

        config = _folder(source) / "config.json"
        if spec is None:
            family = self._family(source, config)
            told = Told(read_config(family, config), str(config))
        else:
            family = next(iter(FAMILIES.values()))
            told = Told(read_spec(family, spec), str(spec))
        weights = weights_of(source, config, _by_file(self.index(source)))
        convention = family.convention_in(weights.names, self.written)
        in_layer = family.layer_pattern(convention)
        layers = {int(match[1]) for name in weights.names if (match := in_layer.match(name))}
        _check_layers(source, family, convention, weights.names, layers)
        graph = graph_from_names(
            family,
            self.name,
            str(source),
            weights.arrays,
            convention,
            len(layers),
            told,
            weights.shares,
            weights.factors,
        )
        said = config_notes(family, config) if spec is None else ()
        notes = (*weights.notes, *_dialect_note(convention, self.written), *said)
        return replace(graph, files=weights.files, notes=notes)

    def _family(self, source: Path, config: Path) -> Family:
        """Tell which family a directory is of. Raises FormatError if of none with a table."""
        if os.path.lexists(config):
            return _family_of_config(source, config)
        from weightcast.converters.sources.foreign import foreign_directory

        names = (name for name, _ in self.index(source))
        found = foreign_directory(_folder(source)) or foreign_tensors(names)
        if found is not None:
            raise FormatError(source, None, str(found))
        raise FormatError(
            config, None, "missing: a Hugging Face directory needs its config.json; download it too"
        )

    def index(self, source: Path) -> Iterable[StoredEntry]:
        """List where the tensors lie. Raises CheckpointError."""
        from weightcast.converters.sources.weights import is_of_ranks

        files = files_ending(source, ".safetensors") if source.is_dir() else []
        if any(map(is_of_ranks, files)):
            return [entry for file in files for entry in safetensors.read_index(file).items()]
        return safetensors.read_directory(source).items()

    def open_as_it_is(self, source: Path) -> TensorGraph | None:
        """Give none: what a directory holds, only its family's table tells."""
        return None

    def vocabulary(self, source: Path) -> Vocabulary | None:
        """Give none: it is a file of its own."""
        return None

    def file_type(self, source: Path) -> int | None:
        """Give none: nothing says it."""
        return None

    def find_tokenizer(self, source: Path) -> Path | None:
        """Look in the directory and beside it."""
        return find_beside(source, TOKENIZER_NAME)

    def find_spec(self, source: Path) -> Path | None:
        """Give none: config.json has all."""
        return None

    def beside(self, source: Path) -> Iterator[Path]:
        """List what says how the tensors are packed, and the index of a directory."""
        names = ["config.json", "quantize_config.json"]
        if source.is_dir():
            names.append(self.index_name)
        for name in names:
            if (_folder(source) / name).is_file():
                yield _folder(source) / name


class Torch(Safetensors):
    """A directory as before safetensors: the same, but the weights in PyTorch's .bin files."""

    name = "torch"
    index_name = torch_zip.INDEX_NAME

    def index(self, source: Path) -> Iterable[StoredEntry]:
        """List where the tensors lie. Raises CheckpointError."""
        return torch_zip.read_directory(source).items()


class Peft:
    """A directory with an adapter, which becomes an adapter in GGUF."""

    name: Final = "peft"
    is_never_blank: Final = False
    target: Final = None
    written: Final = "gguf"

    def open(self, source: Path, spec: Path | None) -> TensorGraph:
        """Refuse: it is no model. Raises FormatError."""
        from weightcast.converters.sources.adapters import not_a_model

        raise not_a_model(peft.read_adapter(source))

    def open_as_it_is(self, source: Path) -> TensorGraph | None:
        """Open it as the GGUF file that it becomes, if what lies beside it tells its model."""
        from weightcast.converters.sources.adapter_files import adapter_graph

        return adapter_graph(source, None)

    def vocabulary(self, source: Path) -> Vocabulary | None:
        """Give none: that of its model counts."""
        return None

    def file_type(self, source: Path) -> int | None:
        """Give none: nothing says it."""
        return None

    def find_tokenizer(self, source: Path) -> Path | None:
        """Give none: that of its model counts."""
        return None

    def find_spec(self, source: Path) -> Path | None:
        """Give none: it has no hyperparameters."""
        return None

    def beside(self, source: Path) -> Iterator[Path]:
        """List its configuration, and that of its model."""
        yield source / peft.CONFIG_NAME
        if (source / "config.json").is_file():
            yield source / "config.json"


_ALL: Final[tuple[Container, ...]] = (Shards(), Gguf(), Safetensors(), Torch(), Peft())
CONTAINERS: Final[Mapping[str, Container]] = {container.name: container for container in _ALL}


def container(path: Path) -> Container:
    """Find how a path is read. Raises CheckpointError."""
    return CONTAINERS[container_of(path)]


def _index_of_model(source: Path) -> gguf.GGUFIndex:
    """Index a GGUF file, or the parts of a split one. Raises FormatError if it holds no model."""
    index = gguf.read_split(source)
    found = foreign_gguf(index)
    if found is not None:
        raise FormatError(source, None, str(found))
    return index


def _by_file(entries: Iterable[StoredEntry]) -> dict[Path, dict[str, StoredArray]]:
    found: dict[Path, dict[str, StoredArray]] = {}
    for name, array in entries:
        found.setdefault(array.path, {})[name] = array
    return found


def _check_layers(
    source: Path, family: Family, convention: str, names: Collection[str], layers: Collection[int]
) -> None:
    """Raise MissingTensorError if layers are missing, or none has its usual name."""
    missing = next((n for n in range(max(layers, default=0) + 1) if n not in layers), None)
    if missing is None:
        return
    if not layers and not names:
        raise MissingTensorError(f"{source}: no tensors")
    place = next(place for place in family.places(missing + 1) if place.layer == missing)
    usual = family.name_in(place, convention, 0)
    others = sorted(name for name in names if not family.layer_pattern(convention).match(name))
    strange = f", but {shown(others[0])} is" if others and not layers else ""
    raise MissingTensorError(f"{source}: no tensor of layer {missing} is there ({usual}){strange}")


def _dialect_note(convention: str, usual: str) -> tuple[str, ...]:
    """Say whose names tensors have, if they are not the usual ones."""
    return () if convention == usual else (f"names of tensors as others have them: {convention}",)


def _shard_directory(source: Path) -> Path:
    directory = checkpoint_directory(source)
    assert directory is not None
    return directory


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _family_of_config(source: Path, path: Path) -> Family:
    """Tell from config.json which family a directory is. Raises FormatError if of none."""
    require_file(path)
    values = config_values(path)
    foreign = foreign_config(values)
    if foreign is not None:
        raise FormatError(source, None, str(foreign))
    families = [family for family in FAMILIES.values() if family.config_mark is not None]
    found = next((family for family in families if family.config_mark in values), None)
    if found is None:
        from weightcast.formats.foreign.files import answer

        stand_in = answer(path)
        if stand_in is not None:
            raise FormatError(path, None, str(stand_in))
        raise not_the_config(path, families)
    return found
