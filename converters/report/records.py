"""Records: frozen dataclasses that are read from JSON, written to it and described by JSON Schema.

All three follow from the annotations of their fields. A field is text, a truth value, a count, a
number, another record, a tuple of any of these, or a JSON object that is kept as it is (`Mapping`);
`X | None` is null as well. `Annotated` adds what a type cannot say: `OneOf`, `Bounds`, `Length` and
`About`.

Readers trust nothing: a value that does not fit raises `Unfit` with the path to it.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, is_dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from weightcast.text import shown

_MAX_INTEGER: Final = (1 << 63) - 1
_MAX_NUMBER: Final = math.nextafter(math.inf, 0)
_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OneOf:
    """The values that a field can have."""

    choices: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and largest value of a number."""

    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Length:
    """Number of items of a list."""

    items: int


# How a field is written in tables for people.
Unit = Literal["text", "layer", "shape", "bytes", "bits", "decibels", "share", "cosine", "number"]


@dataclass(frozen=True, slots=True)
class About:
    """Facts about a field that its type does not tell.

    `key` is its name in JSON if that is another, `label` and `unit` are for tables. A field with
    `better` is a metric that can be limited: less of it is better, or more. An `optional` field may
    be absent in JSON, and is if it is empty or None: files of before it was added stay as good.
    """

    description: str = ""
    _: KW_ONLY
    key: str = ""
    label: str = ""
    unit: Unit = "text"
    better: Literal["less", "more"] | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Codec:
    """Functions that read and write the JSON values of one type, and their JSON Schema."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    schema: _Json


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record, by its name in Python and its key in JSON."""

    name: str
    key: str
    codec: Codec
    about: About
    bounds: Bounds
    records: tuple[type, ...]  # in its values


class Unfit(Exception):
    """A JSON value that does not fit its field: the path to it, and why."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path = ""

    def at(self, step: str) -> Unfit:
        """Put a key or an [index] before the path."""
        self.path = step + ("." if self.path and not self.path.startswith("[") else "") + self.path
        return self


@functools.cache
def fields_of(record: type) -> Mapping[str, Field]:
    """Look up the fields of a record by their names, in order."""
    hints = get_type_hints(record, include_extras=True)
    return {name: _field(name, annotation) for name, annotation in hints.items()}


def _field(name: str, annotation: Any) -> Field:
    about = _last(annotation, About, About())
    return Field(
        name=name,
        key=about.key or name,
        codec=_codec(annotation),
        about=about,
        bounds=_last(annotation, Bounds, Bounds()),
        records=tuple(_records(annotation)),
    )


def _last(annotation: Any, wanted: type, default: Any) -> Any:
    """Find the outermost annotation of a type."""
    more = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((each for each in reversed(more) if isinstance(each, wanted)), default)


def _records(annotation: Any) -> list[type]:
    if is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return [record for part in get_args(annotation) for record in _records(part)]


def _codec(annotation: Any, bounds: Bounds = Bounds(), length: Length | None = None) -> Codec:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if one_of := _last(annotation, OneOf, None):
            return _constant(one_of.choices)
        bounds, length = _last(annotation, Bounds, bounds), _last(annotation, Length, length)
        return _codec(arguments[0], bounds, length)
    if origin in (Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not types.NoneType)
        return _optional(_codec(inner, bounds, length))
    if origin is tuple:
        return _list(_codec(arguments[0]), length)
    if is_dataclass(annotation) and isinstance(annotation, type):
        return codec_of(annotation)
    if annotation is int:
        return _count(bounds)
    if annotation is float:
        return _number(bounds)
    return _CODECS[origin or annotation]


@functools.cache
def codec_of(record: type) -> Codec:
    """Compile the codec of a record; its schema refers to a definition with the record's name."""
    fields = fields_of(record).values()
    keys = [field.key for field in fields]
    needed = [field.key for field in fields if not field.about.optional]
    readers = [(field.name, field.key, field.codec.read) for field in fields]
    writers = [(field.name, field.key, field.codec.write) for field in fields]
    optional = [field.key for field in fields if field.about.optional]

    def read(value: Any) -> Any:
        _check_keys(value, keys, needed)
        values, key = {}, ""
        try:
            for name, key, read_field in readers:
                if key in value:
                    values[name] = read_field(value[key])
        except Unfit as problem:
            raise problem.at(key) from None
        return record(**values)

    def write(value: Any) -> _Json:
        written = {key: write_field(getattr(value, name)) for name, key, write_field in writers}
        for key in optional:
            if written[key] is None or written[key] == []:
                del written[key]
        return written

    return Codec(read, write, {"$ref": f"#/$defs/{record.__name__}"})


