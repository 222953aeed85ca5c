"""Read a family's hyperparameters from a specification, GGUF metadata or config.json.

All three follow from the family's table, which has a row for each hyperparameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from weightcast.converters.graph import Family, Hyperparameter, Key, Number
from weightcast.errors import FormatError
from weightcast.formats.array import rounded_float32
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.reading import read_json_object
from weightcast.text import closest, shown

_MAX_KEYS: Final = 1000


def read_spec(family: Family, path: Path) -> dict[str, Number]:
    """Read a specification file: JSON with hyperparameters by name. Raises FormatError.

    Keys that are not hyperparameters are ignored, unless they look like a misspelt one.
    """
    rows = {row.name: row for row in family.hyperparameters}
    raw = read_json_object(path, "spec")
    if len(raw) > _MAX_KEYS:  # each unknown one is compared with all that there are
        raise FormatError(path, None, f"{len(raw):,} keys; a specification has some {len(rows)}")
    unused = rows.keys() - raw.keys()
    given: dict[str, Number] = {}
    for key, value in raw.items():
        if key in rows:
            given[key] = checked(path, rows[key], key, value)
            continue
        close = closest(key[:64], unused, alike=0.85)
        if close is not None:
            raise FormatError(path, None, f"unknown key {shown(key)}; did you mean {close!r}?")
    missing = [row.name for row in rows.values() if row.is_told and row.name not in given]
    if missing:
        if not given:
            refuse_foreign(path, "spec")
        raise FormatError(path, None, f"missing keys: {', '.join(missing)}")
    return given


def read_metadata(family: Family, path: Path, metadata: Mapping[str, Any]) -> dict[str, Number]:
    """Take the hyperparameters out of GGUF metadata. Raises FormatError for absent keys."""
    given = _read(family, path, metadata, lambda row: row.gguf)
    rows = {row.name: row for row in family.hyperparameters}
    return {name: _unrounded(rows[name], value) for name, value in given.items()}


def config_values(path: Path) -> dict[str, Any]:
    """Read config.json as it is. Raises FormatError if it is absent or no JSON object."""
    if not path.is_file():
        raise FormatError(path, None, "missing: a Hugging Face directory needs its config.json")
    return read_json_object(path)


def read_config(family: Family, path: Path) -> dict[str, Number]:
    """Take the hyperparameters out of config.json. Raises FormatError for absent keys."""
    values = config_values(path)
    if family.config_mark not in values:
        raise not_the_config(path, [family])
    return _read(family, path, values, lambda row: row.config)


def config_notes(family: Family, path: Path) -> Iterator[str]:
    """Say what a config.json has that the family's models do not have, and no output says."""
    values = config_values(path)
    for name, usual in family.config_fixed.items():
        _, value = _find(path, values, Key(name))
        if value is not None and value not in usual:
            yield f"{path.name} says {name} {shown(value)}, which {family.title} does not have"


def not_the_config(path: Path, families: Sequence[Family]) -> FormatError:
    """Make the error for a config.json of none of these families."""
    known = " or ".join(f"a {family.title} (no {family.config_mark})" for family in families)
    return FormatError(path, None, f"not the config of {known}")


def checked(path: Path, row: Hyperparameter, key: str, value: object) -> Number:
    """Return a hyperparameter that a file gives under `key`. Raises FormatError.

    Sizes are whole numbers that fit 31 bits, as runtimes keep them; the others fit float32.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(path, None, f"{key} is missing or not a number: {shown(value)}")
    if row.is_float:
        if not 1e-30 < value < 1e30:
            raise FormatError(path, None, f"{key} must be a positive number, not {shown(value)}")
    elif isinstance(value, float) or not 0 < value < 2**31:
        raise FormatError(path, None, f"{key} must be a positive whole number, not {shown(value)}")
    return value


def _read(
    family: Family,
    path: Path,
    values: Mapping[str, Any],
    key_of: Callable[[Hyperparameter], Key | None],
) -> dict[str, Number]:
    keys = [(row, key) for row in family.hyperparameters if (key := key_of(row)) is not None]
    given: dict[str, Number] = {}
    for row, key in sorted(keys, key=lambda pair: pair[1].optional):
        name, value = _find(path, values, key)
        if name is None:
            value = key.default(given) if callable(key.default) else key.default
            if key.optional:
                if value is not None:
                    given[row.name] = value
                continue
        given[row.name] = checked(path, row, name or key.name, value)
    return given


def _find(path: Path, values: Mapping[str, Any], key: Key) -> tuple[str | None, Any]:
    """Look a hyperparameter up under its names: the one that is there, and the value.

    Raises FormatError if names that mean the same have other values.
    """
    there = list(_values(values, key))
    found = [(name, value) for name, value in there if value is not None]
    for name, value in found[1:]:
        if not key.others_may_differ and not _is_same(value, found[0][1]):
            said = f"{found[0][0]} is {shown(found[0][1])}, but {name} is {shown(value)}"
            raise FormatError(path, None, f"{said}, which mean the same; remove the wrong one")
    return (*found, *there, (None, None))[0]


def _is_same(value: Any, other: Any) -> bool:
    """Compare values; some tools round numbers to float32."""
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-6)
    return bool(value == other)


def _values(values: Mapping[str, Any], key: Key) -> Iterator[tuple[str, Any]]:
    for name in (key.name, *key.others):
        first, _, second = name.partition(".")
        if name in values:
            yield name, values[name]
        inner = values.get(first)
        if second and isinstance(inner, Mapping) and second in inner:
            yield name, inner[second]


def _unrounded(row: Hyperparameter, value: Number) -> Number:
    """Undo the rounding to float32 where the release's own constant was meant."""
    known = row.default if row.released is None else row.released
    if known is None or not isinstance(value, float):
        return value
    return float(known) if rounded_float32(known) == rounded_float32(value) else value
