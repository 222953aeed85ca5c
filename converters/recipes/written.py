"""Write types as rules that are few and can be read: by role, with the layers that they are for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from weightcast.converters.graph.layers import find_layer
from weightcast.converters.recipes.sensitivity import by_bits
from weightcast.errors import visible
from weightcast.quant.types import QuantType

# Parts of one pattern, so that lines of a file stay short.
_MOST_PARTS: Final = 40
_COLUMN: Final = 64
_WIDTH: Final = 98


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """A rule of a recipe file: pattern and type, and what it is for in words."""

    pattern: str
    type_name: str
    about: str = ""


@dataclass(slots=True)
class _Role:
    """Tensors whose names differ in the number of their layer: types by layer, None outside.

    If it `is_part`, there are names like these that no rule may match.
    """

    types: dict[int | None, str] = field(default_factory=dict)
    is_part: bool = False


def rules_of(types: Mapping[str, QuantType], others: Iterable[str] = ()) -> list[WrittenRule]:
    """Write rules that give the tensors of `types`, by GGUF name, these types.

    They name whole names, and of `others` none.
    """
    roles: dict[tuple[str, str], _Role] = {}
    for name, quant_type in types.items():
        role, layer = _role(name)
        roles.setdefault(role, _Role()).types[layer] = quant_type.name
    others = list(others)
    has_odd_numbers = any(find_layer(n) and _role(n)[1] is None for n in (*types, *others))
    for role in {_role(name)[0] for name in others}.intersection(roles):
        roles[role].is_part = True
    for found in roles.values():
        found.is_part |= has_odd_numbers
    return [rule for (before, after), role in roles.items() for rule in _rules(before, after, role)]


def _role(name: str) -> tuple[tuple[str, str], int | None]:
    """Take a name apart: before the number of the layer, and after it; and that number."""
    found = find_layer(name)
    if found is None or str(found.number) != name[len(f"{found.stack}blk.") :].split(".", 1)[0]:
        return (name, ""), None
    return (f"{found.stack}blk.", f".{found.rest}"), found.number


def _rules(before: str, after: str, role: _Role) -> Iterator[WrittenRule]:
    if None in role.types:
        yield WrittenRule(f"^{_escaped(before)}$", role.types[None])
        return
    for type_name in by_bits(set(role.types.values())):
        layers = sorted(
            n for n, found in role.types.items() if found == type_name and n is not None
        )
        is_all = len(layers) == len(role.types) and not role.is_part
        for part in [layers] if is_all else _chunks(layers):
            numbers = r"\d+" if is_all else _numbers(part)
            pattern = f"^{_escaped(before)}{numbers}{_escaped(after)}$"
            yield WrittenRule(pattern, type_name, _layers_text(part))


def _tens(layers: Sequence[int]) -> list[list[int]]:
    """Put those together that differ in the last digit alone."""
    return [list(run) for _, run in groupby(layers, key=lambda n: n // 10)]


def _chunks(layers: Sequence[int]) -> Iterator[list[int]]:
    parts = _tens(layers)
    for start in range(0, len(parts), _MOST_PARTS):
        yield [n for part in parts[start : start + _MOST_PARTS] for n in part]


def _numbers(layers: Sequence[int]) -> str:
    """Write a pattern for whole numbers, those that differ in the last digit alone together."""
    parts = []
    for run in _tens(layers):
        tens, digits = run[0] // 10, [n % 10 for n in run]
        last = str(digits[0]) if len(digits) == 1 else f"[{_digits(digits)}]"
        parts.append(f"{tens or ''}{last}")
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _digits(digits: Sequence[int]) -> str:
    return "".join(
        f"{first}-{last}" if last - first > 1 else "".join(map(str, range(first, last + 1)))
        for first, last in _runs(digits)
    )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """List the runs of neighbours among sorted numbers: first and last."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]


def _layers_text(layers: Sequence[int]) -> str:
    said = ", ".join(
        f"{a} to {b}" if b - a > 1 else ", ".join(map(str, range(a, b + 1)))
        for a, b in _runs(layers)
    )
    return f"layer {said}" if len(layers) == 1 else f"layers {said}"


def _escaped(name: str) -> str:
    """Write a name as a pattern that a literal string of TOML can hold."""
    return "".join(re.escape(c) if " " <= c <= "~" and c != "'" else _code(c) for c in name)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def recipe_text(base: str, rules: Iterable[WrittenRule], about: Iterable[str]) -> str:
    """Write a recipe file in TOML, with lines of comment before it."""
    lines = [line for each in about for line in _comment(each)]
    lines += ["", f'base = "{base}"']
    for rule in rules:
        lines += ["", "[[rule]]", *_pattern_lines(rule), f'type = "{rule.type_name}"']
    return "\n".join(lines) + "\n"


def _pattern_lines(rule: WrittenRule) -> Iterator[str]:
    """Write a pattern with what it is for, beside it if there is room, or else before it."""
    pattern = f"pattern = {_quoted(rule.pattern)}"
    beside = f"{pattern:<{_COLUMN}} # {rule.about}"
    if not rule.about:
        yield pattern
    elif len(beside) <= _WIDTH:
        yield beside
    else:
        yield from _comment(rule.about)
        yield pattern


def _quoted(pattern: str) -> str:
    """Quote a pattern for TOML: literally if it can be."""
    if "'" not in pattern and pattern.isprintable() and pattern.isascii():
        return f"'{pattern}'"
    codes = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(codes.get(c, c if " " <= c <= "~" else _code(c)) for c in pattern) + '"'


def _comment(text: str) -> Iterator[str]:
    """Break a line of comment at words."""
    line = "#"
    for word in visible(text).split():
        if len(line) + len(word) + 1 > _WIDTH and line != "#":
            yield line
            line = "#  "
        line += f" {word}"
    yield line