def values_of(record: Any) -> _Json:
    """Write a record as JSON values."""
    record_type: type = type(record)
    values: _Json = codec_of(record_type).write(record)
    return values


def _check_keys(value: Any, keys: list[str], needed: list[str]) -> None:
    if not isinstance(value, dict):
        raise Unfit(f" is {shown(value)}, not an object")
    if list(value) == keys:
        return
    for key in needed:
        if key not in value:
            raise Unfit(f": {key} is missing")
    for key in value:
        if key not in keys:
            raise Unfit(f": unknown key {shown(key)}")


def _list(item: Codec, length: Length | None) -> Codec:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Unfit(f" is {shown(value)}, not a list")
        if length is not None and len(value) != length.items:
            raise Unfit(f" has {len(value)} numbers, not {length.items}")
        items: list[Any] = []
        try:
            for each in value:
                items.append(item.read(each))
        except Unfit as problem:
            raise problem.at(f"[{len(items)}]") from None
        return tuple(items)

    def write(value: tuple[Any, ...]) -> list[Any]:
        return [item.write(each) for each in value]

    schema: _Json = {"type": "array", "items": item.schema}
    if length is not None:
        schema |= {"minItems": length.items, "maxItems": length.items}
    return Codec(read, list if item.write is _as_it_is else write, schema)


def _optional(codec: Codec) -> Codec:
    def read(value: Any) -> Any:
        return None if value is None else codec.read(value)

    def write(value: Any) -> Any:
        return None if value is None else codec.write(value)

    if "type" in codec.schema:
        schema = {**codec.schema, "type": [codec.schema["type"], "null"]}
    else:
        schema = {"anyOf": [codec.schema, {"type": "null"}]}
    return Codec(read, _as_it_is if codec.write is _as_it_is else write, schema)


def _constant(choices: tuple[Any, ...]) -> Codec:
    def read(value: Any) -> Any:
        if value not in choices or type(value) is not type(choices[0]):
            raise Unfit(f" is {shown(value)}; known: {', '.join(map(str, choices))}")
        return value

    schema = {"enum": list(choices)} if len(choices) > 1 else {"const": choices[0]}
    return Codec(read, _as_it_is, schema)


def _count(bounds: Bounds) -> Codec:
    least = max(0, int(bounds.least))

    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= _MAX_INTEGER:
            raise Unfit(f" is {shown(value)}, not a count{f' of {least} or more' if least else ''}")
        return value

    return Codec(read, _as_it_is, {"type": "integer", "minimum": least})


def _number(bounds: Bounds) -> Codec:
    least, most = bounds.least, bounds.most
    too_much = f"a share of {most:g}" if least == 0 else f"a number of {most:g} or less"

    def read(value: Any) -> float:
        is_number = type(value) in (int, float) and abs(value) <= _MAX_NUMBER
        if not is_number and value is not None:
            raise Unfit(f" is {shown(value)}, not a finite number or null")
        if value is None or value < least:
            raise Unfit(f" is {shown(value)}, not a number of {least:g} or more")
        if value > most:
            raise Unfit(f" is {shown(value)}, not {too_much}")
        return float(value)

    limits = {"minimum": least, "maximum": most}
    finite = {key: int(limit) for key, limit in limits.items() if math.isfinite(limit)}
    return Codec(read, _as_it_is, {"type": "number", **finite})


def _as_it_is(value: Any) -> Any:
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit(f" is {shown(value)}, not text")
    return value


def _read_truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f" is {shown(value)}, not true or false")
    return value


def _read_object(value: Any) -> _Json:
    if not isinstance(value, dict):
        raise Unfit(f" is {shown(value)}, not an object")
    return value


_CODECS: Final = {
    str: Codec(_read_text, _as_it_is, {"type": "string"}),
    bool: Codec(_read_truth, _as_it_is, {"type": "boolean"}),
    Mapping: Codec(_read_object, dict, {"type": "object"}),
}
