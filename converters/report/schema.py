"""Error reports of a conversion, read from their JSON (docs/report.schema.json, version 1).

They come from strangers' machines as often as not, so everything is checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from weightcast.errors import FormatError
from weightcast.formats.reading import parse_json, read_small
from weightcast.text import shown

# Five outputs of a model with 58 layers of 256 experts take 200 MB.
MAX_REPORT_BYTES: Final = 1 << 28
_MAX_VALUES: Final = 1 << 25
VERSION: Final = 1
BINS: Final = 32
_KINDS: Final = ("gguf", "safetensors", "shards")
_MAX_INTEGER: Final = (1 << 63) - 1
_MAX_NUMBER: Final = math.nextafter(math.inf, 0)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Weighted:
    """Errors with squares weighed by the importance matrix."""

    error_squares: float | None
    source_squares: float | None
    relative_rms: float | None
    sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Errors of some weights; None is what is not finite, and the SQNR where there is no error."""

    weights: int
    error_squares: float | None
    source_squares: float | None
    relative_rms: float | None
    sqnr_db: float | None
    cosine: float | None
    mean_error: float | None
    largest_error: float | None
    largest_at: tuple[int, ...] | None
    share_exact: float
    share_zeroed: float
    share_clipped: float
    weighted: Weighted | None
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """An output row and its relative error."""

    expert: int | None
    row: int
    relative_rms: float | None


@dataclass(frozen=True, slots=True)
class TensorErrors:
    """One tensor of an output; `experts` is empty unless there are several."""

    name: str
    kind: str
    layer: int | None
    type: str
    shape: tuple[int, ...]
    bytes: int
    bits_per_weight: float
    metrics: Metrics
    experts: tuple[Metrics, ...]
    worst_rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class KindErrors:
    """All tensors of a kind together."""

    kind: str
    bytes: int
    bits_per_weight: float
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a recipe: tensors in whose name the pattern is found get the type."""

    pattern: str
    type: str
    origin: str


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """One output: a GGUF file or a directory."""

    path: str
    kind: str
    type: str
    base: str
    pure: bool
    rules: tuple[Rule, ...]
    imatrix: str | None
    bytes: int
    tensor_bytes: int
    bits_per_weight: float
    total: Metrics
    kinds: tuple[KindErrors, ...]
    tensors: tuple[TensorErrors, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What outputs of one source differ by from the baseline ("stored" or "bf16")."""

    generator: str
    source: str
    family: str
    parameters: int
    baseline: str
    outputs: tuple[OutputErrors, ...]


class _Unfit(Exception):
    """A value that does not fit the schema, and where it is."""


def read_report(path: Path) -> Report:
    """Read an error report. Raises FormatError if it is none, or of a newer version."""
    raw = read_small(path, MAX_REPORT_BYTES)
    value = parse_json(path, raw, limit=_MAX_VALUES, parse_constant=_no_constant)
    if not isinstance(value, dict) or value.get("format") != "weightcast-report":
        problem = 'not an error report (no "format": "weightcast-report"); convert makes them'
        raise FormatError(path, None, problem)
    version = value.get("version")
    if type(version) is int and version > VERSION:
        problem = f"a report of version {version}; this weightcast reads {VERSION}: upgrade it"
        raise FormatError(path, None, problem)
    if type(version) is not int or version != VERSION:
        raise FormatError(path, None, f"version {shown(version)} of reports does not exist")
    try:
        return parse_report(value)
    except _Unfit as problem:
        raise FormatError(path, None, str(problem)) from None


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and infinities are no JSON


def parse_report(value: Any) -> Report:
    """Check the values of a report: those that this package made need no other reading."""
    keys = ("format", "version", "generator", "source", "baseline", "outputs")
    _, _, generator, source, baseline, outputs = _object("report", value, keys)
    source_keys = ("path", "family", "parameters", "hyperparameters")
    path, family, parameters, _ = _object("source", source, source_keys)
    if baseline not in ("stored", "bf16"):
        raise _Unfit(f"baseline is {shown(baseline)}; known: stored, bf16")
    return Report(
        generator=_text("generator", generator),
        source=_text("source.path", path),
        family=_text("source.family", family),
        parameters=_integer("source.parameters", parameters),
        baseline=baseline,
        outputs=_list("outputs", outputs, _output),
    )


def _output(place: str, value: Any) -> OutputErrors:
    keys = (
        "path", "kind", "type", "recipe", "imatrix", "bytes", "tensor_bytes",
        "bits_per_weight", "total", "kinds", "tensors",
    )  # fmt: skip
    path, kind, name, recipe, imatrix, nbytes, tensor_bytes, bits, total, kinds, tensors = _object(
        place, value, keys
    )
    if kind not in _KINDS:
        raise _Unfit(f"{place}.kind is {shown(kind)}; known: {', '.join(_KINDS)}")
    base, pure, rules = _object(f"{place}.recipe", recipe, ("base", "pure", "rules"))
    if not isinstance(pure, bool):
        raise _Unfit(f"{place}.recipe.pure is {shown(pure)}, not true or false")
    return OutputErrors(
        path=_text(f"{place}.path", path),
        kind=kind,
        type=_text(f"{place}.type", name),
        base=_text(f"{place}.recipe.base", base),
        pure=pure,
        rules=_list(f"{place}.recipe.rules", rules, _rule),
        imatrix=None if imatrix is None else _text(f"{place}.imatrix", imatrix),
        bytes=_integer(f"{place}.bytes", nbytes),
        tensor_bytes=_integer(f"{place}.tensor_bytes", tensor_bytes),
        bits_per_weight=_size(f"{place}.bits_per_weight", bits),
        total=_metrics(f"{place}.total", total),
        kinds=_list(f"{place}.kinds", kinds, _kind),
        tensors=_list(f"{place}.tensors", tensors, _tensor),
    )


