"""Refuse outputs that would overwrite a source, foreign files or each other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from weightcast.converters.files import NAMES as BUNDLE_NAMES
from weightcast.converters.files import (
    bundle_paths,
    foreign_files,
    journal_path,
    partial_path,
    replaced_path,
)
from weightcast.converters.output.files import foreign_entry
from weightcast.converters.plan import Plan
from weightcast.converters.report import check_writable
from weightcast.converters.sources import Inputs, resolve_source
from weightcast.converters.sources.adapters import base_file
from weightcast.converters.targets.target import Output
from weightcast.errors import OutputError, RequestError
from weightcast.formats.jax.shards import has_shards


def check(plan: Plan) -> None:
    """Refuse outputs, and files of their bundles, that would do harm.

    Raises OutputError, RequestError.
    """
    sources = _source_files(plan.inputs)
    for output in plan.outputs:
        try:
            _check_overlap(output, plan)
            _check_sources(output, plan, sources)
            _check_existing(output)
            if plan.has_bundles:
                _check_bundle(output)
        # RuntimeError: a loop of links; ValueError: a NUL in a name.
        except (OSError, RuntimeError, ValueError) as problem:
            path = output.request.path
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise OutputError(f"{str(path)[:200]}: cannot be written: {reason}") from None


def check_report_path(path: Path, taken: Iterable[Path]) -> None:
    """Refuse a report that is, or lies in, one of the files and folders `taken`.

    Raises OutputError, also if there can be no such file, and what `report.check_writable` does.
    """
    check_place(path, taken)
    check_writable(path)


def check_place(path: Path, taken: Iterable[Path]) -> None:
    """Refuse a file that is, or lies in, one of the files and folders `taken`.

    Links, and other names of the same place, are seen through. Raises OutputError, also if there
    can be no such file.
    """
    real = Path(os.path.realpath(path))
    if not real.parent.is_dir():
        raise OutputError(f"{real.parent}: no such directory; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")
    places = {Path(os.path.realpath(place)) for place in taken}
    identities = {_identity(place) for place in places} - {None}
    for place in (real, *real.parents):
        if place in places or _identity(place) in identities:
            raise OutputError(f"{path}: is or lies in what is read or written; write elsewhere")


def taken_paths(plan: Plan) -> set[Path]:
    """List the files that a conversion reads, and the paths that outputs have or grow under."""
    return _source_files(plan.inputs).union(*(_on_the_way(o, plan) for o in plan.outputs))


def _source_files(inputs: Inputs) -> set[Path]:
    """List the files that are read, under their own names and those that links lead to."""
    files = {file.path for file in inputs.files}
    if inputs.options.base is not None:
        files.add(base_file(resolve_source(Path(inputs.options.base))))
    named = {Path(os.path.abspath(path)) for path in files}
    return named | {Path(os.path.realpath(path)) for path in files}


def _absolute(output: Output, plan: Plan) -> set[Path]:
    """List every path that an output will have: the one asked for, its parts, its bundle."""
    paths = {output.request.path, *(file.path for file in output.files)}
    if not output.request.target.is_directory and len(output.files) > 1:
        paths.remove(output.request.path)
    if plan.has_bundles:
        paths.update(bundle_paths(output.request.path, output.request.target.is_directory).all)
    return {Path(os.path.realpath(path)) for path in paths}


def _on_the_way(output: Output, plan: Plan) -> set[Path]:
    """List the paths that an output will have, and those that it grows under."""
    finals = _absolute(output, plan)
    growing = {make(path) for make in (partial_path, replaced_path) for path in finals}
    return finals | growing | {journal_path(Path(os.path.realpath(output.request.path)))}


def _identity(path: Path) -> tuple[int, int] | None:
    """Identify what a path leads to, under whatever name: device and inode."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check_overlap(output: Output, plan: Plan) -> None:
    mine, growing = _absolute(output, plan), _on_the_way(output, plan)
    for other in plan.outputs:
        if other is output:
            continue
        theirs = _absolute(other, plan)
        # Parts of other sizes have other names, but the journal is that of the name asked for.
        if growing & _on_the_way(other, plan):
            raise RequestError(f"{output.request.path}: two outputs have the same name")
        for path in theirs:
            if mine & set(path.parents):
                raise RequestError(f"{output.request.path}: another output lies in it")


def _check_sources(output: Output, plan: Plan, sources: set[Path]) -> None:
    held = {parent: source for source in sources for parent in (source, *source.parents)}
    # The same place can have two names, as with a directory that is mounted twice.
    identities = {_identity(path): source for path, source in held.items()}
    for path in _on_the_way(output, plan):
        source = held.get(path) or (identities.get(_identity(path)) if path.exists() else None)
        if source is not None:
            asked = output.request.path
            is_same = asked.exists() and _identity(source) == _identity(asked)
            named = "" if is_same else f" ({source})"
            raise OutputError(f"{asked}: is or holds the source{named}; write elsewhere")


def _check_existing(output: Output) -> None:
    path = output.request.path
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such directory; create it first")
    if has_shards(path.parent):
        raise OutputError(f"{path.parent}: is a checkpoint; write beside it, not into it")
    if not output.request.target.is_directory:
        for file in output.files:
            if file.path.exists() and not file.path.is_file():
                raise OutputError(f"{file.path}: exists and is not a file")
        return
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: exists and is not a directory")
    if os.path.ismount(path):
        raise OutputError(f"{path}: is a mount point; name a directory inside it")
    foreign = foreign_entry(path, output.request.target) if path.is_dir() else None
    edited = " or which was edited since" if foreign and foreign.name in BUNDLE_NAMES else ""
    if foreign is not None:
        raise OutputError(
            f"{path}: holds {foreign.name}, which no conversion wrote{edited}; name another "
            "directory"
        )


def _check_bundle(output: Output) -> None:
    paths = bundle_paths(output.request.path, output.request.target.is_directory)
    for path in foreign_files(paths):
        raise OutputError(
            f"{path}: no conversion wrote it, or it was edited since; rename or delete it, as the "
            "bundle has a file of that name"
        )
