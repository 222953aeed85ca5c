"""Open whatever holds a model: shards, GGUF, safetensors; find its spec and tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from weightcast.converters.families.any_gguf import GGUFModel, graph_from_index
from weightcast.converters.families.grok1 import gguf as grok1_gguf
from weightcast.converters.families.grok1 import hugging_face as grok1_hf
from weightcast.converters.families.grok1.spec import GROK_1, Grok1Spec, Number, read_spec
from weightcast.converters.families.grok1.tensors import graph_from_names, graph_from_shards
from weightcast.converters.graph.tensor import TensorGraph
from weightcast.converters.sources.detect import (
    TOKENIZER_NAME,
    checkpoint_directory,
    find_beside,
    find_spec,
    kind_of,
)
from weightcast.converters.sources.packed import files_of, join_packed
from weightcast.errors import CheckpointError, FormatError, MissingTensorError
from weightcast.formats import safetensors
from weightcast.formats.gguf import read as gguf
from weightcast.formats.jax import shards
from weightcast.formats.tokenizer.sentencepiece import Vocabulary, from_gguf, read_sentencepiece
from weightcast.text import shown

_LAYER_NAME = re.compile(r"model\.layers\.([0-9]{1,6})\.")
AnyGraph = TensorGraph[Grok1Spec] | TensorGraph[GGUFModel]


def open_graph(path: str | Path, spec: str | Path | None = None) -> AnyGraph:
    """Open a checkpoint as a graph of named tensors [..., out, in]; no weights are read.

    `path` is a ckpt-0 directory or its parent, a GGUF file (a split one by its first) or a
    safetensors file or directory. `spec` is a JSON file of Grok-1's hyperparameters; without it
    they come from spec.json in or beside the shards, or else are those of the release. Tensors of
    another model's GGUF have the names and the order of the file. Raises CheckpointError.
    """
    carried = open_carried(Path(path))
    if carried is None or carried.family == grok1_gguf.ARCHITECTURE or spec is not None:
        return open_grok1(path, spec)
    return carried


def open_to_inspect(path: Path, spec: Path | None) -> tuple[AnyGraph, tuple[str, ...]]:
    """Open a checkpoint to look at; a GGUF file of a Grok that is not Grok-1 too, with a note."""
    try:
        return open_graph(path, spec), ()
    except CheckpointError as problem:
        carried = open_carried(path) if spec is None else None
        if carried is None:
            raise
        return carried, (f"not a Grok-1 that could be written as a directory: {problem}",)


def open_carried(source: Path) -> TensorGraph[GGUFModel] | None:
    """Open a GGUF file of any architecture under the names in it; None if it is no GGUF file."""
    with _readable(source):
        if kind_of(source) != "gguf":
            return None
        return graph_from_index(source, gguf.read_split(source))


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn failures of the system into CheckpointError."""
    try:
        yield
    except OSError as problem:
        raise CheckpointError(
            f"{problem.filename or source}: cannot be read: {problem.strerror}"
        ) from None


def open_grok1(path: str | Path, spec: str | Path | None = None) -> TensorGraph[Grok1Spec]:
    """Open a Grok-1 as a graph of its leaves; see open_graph. Raises CheckpointError."""
    source = Path(path)
    with _readable(source):
        kind = kind_of(source)
        if kind == "shards":
            return _open_shards(source, spec)
        if kind == "gguf":
            return _open_gguf(source, spec)
        return _open_safetensors(source, spec)


def _open_shards(source: Path, spec: str | Path | None) -> TensorGraph[Grok1Spec]:
    directory = checkpoint_directory(source)
    assert directory is not None
    spec_file = Path(spec) if spec else find_spec(directory)
    given: Mapping[str, Number] = GROK_1
    origin = "the grok-1 preset"
    if spec_file is not None:
        given, origin = read_spec(spec_file), str(spec_file)
    return graph_from_shards(directory, shards.read_shards(directory), given, origin)


def _open_gguf(source: Path, spec: str | Path | None) -> TensorGraph[Grok1Spec]:
    index = gguf.read_split(source)
    architecture = index.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != grok1_gguf.ARCHITECTURE:
        raise FormatError(
            source,
            None,
            f"architecture {shown(architecture)}: directories, --spec, --tokenizer and "
            "--no-tokenizer are for Grok-1; name a .gguf output, which keeps all metadata",
        )
    given: Mapping[str, Number] = grok1_gguf.read_hyperparameters(source, index.metadata)
    origin = f"the metadata of {source.name}"
    layers = int(given["num_layers"])
    if layers > len(index.tensors):
        raise MissingTensorError(f"{source}: {len(index.tensors)} tensors for {layers} layers")
    if spec is not None:
        given, origin = read_spec(Path(spec)), str(spec)
    named = graph_from_names(str(source), index.tensors, "gguf", layers, given, origin)
    return replace(named, files=index.paths)


def _open_safetensors(source: Path, spec: str | Path | None) -> TensorGraph[Grok1Spec]:
    directory = source if source.is_dir() else source.parent
    config = directory / "config.json"
    given: Mapping[str, Number]
    if spec is not None:
        given, origin = read_spec(Path(spec)), str(spec)
    else:
        given, origin = grok1_hf.read_hyperparameters(config), str(config)
    stored = safetensors.read_directory(source)
    arrays = join_packed(source, config, stored)
    layers = {int(match[1]) for name in arrays if (match := _LAYER_NAME.match(name))}
    if not layers or max(layers) >= len(layers):
        raise MissingTensorError(f"{source}: no tensors, or none of some of the layers")
    named = graph_from_names(str(source), arrays, "hugging_face", len(layers), given, origin)
    return replace(named, files=files_of(stored))


def open_vocabulary(path: str | Path, tokenizer: str | Path | None = None) -> Vocabulary | None:
    """Find the tokenizer: the file given, one in or beside the source, or GGUF metadata.

    None if there is none. Raises CheckpointError.
    """
    source = Path(path)
    with _readable(Path(tokenizer or source)):
        if tokenizer is not None:
            return read_sentencepiece(Path(tokenizer))
        kind = kind_of(source)
        if kind == "gguf":
            inside = from_gguf(source, gguf.read_file(source).metadata)
            if inside is not None:
                return inside
        folder = checkpoint_directory(source) if kind == "shards" else source
        assert folder is not None
        file = find_beside(folder, TOKENIZER_NAME)
        return None if file is None else read_sentencepiece(file)