def _rule(place: str, value: Any) -> Rule:
    pattern, name, origin = _object(place, value, ("pattern", "type", "origin"))
    return Rule(
        _text(f"{place}.pattern", pattern),
        _text(f"{place}.type", name),
        _text(f"{place}.origin", origin),
    )


def _kind(place: str, value: Any) -> KindErrors:
    keys = ("kind", "bytes", "bits_per_weight", "metrics")
    kind, nbytes, bits, metrics = _object(place, value, keys)
    return KindErrors(
        _text(f"{place}.kind", kind),
        _integer(f"{place}.bytes", nbytes),
        _size(f"{place}.bits_per_weight", bits),
        _metrics(f"{place}.metrics", metrics),
    )


def _tensor(place: str, value: Any) -> TensorErrors:
    keys = (
        "name", "kind", "layer", "type", "shape", "bytes", "bits_per_weight", "metrics",
        "experts", "worst_rows",
    )  # fmt: skip
    name, kind, layer, type_name, shape, nbytes, bits, metrics, experts, rows = _object(
        place, value, keys
    )
    return TensorErrors(
        name=_text(f"{place}.name", name),
        kind=_text(f"{place}.kind", kind),
        layer=_integer_or_none(f"{place}.layer", layer),
        type=_text(f"{place}.type", type_name),
        shape=_list(f"{place}.shape", shape, _integer),
        bytes=_integer(f"{place}.bytes", nbytes),
        bits_per_weight=_size(f"{place}.bits_per_weight", bits),
        metrics=_metrics(f"{place}.metrics", metrics),
        experts=_list(f"{place}.experts", experts, _metrics),
        worst_rows=_list(f"{place}.worst_rows", rows, _row),
    )


def _row(place: str, value: Any) -> Row:
    expert, row, relative_rms = _object(place, value, ("expert", "row", "relative_rms"))
    return Row(
        _integer_or_none(f"{place}.expert", expert),
        _integer(f"{place}.row", row),
        _number_or_none(f"{place}.relative_rms", relative_rms),
    )


_NUMBERS: Final = (
    "error_squares", "source_squares", "relative_rms", "sqnr_db", "cosine", "mean_error",
    "largest_error",
)  # fmt: skip
_SHARES: Final = ("share_exact", "share_zeroed", "share_clipped")
_METRICS: Final = ("weights", *_NUMBERS, "largest_at", *_SHARES, "weighted", "histogram")


def _metrics(place: str, value: Any) -> Metrics:
    found = dict(zip(_METRICS, _object(place, value, _METRICS), strict=True))
    at, weighted = found["largest_at"], found["weighted"]
    histogram = _list(f"{place}.histogram", found["histogram"], _integer)
    if len(histogram) != BINS:
        raise _Unfit(f"{place}.histogram has {len(histogram)} numbers, not {BINS}")
    numbers = {name: _number_or_none(f"{place}.{name}", found[name]) for name in _NUMBERS}
    exact, zeroed, clipped = (_share(f"{place}.{name}", found[name]) for name in _SHARES)
    return Metrics(
        weights=_integer(f"{place}.weights", found["weights"]),
        **numbers,
        largest_at=None if at is None else _list(f"{place}.largest_at", at, _integer),
        share_exact=exact,
        share_zeroed=zeroed,
        share_clipped=clipped,
        weighted=None if weighted is None else _weighted(f"{place}.weighted", weighted),
        histogram=histogram,
    )


def _weighted(place: str, value: Any) -> Weighted:
    keys = ("error_squares", "source_squares", "relative_rms", "sqnr_db")
    numbers = zip(keys, _object(place, value, keys), strict=True)
    return Weighted(*(_number_or_none(f"{place}.{key}", number) for key, number in numbers))


def _object(place: str, value: Any, keys: tuple[str, ...]) -> list[Any]:
    """Take an object's values in the order of these keys; it has no others."""
    if not isinstance(value, dict):
        raise _Unfit(f"{place} is {shown(value)}, not an object")
    for key in keys:
        if key not in value:
            raise _Unfit(f"{place}: {key} is missing")
    for key in value:
        if key not in keys:
            raise _Unfit(f"{place}: unknown key {shown(key)}")
    return [value[key] for key in keys]


def _list(place: str, value: Any, item: Callable[[str, Any], _T]) -> tuple[_T, ...]:
    if not isinstance(value, list):
        raise _Unfit(f"{place} is {shown(value)}, not a list")
    return tuple(item(f"{place}[{number}]", each) for number, each in enumerate(value))


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit(f"{place} is {shown(value)}, not text")
    return value.encode(errors="replace").decode()  # halves of surrogate pairs cannot be written


def _integer(place: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
        raise _Unfit(f"{place} is {shown(value)}, not a count")
    return value


def _integer_or_none(place: str, value: Any) -> int | None:
    return None if value is None else _integer(place, value)


def _number_or_none(place: str, value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or abs(value) > _MAX_NUMBER:
        raise _Unfit(f"{place} is {shown(value)}, not a finite number or null")
    return float(value)


def _size(place: str, value: Any) -> float:
    number = _number_or_none(place, value)
    if number is None or number < 0:
        raise _Unfit(f"{place} is {shown(value)}, not a number of 0 or more")
    return number


def _share(place: str, value: Any) -> float:
    share = _size(place, value)
    if share > 1:
        raise _Unfit(f"{place} is {shown(value)}, not a share of 1")
    return share
