"""What the bytes of an output follow from: only the same may be added to an interrupted run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import xxhash

from weightcast.converters.files.version import weightcast_version
from weightcast.converters.output.journal import Settings
from weightcast.converters.sources.inputs import SOURCE, Inputs
from weightcast.converters.targets.target import Output
from weightcast.errors import CheckpointError

_READ_BYTES: Final = 1 << 20
# How the options are spelled; those of several outputs are in `type` and `files`.
_OPTIONS: Final = {
    "tensor_types": "--tensor-type",
    "no_tokenizer": "--no-tokenizer",
    "pure": "--pure",
    "allow_requantize": "--allow-requantize",
    "split_bytes": "--split",
}


def settings_of(inputs: Inputs, output: Output) -> Settings:
    """Describe what an output is made of and how, as JSON values. Raises CheckpointError."""
    given = asdict(inputs.given)
    return {
        "version": weightcast_version(),
        "type": output.request.type_name,
        "options": {name: _json_value(given[name]) for name in _OPTIONS},
        "extras": {role: _digest(file.path) for role, file in sorted(inputs.extras.items())},
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


def file_names(settings: Settings) -> set[str]:
    """The names of the output's files; none of what are no such settings."""
    files = settings.get("files")
    listed = files if isinstance(files, list) else []
    return {str(file[0]) for file in listed if isinstance(file, list) and file}


def what_changed(before: Settings, now: Settings) -> str:
    """Name what differs, the first of each kind, for a message."""
    return ", ".join(_changes(before, now)) or "its layout differs"


def _changes(before: Settings, now: Settings) -> Iterator[str]:
    if before.get("version") != now["version"]:
        yield f"weightcast was {before.get('version')} and is {now['version']}"
    if before.get("type") != now["type"]:
        yield f"the type was {before.get('type')} and is {now['type']}"
    options = _part(before, "options")
    for name, value in now["options"].items():
        if options.get(name) != value:
            yield f"{_OPTIONS[name]} was {_shown(options.get(name))} and is {_shown(value)}"
    extras = _part(before, "extras")
    for role in sorted({*extras, *now["extras"]}):
        if extras.get(role) != now["extras"].get(role):
            yield f"the {role} file {_how(role, extras, now['extras'])}"
    source = _part(before, "source")
    for name in sorted({*source, *now["source"]}):
        if source.get(name) != now["source"].get(name):
            yield f"{name} of the source {_how(name, source, now['source'])}"
            break


def _part(settings: Settings, name: str) -> Settings:
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _how(name: str, before: Settings, now: Settings) -> str:
    if name not in before:
        return "was not there"
    return "has changed since" if name in now else "is no longer there"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    if isinstance(value, bool):
        return "given" if value else "not given"
    return f"{value:,} bytes" if value and isinstance(value, int) else "not given"


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
