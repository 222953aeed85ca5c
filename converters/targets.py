"""Where outputs may go: never over a source, foreign files or each other."""

from __future__ import annotations

import os
from pathlib import Path

from weightcast.converters.graph import TensorGraph, matrices
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.output_files import foreign_entry
from weightcast.converters.outputs import Output
from weightcast.converters.plan import Plan
from weightcast.converters.requests import RequestError
from weightcast.formats.shards import has_shards
from weightcast.quant.errors import OutputError


def check_targets(plan: Plan) -> None:
    """Refuse outputs that would do harm. Raises OutputError, RequestError."""
    sources = _source_files(plan.graph)
    for output in plan.outputs:
        try:
            _check_overlap(output, plan.outputs)
            _check_sources(output, sources)
            _check_existing(output)
        except (OSError, RuntimeError) as problem:  # RuntimeError: a loop of links
            path = output.request.path
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise OutputError(f"{str(path)[:200]}: cannot be written: {reason}") from None


def _source_files(graph: TensorGraph[Grok1Spec]) -> set[Path]:
    """The files that are read, under the names they have and those that links lead to."""
    files = {view.array.path for tensor in graph.values() for view in matrices(tensor)}
    named = {Path(os.path.abspath(path)) for path in files}
    return named | {Path(os.path.realpath(path)) for path in files}


def _absolute(output: Output) -> set[Path]:
    """Every path that an output will have: the directory or file asked for, and split parts."""
    paths = {output.request.path, *(file.path for file in output.files)}
    if output.request.kind == "gguf" and len(output.files) > 1:
        paths.remove(output.request.path)
    return {Path(os.path.realpath(path)) for path in paths}


def _check_overlap(output: Output, outputs: tuple[Output, ...]) -> None:
    mine = _absolute(output)
    for other in outputs:
        if other is output:
            continue
        for theirs in _absolute(other):
            if theirs in mine:
                raise RequestError(f"{output.request.path}: two outputs have the same name")
            if mine & set(theirs.parents):
                raise RequestError(f"{output.request.path}: another output lies in it")


def _check_sources(output: Output, sources: set[Path]) -> None:
    for path in _absolute(output):
        for source in sources:
            if path == source:
                raise OutputError(f"{output.request.path}: is the source itself; write elsewhere")
            if path in source.parents:
                raise OutputError(
                    f"{output.request.path}: holds the source ({source}); write elsewhere"
                )


def _check_existing(output: Output) -> None:
    path = output.request.path
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such directory; create it first")
    if has_shards(path.parent):
        raise OutputError(f"{path.parent}: is a checkpoint; write beside it, not into it")
    if output.request.kind == "gguf":
        for file in output.files:
            if file.path.is_dir():
                raise OutputError(f"{file.path}: is a directory, not a GGUF file")
        return
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: exists and is not a directory")
    foreign = foreign_entry(path) if path.is_dir() else None
    if foreign is not None:
        raise OutputError(
            f"{path}: holds {foreign.name}, which no conversion wrote; name another directory"
        )
