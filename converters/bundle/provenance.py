"""Write where an output comes from: an in-toto Statement, a list of tensors, checksums.

Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance. docs/bundle.md describes our build type and tensors.json.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.converters.files import BUILD_TYPE, weightcast_version
from weightcast.converters.sources import InputFile, Inputs, Row
from weightcast.converters.targets.target import Request
from weightcast.errors import RequestError
from weightcast.formats.array import StoredArray

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILDER: Final = "urn:weightcast:command-line"
TENSORS_SCHEMA: Final = "urn:weightcast:tensors:v1"
_DATE_VARIABLE: Final = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True, slots=True)
class HashedTensor:
    """A tensor in a file of an output, and the digest of its bytes."""

    name: str
    array: StoredArray
    sha256: str


def source_date() -> str | None:
    """Read the time in SOURCE_DATE_EPOCH and write it as in RFC 3339. Raises RequestError.

    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    text = os.environ.get(_DATE_VARIABLE)
    if not text:
        return None
    try:
        seconds = int(text) if text.isascii() and text.isdigit() else -1
        moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        seconds = -1
    if seconds < 0:
        raise RequestError(
            f"{_DATE_VARIABLE} is {ascii(text)[:50]}, which is no time in seconds since 1970; "
            "correct it or unset it"
        )
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def statement(
    request: Request,
    inputs: Inputs,
    dependencies: Mapping[InputFile, str],
    files: Mapping[str, str],
    byproducts: Mapping[str, str],
) -> bytes:
    """Make the Statement of one output.

    `dependencies` are the digests of what was read; `files` and `byproducts` those of the output's
    files and of what describes them, by name.
    """
    extras = {file.role: _descriptor(file.path, sha) for file, sha in dependencies.items()}
    details: dict[str, Any] = {
        "builder": {"id": BUILDER, "version": {"weightcast": weightcast_version()}},
        "byproducts": [_named(name, sha) for name, sha in byproducts.items()],
    }
    date = source_date()
    if date is not None:
        details["metadata"] = {"finishedOn": date}
    value = {
        "_type": STATEMENT_TYPE,
        "subject": [_named(name, sha) for name, sha in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _parameters(request, inputs, extras),
                "resolvedDependencies": [
                    {
                        **_descriptor(file.path, sha),
                        "annotations": {"role": file.role, "bytes": file.size},
                    }
                    for file, sha in sorted(dependencies.items(), key=_order)
                ],
            },
            "runDetails": details,
        },
    }
    return _json(value)


def _parameters(
    request: Request, inputs: Inputs, extras: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Describe what was asked for: files by name and digest, options of no use as not given."""
    options = inputs.options

    def recorded(row: Row) -> object:
        if row.is_input:
            return extras.get(row.name)
        return options.recorded(row) if row.option.is_for(request.form) else row.default

    return {
        "source": readable(inputs.source_name),
        "output": {
            "name": readable(request.path.name),
            "kind": request.target.name,
            "type": request.type_name,
        },
        "rules": [
            {"pattern": readable(rule.pattern.pattern), "type": rule.type.label}
            for rule in request.overrides
        ],
        **{
            _camel_case(row.record_name): recorded(row)
            for row in options.ordered(lambda option: option.provenance)
        },
    }


def _camel_case(name: str) -> str:
    first, *words = name.split("_")
    return first + "".join(word.capitalize() for word in words)


def _order(dependency: tuple[InputFile, str]) -> tuple[bool, str, str]:
    file, sha = dependency
    return bool(file.role != "source"), readable(file.path.name), sha


def _descriptor(path: Path, sha: str) -> dict[str, Any]:
    return _named(path.name, sha)


def _named(name: str, sha: str) -> dict[str, Any]:
    return {"name": readable(name), "digest": {"sha256": sha}}


def readable(name: str) -> str:
    """Make a file's name valid Unicode, with question marks for what is not."""
    return name.encode("utf-8", "replace").decode()


def tensor_list(tensors: Sequence[HashedTensor]) -> bytes:
    """List tensors in the order of files and bytes: name, dtype, shape, place, digest."""
    in_order = sorted(tensors, key=lambda t: (t.array.path.name, t.array.offset, t.name))
    return _json(
        {
            "schema": TENSORS_SCHEMA,
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.array.dtype,
                    "shape": list(tensor.array.shape),
                    "file": readable(tensor.array.path.name),
                    "offset": tensor.array.offset,
                    "nbytes": tensor.array.nbytes,
                    "sha256": tensor.sha256,
                }
                for tensor in in_order
            ],
        }
    )


def checksums(digests: Mapping[str, str]) -> bytes:
    """List files as sha256sum does; in names it writes line ends and backslashes with one more."""
    lines = []
    for name, sha in sorted(digests.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{'' if escaped == name else chr(92)}{sha}  {escaped}\n")
    return os.fsencode("".join(lines))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
