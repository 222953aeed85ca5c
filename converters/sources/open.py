"""Open whatever holds a model: shards, GGUF, safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from weightcast.converters.families import of_architecture
from weightcast.converters.graph import TensorGraph
from weightcast.converters.sources.containers import Peft, container
from weightcast.converters.sources.detect import resolve_source, unreadable
from weightcast.errors import CheckpointError, RequestError
from weightcast.text import option

if TYPE_CHECKING:
    from weightcast.formats.tokenizer import Vocabulary


def open_graph(path: str | Path, spec: str | Path | None = None) -> TensorGraph:
    """Open a checkpoint as a graph of named tensors [..., out, in]; no weights are read.

    `path` is a ckpt-0 directory or what holds one, a GGUF file (a split one by its first
    part, or by the name that all go by), a safetensors file or directory, or a repository of these
    in a model hub's cache. `spec` is a JSON file of Grok-1's hyperparameters; without it they come
    from spec.json in or beside the shards, or else are those of the release. Tensors are named as
    in GGUF; those of another model's GGUF have the names and the order of the file. Raises
    CheckpointError.
    """
    path = _found(path)
    graph = open_as_it_is(path)
    if graph is not None and graph.container == Peft.name:
        return graph
    if graph is None or spec is not None or of_architecture(graph.family.architecture) is not None:
        return open_family(path, spec)
    return graph


def open_to_inspect(path: Path, spec: Path | None) -> tuple[TensorGraph, tuple[str, ...]]:
    """Open a checkpoint to look at; where a family's table does not fit, a note says why."""
    path = _found(path)
    try:
        return open_graph(path, spec), ()
    except CheckpointError as problem:
        graph = open_as_it_is(path) if spec is None else None
        if graph is None:
            raise
        family = of_architecture(graph.family.architecture)
        title = graph.family.name if family is None else family.title
        return graph, (f"not a {title} that could be written as a directory: {problem}",)


def open_as_it_is(source: Path, base: str | Path | None = None) -> TensorGraph | None:
    """Open a GGUF file of any architecture under the names in it; None if it is no GGUF file.

    An adapter is opened as the GGUF file that it becomes; `base` is the model that it belongs to.
    """
    with _readable(source):
        found = container(source)
        if base is None:
            return found.open_as_it_is(source)
        if not isinstance(found, Peft):
            raise RequestError(f"{option('base')}: of use for an adapter as source only")
        from weightcast.converters.sources.adapter_files import adapter_graph

        return adapter_graph(source, Path(base))


def open_family(path: str | Path, spec: str | Path | None = None) -> TensorGraph:
    """Open a model of a family with a table, such as Grok-1; see open_graph.

    Raises CheckpointError.
    """
    source = _found(path)
    with _readable(source):
        return container(source).open(source, None if spec is None else Path(spec))


def open_vocabulary(path: str | Path, tokenizer: str | Path | None = None) -> Vocabulary | None:
    """Find the tokenizer: the file given, GGUF metadata, or one in or beside the source.

    None if there is none. Raises CheckpointError.
    """
    from weightcast.formats.tokenizer import read_sentencepiece

    source = _found(path)
    with _readable(Path(tokenizer or source)):
        if tokenizer is not None:
            return read_sentencepiece(Path(tokenizer))
        found = container(source)
        inside = found.vocabulary(source)
        if inside is not None:
            return inside
        file = found.find_tokenizer(source)
        return None if file is None else read_sentencepiece(file)


def _found(path: str | Path) -> Path:
    return resolve_source(Path(path))


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn failures of the system into CheckpointError."""
    try:
        yield
    except OSError as problem:
        raise unreadable(source, problem) from None
