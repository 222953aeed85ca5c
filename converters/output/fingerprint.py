"""Fingerprint of a conversion: everything its output bytes depend on.

A run may go on with the work of an interrupted one only if their fingerprints are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import xxhash

from weightcast.converters.files import weightcast_version
from weightcast.converters.output.journal import Fingerprint
from weightcast.converters.sources import (
    SOURCE,
    ConvertOptions,
    Inputs,
    Kind,
    Row,
    resolve_source,
)
from weightcast.converters.sources.adapters import base_file
from weightcast.converters.targets.target import Output
from weightcast.errors import CheckpointError
from weightcast.text import option

_READ_BYTES: Final = 1 << 20
_NO_OPTIONS: Final = ConvertOptions()


def fingerprint(inputs: Inputs, output: Output) -> Fingerprint:
    """Describe what an output is made of and how, as JSON values. Raises CheckpointError."""
    options = inputs.options
    return {
        "version": weightcast_version(),
        "type": output.request.type_name,
        "options": {row.record_name: _json_value(options.recorded(row)) for row in _rows(options)},
        "extras": {role: _digest(file.path) for role, file in sorted(inputs.extras.items())}
        | _base(options),
        "source": {
            file.path.name: [file.size, file.mtime_ns]
            for file in inputs.files
            if file.role == SOURCE
        },
        "files": [
            [file.path.name, file.size, xxhash.xxh3_128_hexdigest(file.header)]
            for file in output.files
        ],
    }


def _base(options: ConvertOptions) -> dict[str, str]:
    """Tell the state of the model that an adapter belongs to, of which no weights are read."""
    if options.base is None:
        return {}
    file = base_file(resolve_source(Path(options.base)))
    if not file.is_file():  # shards, which all say the same
        return {}
    if file.suffix == ".json":
        return {"base": _digest(file)}
    status = file.stat()
    return {"base": f"{status.st_size} {status.st_mtime_ns}"}


def _rows(options: ConvertOptions) -> list[Row]:
    """List the options that bytes depend on; types are noted for themselves, files by digests."""
    return options.ordered(lambda option: option.fingerprint)


def file_names(noted: Fingerprint) -> set[str]:
    """List the names of the output's files; none if `noted` is no fingerprint."""
    files = noted.get("files")
    listed = files if isinstance(files, list) else []
    return {str(file[0]) for file in listed if isinstance(file, list) and file}


def changes(before: Fingerprint, now: Fingerprint, options: ConvertOptions = _NO_OPTIONS) -> str:
    """Name what differs, the first of each kind, for a message; `options` are those of now."""
    return ", ".join(_changes(before, now, options)) or "its layout differs"


def _changes(before: Fingerprint, now: Fingerprint, spelled: ConvertOptions) -> Iterator[str]:
    rows = {row.record_name: row for row in _rows(spelled)}
    if before.get("version") != now["version"]:
        yield f"weightcast was {before.get('version')} and is {now['version']}"
    if before.get("type") != now["type"]:
        yield f"the type was {before.get('type')} and is {now['type']}"
    options = _part(before, "options")
    for name, value in now["options"].items():
        if options.get(name) != value:
            row = rows[name]
            was, is_now = (_shown(each, row.option.kind) for each in (options.get(name), value))
            yield f"{option(row.name)} was {was} and is {is_now}"
    extras = _part(before, "extras")
    for role in sorted({*extras, *now["extras"]}):
        if extras.get(role) != now["extras"].get(role):
            yield f"the {role} file {_how(role, extras, now['extras'])}"
    source = _part(before, "source")
    for name in sorted({*source, *now["source"]}):
        if source.get(name) != now["source"].get(name):
            yield f"{name} of the source {_how(name, source, now['source'])}"
            break


def _part(noted: Fingerprint, name: str) -> dict[str, Any]:
    part = noted.get(name)
    return part if isinstance(part, dict) else {}


def _how(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    if name not in before:
        return "was not there"
    return "has changed since" if name in now else "is no longer there"


def _shown(value: object, kind: Kind) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    if isinstance(value, bool):
        return "given" if value else "not given"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    if not value or not isinstance(value, int):
        return "not given"
    return f"{value:,} bytes" if kind == "size" else str(value)


def _json_value(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _digest(path: Path) -> str:
    state = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                state.update(chunk)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    return state.hexdigest()
