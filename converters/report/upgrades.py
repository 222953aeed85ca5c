"""Propose better types for the tensors that cost most of an output's error, byte for byte.

The first proposal is a few tensors that pay. One more bit for every weight would remove about three
quarters of the error; an upgrade pays if it removes more than its bytes would at that price. The
others fill budgets of bytes, in the order of squared error removed per byte. All tensors of a
proposal get one type: the one that pays most, or that removes most within the budget.

Bytes follow from the rows, and are exact for GGUF. The error of a tensor in its new type is

- measured, if another output of the same source has the tensor in that type; else
- estimated: its SQNR grows by as much as that of Gaussian weights does (`TYPICAL_SQNR`).

A proposal is written as options of `convert`. In a GGUF file, rules of llama.cpp count the tensors
of a category, and leave those with a type of their own out: the others of the category are given
the types that they have.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.recipes import directory_type, is_quantized
from weightcast.converters.recipes.decide import category
from weightcast.converters.report.schema import OutputErrors, TensorErrors
from weightcast.converters.report.text import Entry
from weightcast.converters.report.typical import TYPICAL_SQNR
from weightcast.quant.types import BF16, TYPES

# Bytes that a proposal may add, as shares of an output's tensors.
BUDGETS: Final = (0.03, 0.1)
FEW: Final = 5
# A bit more for every weight quarters the squared error.
_REMOVED_BY_A_BIT: Final = 0.75
# Types that every runtime of GGUF files reads, and no importance matrix is needed for.
GGUF_TYPES: Final = ("Q3_K", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")
_LEAST_GAIN_DB: Final = 0.01
_FLOAT_BITS: Final = 16
# Patterns stay well below the 1,000 characters that a recipe file takes.
_MOST_LAYERS: Final = 200


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A tensor in a better type: bytes that it adds, and squared error that is left."""

    tensor: TensorErrors
    type: str
    more_bytes: int
    error_squares: float
    is_measured: bool

    @property
    def removed(self) -> float:
        """The squared error that it removes."""
        return (self.tensor.metrics.error_squares or 0.0) - self.error_squares

    @property
    def removed_per_byte(self) -> float:
        return math.inf if self.more_bytes <= 0 else self.removed / self.more_bytes


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tensors of one output to raise to one type, and the output's SQNR before and after, in dB.

    `budget` is the share of bytes that they were to fit in, None for the few that pay most.
    """

    type: str
    budget: float | None
    upgrades: tuple[Upgrade, ...]
    sqnr_db: float
    new_sqnr_db: float
    options: tuple[str, ...]

    @property
    def gained_db(self) -> float:
        return self.new_sqnr_db - self.sqnr_db

    @property
    def more_bytes(self) -> int:
        return sum(upgrade.more_bytes for upgrade in self.upgrades)

    @property
    def is_measured(self) -> bool:
        return all(upgrade.is_measured for upgrade in self.upgrades)

    @property
    def command(self) -> str:
        """The options, quoted for a shell, a line each."""
        return " \\\n".join(f"--tensor-type {shlex.quote(option)}" for option in self.options)


_Key = tuple[str, int | None, tuple[int, ...], str]


def propose(entry: Entry, entries: Sequence[Entry]) -> list[Proposal]:
    """Propose upgrades for an output among others, a few for more and more bytes; maybe none."""
    output = entry.output
    if output.container not in _BETTER_TYPES or not _is_finite(output):
        return []
    measured = _measured(entry, entries)
    by_type = _upgrades(output, measured)
    chosen: dict[float | None, list[Upgrade]] = {None: _few(by_type, output)}
    for budget in BUDGETS:
        upgrades = _within(by_type, round(budget * output.tensor_bytes))
        if upgrades not in chosen.values():
            chosen[budget] = upgrades
    proposals = (_proposal(output, budget, each) for budget, each in chosen.items() if each)
    return [proposal for proposal in proposals if proposal.gained_db >= _LEAST_GAIN_DB]


def _is_finite(output: OutputErrors) -> bool:
    total = output.total
    has_error = (total.error_squares or 0) > 0 and (total.source_squares or 0) > 0
    return has_error and all(each.metrics.error_squares is not None for each in output.tensors)


def _measured(entry: Entry, entries: Sequence[Entry]) -> dict[_Key, float]:
    """Collect the errors of tensors in other types, from outputs of the same source."""
    found: dict[_Key, float] = {}
    for other in entries:
        if other is entry or not is_comparable(other, entry):
            continue
        for tensor in other.output.tensors:
            if tensor.metrics.error_squares is not None:
                key = (tensor.role, tensor.layer, tensor.shape, tensor.type)
                found.setdefault(key, tensor.metrics.error_squares)
    return found


def is_comparable(one: Entry, other: Entry) -> bool:
    """Tell whether errors of two outputs are differences from the same values."""
    return (one.report.baseline, one.report.source) == (other.report.baseline, other.report.source)


def _upgrades(output: OutputErrors, measured: Mapping[_Key, float]) -> list[list[Upgrade]]:
    """List the upgrades to each better type, those that remove most error per byte first."""
    by_type: dict[str, list[Upgrade]] = defaultdict(list)
    for tensor in output.tensors:
        for type_name, nbytes in _BETTER_TYPES[output.container](output, tensor):
            error, is_measured = _error_in(tensor, type_name, measured)
            upgrade = Upgrade(tensor, type_name, nbytes - tensor.bytes, error, is_measured)
            if upgrade.removed > 0:
                by_type[type_name].append(upgrade)
    return [
        sorted(upgrades, key=lambda upgrade: -upgrade.removed_per_byte)
        for upgrades in by_type.values()
    ]


def _gguf_types(output: OutputErrors, tensor: TensorErrors) -> Iterator[tuple[str, int]]:
    """Give the types of GGUF that a matrix can have, with its bytes in them."""
    n_in = tensor.shape[-1] if tensor.shape else 0
    if len(tensor.shape) < 2 or not n_in or tensor.type not in TYPES:
        return
    for name in GGUF_TYPES:
        if TYPES[name].fits(n_in):
            yield name, tensor.metrics.weights // n_in * TYPES[name].row_bytes(n_in)


def _directory_types(output: OutputErrors, tensor: TensorErrors) -> Iterator[tuple[str, int]]:
    """Give the one type that any packed matrix of a directory can have instead."""
    directory = directory_type(output.type)
    if directory is not None and directory.is_packed and tensor.bits_per_weight < _FLOAT_BITS:
        yield BF16.name, BF16.block_bytes * tensor.metrics.weights


# By the container of an output; others cannot be made by `convert`.
_BETTER_TYPES: Final = {"gguf": _gguf_types, "safetensors": _directory_types}


def _error_in(
    tensor: TensorErrors, type_name: str, measured: Mapping[_Key, float]
) -> tuple[float, bool]:
    """Give the squared error of a tensor in another type, and whether it was measured."""
    key = (tensor.role, tensor.layer, tensor.shape, type_name)
    if key in measured:
        return measured[key], True
    error, signal = tensor.metrics.error_squares or 0.0, tensor.metrics.source_squares or 0.0
    if tensor.type in TYPICAL_SQNR:
        step = TYPICAL_SQNR[type_name] - TYPICAL_SQNR[tensor.type]
        return error * 10 ** (-step / 10), False
    return signal * 10 ** (-TYPICAL_SQNR[type_name] / 10), False


def _few(by_type: Sequence[Sequence[Upgrade]], output: OutputErrors) -> list[Upgrade]:
    """Choose the few upgrades to one type that pay most."""
    total = output.total
    price = _REMOVED_BY_A_BIT * (total.error_squares or 0.0) / (max(total.weights, 1) / 8)

    def gain(upgrade: Upgrade) -> float:
        return upgrade.removed - price * upgrade.more_bytes

    paying = ([each for each in upgrades if gain(each) > 0] for upgrades in by_type)
    few = (sorted(upgrades, key=gain, reverse=True)[:FEW] for upgrades in paying)
    return max(few, key=lambda upgrades: sum(map(gain, upgrades)), default=[])


def _within(by_type: Sequence[Sequence[Upgrade]], budget: int) -> list[Upgrade]:
    """Choose the type whose upgrades remove most error within a budget of bytes."""
    chosen = [_filled(upgrades, budget) for upgrades in by_type]
    return max(chosen, key=_removed, default=[])


def _filled(upgrades: Sequence[Upgrade], budget: int) -> list[Upgrade]:
    taken = []
    for upgrade in upgrades:
        if upgrade.more_bytes <= budget:
            taken.append(upgrade)
            budget -= max(upgrade.more_bytes, 0)
    return taken


def _removed(upgrades: Iterable[Upgrade]) -> float:
    return sum(upgrade.removed for upgrade in upgrades)


def _proposal(output: OutputErrors, budget: float | None, upgrades: Sequence[Upgrade]) -> Proposal:
    error, signal = output.total.error_squares or 0.0, output.total.source_squares or 0.0
    left = max(error - _removed(upgrades), 0.0)
    before = 10 * math.log10(signal / error)
    after = 10 * math.log10(signal / left) if left else math.inf
    options = tuple(_options(output, upgrades))
    return Proposal(upgrades[0].type, budget, tuple(upgrades), before, after, options)


def _options(output: OutputErrors, upgrades: Sequence[Upgrade]) -> Iterator[str]:
    """Write upgrades as REGEX=TYPE; of rules that match, `convert` follows the first."""
    write = str if output.container == "gguf" else str.lower
    names = [tensor.name for tensor in output.tensors]
    yield from _rules(((each.tensor.name, write(each.type)) for each in upgrades), names)
    if output.container == "gguf":
        raised = {upgrade.tensor.name for upgrade in upgrades}
        yield from _rules(((kept.name, kept.type) for kept in _to_be_kept(output, raised)), names)


def _to_be_kept(output: OutputErrors, raised: set[str]) -> Iterator[TensorErrors]:
    """Find the other tensors of categories in which rules give more than one type."""
    groups: dict[str, list[TensorErrors]] = defaultdict(list)
    for tensor in output.tensors:
        if tensor.type in TYPES and is_quantized(tensor.name, tensor.shape):
            groups[category(tensor.name)].append(tensor)
    for tensors in groups.values():
        is_changed = any(tensor.name in raised for tensor in tensors)
        if is_changed and len({tensor.type for tensor in tensors}) > 1:
            yield from (tensor for tensor in tensors if tensor.name not in raised)


def _rules(types: Iterable[tuple[str, str]], names: Iterable[str]) -> Iterator[str]:
    """Write a rule for each type of tensors whose names, of all `names`, differ in the layer."""
    everywhere: dict[str, set[int | None]] = defaultdict(set)
    for pattern, layer in map(_pattern, names):
        everywhere[pattern].add(layer)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, type_name in types:
        pattern, layer = _pattern(name)
        groups[pattern, type_name] += [] if layer is None else [layer]
    for (pattern, type_name), layers in groups.items():
        is_all = len(layers) > 1 and everywhere[pattern] == set(layers)
        for numbers in ["[0-9]+"] if is_all else _numbers(layers):
            yield f"^{pattern.replace(_LAYER, numbers)}$={type_name}"


_LAYER: Final = "\0"


def _pattern(name: str) -> tuple[str, int | None]:
    """Write a tensor's name as a pattern in which the layer's number is left open."""
    match = re.match(r"(?P<before>(?:|.*?\.)(?:blk|layers|h)\.)(?P<number>[0-9]{1,9})\.", name)
    if match is None:
        return _escaped(name), None
    after = name[match.end("number") :]
    return f"{_escaped(match['before'])}{_LAYER}{_escaped(after)}", int(match["number"])


def _escaped(name: str) -> str:
    return re.escape(name).replace(r"\.experts\.\*\.", r"\.experts\.[0-9]+\.")


def _numbers(layers: Sequence[int]) -> Iterator[str]:
    if not layers:
        yield ""
    for start in range(0, len(layers), _MOST_LAYERS):
        part = sorted(layers)[start : start + _MOST_LAYERS]
        yield str(part[0]) if len(part) == 1 else f"({'|'.join(map(str, part))})"
