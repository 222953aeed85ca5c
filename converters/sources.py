"""Open whatever holds a model: shards, GGUF, safetensors; find its spec and tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from weightcast.converters import grok1_gguf, grok1_hf
from weightcast.converters.gguf_model import GGUFModel, graph_from_index
from weightcast.converters.graph import TensorGraph
from weightcast.converters.grok1 import graph_from_names, graph_from_shards
from weightcast.converters.grok1_spec import GROK_1, Grok1Spec, Number, read_spec
from weightcast.converters.packed_sources import files_of, join_packed
from weightcast.formats import gguf, safetensors, shards
from weightcast.formats.small_files import shown
from weightcast.formats.tokenizer import Vocabulary, from_gguf, read_sentencepiece
from weightcast.quant.errors import CheckpointError, FormatError, MissingTensorError

TOKENIZER_NAME: Final = "tokenizer.model"
SPEC_NAME: Final = "spec.json"
_LAYER_NAME = re.compile(r"model\.layers\.([0-9]{1,6})\.")


def kind_of(path: Path) -> str:
    """Say what a path is: "shards", "gguf" or "safetensors". Raises CheckpointError."""
    if path.is_file():
        if path.suffix == ".gguf":
            return "gguf"
        if path.suffix == ".safetensors":
            return "safetensors"
        with path.open("rb") as file:
            if file.read(4) == gguf.MAGIC:
                return "gguf"
        raise CheckpointError(
            f"{path}: not a checkpoint; give a ckpt-0 directory, a .gguf or .safetensors file"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or directory")
    if checkpoint_directory(path) is not None:
        return "shards"
    if any(path.glob("*.safetensors")) or (path / safetensors.INDEX_NAME).is_file():
        return "safetensors"
    first = sorted(path.glob("*.gguf"))
    hint = f"; did you mean {first[0]}?" if first else ""
    raise CheckpointError(f"{path}: holds neither shards (tensor00000_000) nor safetensors{hint}")


def checkpoint_directory(path: Path) -> Path | None:
    """The directory with the shards: the path itself or the one ckpt-N directory in it."""
    if shards.has_shards(path):
        return path
    inside = [d for d in sorted(path.glob("ckpt-*")) if d.is_dir() and shards.has_shards(d)]
    if len(inside) > 1:
        names = ", ".join(d.name for d in inside)
        raise CheckpointError(f"{path}: holds several checkpoints ({names}); name one of them")
    return inside[0] if inside else None


def _find_beside(path: Path, name: str) -> Path | None:
    """Look for a file in a directory and beside it."""
    path = Path(os.path.abspath(path))  # "." has neighbours too; links are not followed
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    return next((f / name for f in folders if (f / name).is_file()), None)


def find_spec(directory: Path) -> Path | None:
    """Look for hyperparameters in the directory of the shards and beside it."""
    return _find_beside(directory, SPEC_NAME)


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
        file = _find_beside(folder, TOKENIZER_NAME)
        return None if file is None else read_sentencepiece(file)
