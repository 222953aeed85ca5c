"""The JSON Schema of error reports: `python -m weightcast.converters.report.json_schema`.

`docs/report.schema.json` holds what this prints; run it after a change of `schema`.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any, Final

from weightcast.converters.report.records import Field, fields_of
from weightcast.converters.report.schema import VERSION, Report

_Json = dict[str, Any]
_INDENT: Final = "  "
_TITLE: Final = f"weightcast error report, version {VERSION}"


def schema_text(record: type = Report, title: str = _TITLE) -> str:
    """Describe the JSON of a record in JSON Schema, as text."""
    return f"{_text(_whole(record, title))}\n"


def _whole(record: type, title: str) -> _Json:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **_record_schema(record),
        "$defs": {inner.__name__: _record_schema(inner) for inner in _records(record)},
    }


def _record_schema(record: type) -> _Json:
    fields = fields_of(record).values()
    return {
        "description": " ".join((inspect.getdoc(record) or "").split()),
        "type": "object",
        "required": [field.key for field in fields if not field.about.optional],
        "additionalProperties": False,
        "properties": {field.key: _field_schema(field) for field in fields},
    }


def _field_schema(field: Field) -> _Json:
    described = field.about.description
    return {**field.codec.schema, **({"description": described} if described else {})}


def _records(record: type) -> list[type]:
    """Give all records within a record, outer ones first."""
    inner = [each for field in fields_of(record).values() for each in field.records]
    return list(dict.fromkeys([*inner, *(each for one in inner for each in _records(one))]))


def _text(value: Any, indent: str = "", key: str = "") -> str:
    """Write a schema as JSON, with one line for each field of a record."""
    is_record = isinstance(value, dict) and "additionalProperties" in value
    if not is_record and key not in ("properties", "$defs"):
        return json.dumps(value)
    inner = indent + _INDENT
    lines = (f"{inner}{json.dumps(key)}: {_text(each, inner, key)}" for key, each in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
