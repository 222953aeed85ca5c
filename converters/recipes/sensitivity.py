"""Sensitivities: what each tensor of a model costs in each type, as it was measured over a text.

A file is JSON. For each tensor, by its GGUF name, it has the effect of quantizing that tensor
alone: `local`, on the output of the tensor's layer, and maybe `probe`, on the model's predictions.

    {
     "format": "weightcast.sensitivity",
     "version": 1,
     "source": {"name": ..., "parameters": ..., "tensors": ...},
     "measured": {"text": ..., "tokens": ..., "context": ..., "search": ..., "importance": ...},
     "tensors": {
      "blk.0.attn_q.weight": {"shape": [...], "local": {"Q4_K": ...}, "probe": {"Q4_K": ...}}
     }
    }
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from weightcast.converters.files import write_small
from weightcast.errors import FormatError, LayoutError
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.formats.reading import read_json_object
from weightcast.quant.names import hint
from weightcast.quant.types import TYPES
from weightcast.text import shown

FORMAT: Final = "weightcast.sensitivity"
VERSION: Final = 1
MAX_WHOLE: Final = 1 << 62
MAX_AXES: Final = 8
MAX_TEXT: Final = 4096
MAX_COST: Final = 1e12  # far beyond any that means something
_REMEDY: Final = "measure it again (weightcast sensitivity)"

# GGUF names and shapes [..., out, in].
Named = Iterable[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class MeasuredSource:
    """The model that was measured: its name, its number of parameters, its `tensors`.

    Those are `fingerprint_of` the names and shapes of its matrices.
    """

    name: str
    parameters: int
    tensors: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """How it was measured: over what text, how many tokens, in sequences of how many.

    `search` is the rule by which tensors were quantized, with an importance matrix if `importance`.
    """

    text: str
    tokens: int
    context: int
    search: str = "ggml"
    importance: bool = False


@dataclass(frozen=True, slots=True)
class TensorSensitivity:
    """What a tensor, of `shape` [..., out, in], costs in each type that was measured.

    `local` is the mean over tokens of |h' - h|^2 / |h|^2, where h is the output of the tensor's
    layer, h' the same with this tensor alone in that type, and the layer's input is the model's
    own. `probe`, for some of these types, is the mean divergence (KL, in nats a token) of the
    model's predictions with this tensor alone in that type.
    """

    name: str
    shape: tuple[int, ...]
    local: Mapping[str, float]
    probe: Mapping[str, float] = field(default_factory=dict)

    def divergence(self, type_name: str) -> float:
        """Predict the divergence of a type: as probed, or a probe scaled by local effects.

        Of several probes that counts whose local effect is closest. Without a probe there is
        nothing to scale (ValueError).
        """
        if type_name in self.probe:
            return self.probe[type_name]
        effect = self.local[type_name]
        if effect == 0.0:
            return 0.0
        away = {name: abs(math.log(self.local[name]) - math.log(effect)) for name in self.probe}
        probed = min(away, key=lambda name: (away[name], name))
        return min(self.probe[probed] / self.local[probed] * effect, MAX_COST)


@dataclass(frozen=True)
class Sensitivities:
    """What the tensors of a model cost, by GGUF name, and how that was measured.

    Types that were not measured for a tensor are no choice for it: nothing is interpolated.
    """

    source: MeasuredSource
    measured: Measurement
    tensors: Mapping[str, TensorSensitivity]
    path: Path | None = None

    @cached_property
    def has_probes(self) -> bool:
        """Tell whether every tensor was probed, so that costs are divergences (KL)."""
        return all(tensor.probe for tensor in self.tensors.values())

    def cost(self, name: str, type_name: str) -> float | None:
        """Give the cost of a tensor in a type, a divergence or a local effect; None: not measured.

        Local effects of different tensors add up, and so do divergences, but they are not the same:
        where one tensor was not probed, all costs are local effects.
        """
        tensor = self.tensors.get(name)
        if tensor is None or type_name not in tensor.local:
            return None
        return tensor.divergence(type_name) if self.has_probes else tensor.local[type_name]

    @property
    def types(self) -> tuple[str, ...]:
        """List the types that were measured for some tensor, large ones first."""
        found = {name for tensor in self.tensors.values() for name in tensor.local}
        return tuple(name for name in by_bits(found))

    def check_model(self, tensors: Named) -> None:
        """Raise LayoutError unless the model is the one that was measured."""
        shapes = {name: ggml_shape(shape) for name, shape in tensors}
        for name, tensor in self.tensors.items():
            if name not in shapes:
                raise self._foreign(f"it has {shown(name)}, which the model lacks")
            if ggml_shape(tensor.shape) != shapes[name]:
                measured, there = list(tensor.shape), list(shapes[name])
                raise self._foreign(f"{shown(name)} is {measured} in it, {there} in the model")
        if fingerprint_of(shapes.items()) != self.source.tensors:
            raise self._foreign("names or shapes of other matrices differ")

    def _foreign(self, why: str) -> LayoutError:
        name = shown(self.source.name)
        return LayoutError(f"{self.path}: measured on another model ({name}): {why}; {_REMEDY}")


def by_bits(names: Iterable[str]) -> list[str]:
    """Put types in the order of their bits for each weight, most first, then of names."""
    return sorted(names, key=lambda n: (-TYPES[n].bits_per_weight, n))


def fingerprint_of(tensors: Named) -> str:
    """Digest the names and shapes of a model's matrices, in any order and with axes of 1 or not.

    Vectors do not count, and neither do tensors that are no weights: some containers leave them
    out.
    """
    shapes = ((name, ggml_shape(shape)) for name, shape in tensors)
    lines = sorted(
        f"{name} {'x'.join(map(str, shape))}\n"
        for name, shape in shapes
        if len(shape) > 1 and name.endswith("weight")
    )
    text = "".join(lines).encode(errors="surrogateescape")
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def sensitivity_text(found: Sensitivities) -> str:
    """Write sensitivities as JSON, a line for each tensor; equal ones give equal text."""
    source, measured = found.source, found.measured
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": {
            "name": source.name,
            "parameters": source.parameters,
            "tensors": source.tensors,
        },
        "measured": {
            "text": measured.text,
            "tokens": measured.tokens,
            "context": measured.context,
            "search": measured.search,
            "importance": measured.importance,
        },
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
    tensors = (_tensor_text(tensor) for _, tensor in sorted(found.tensors.items()))
    listed = ",\n".join(tensors)
    return "{\n" + "".join(lines) + f' "tensors": {{\n{listed}\n }}\n' + "}\n"


def write_sensitivities(path: str | Path, found: Sensitivities) -> None:
    """Write a file of sensitivities. Raises OutputError; an earlier file stays then."""
    write_small(Path(path), sensitivity_text(found).encode())


def _tensor_text(tensor: TensorSensitivity) -> str:
    values: dict[str, Any] = {"shape": list(tensor.shape)}
    for key, costs in (("local", tensor.local), ("probe", tensor.probe)):
        if costs:
            values[key] = {name: float(costs[name]) for name in by_bits(costs)}
    return f"  {json.dumps(tensor.name)}: {json.dumps(values)}"


def read_sensitivities(path: str | Path) -> Sensitivities:
    """Read a file of sensitivities. Raises FormatError naming file and tensor."""
    path = Path(path)
    values = _Reader(path, read_json_object(path, "sensitivities"))
    if values.given.get("format") != FORMAT:
        raise values.refused(f"no sensitivities: its format is not {FORMAT}")
    if values.given.get("version") != VERSION:
        found = shown(values.given.get("version"))
        raise values.refused(f"version {found} of sensitivities, expected {VERSION}; {_REMEDY}")
    values.check_keys("format", "version", "source", "measured", "tensors")
    source, measured = values.inner("source"), values.inner("measured")
    source.check_keys("name", "parameters", "tensors")
    measured.check_keys("text", "tokens", "context", "search", "importance")
    tensors = values.inner("tensors")
    if not tensors.given:
        raise values.refused(f"no tensor was measured; {_REMEDY}")
    return Sensitivities(
        MeasuredSource(source.text("name"), source.whole("parameters"), source.text("tensors")),
        Measurement(
            measured.text("text"),
            measured.whole("tokens"),
            measured.whole("context"),
            measured.text("search"),
            measured.flag("importance"),
        ),
        {name: _tensor(name, tensors.inner(name)) for name in tensors.given},
        path,
    )


def _tensor(name: str, values: _Reader) -> TensorSensitivity:
    values.check_keys("shape", "local", optional=("probe",))
    local = dict(values.inner("local").costs())
    if not local:
        raise values.refused("no type was measured")
    probe = dict(values.inner("probe").costs()) if "probe" in values.given else {}
    for probed in probe:
        if not local.get(probed):
            raise values.refused(f"probe: {probed} has no local effect that is above 0")
    return TensorSensitivity(name, values.shape(), local, probe)


@dataclass(frozen=True, slots=True)
class _Reader:
    """An object of a file, and the place where it stands, for messages."""

    path: Path
    given: Mapping[str, Any]
    place: str = ""

    def refused(self, problem: str) -> FormatError:
        return FormatError(self.path, None, f"{self.place}{problem}")

    def check_keys(self, *required: str, optional: tuple[str, ...] = ()) -> None:
        for key in required:
            if key not in self.given:
                raise self.refused(f"{key} is missing")
        for key in self.given:
            if key not in required + optional:
                known = ", ".join(required + optional)
                raise self.refused(f"unknown key {shown(key)}; known: {known}")

    def inner(self, key: str) -> _Reader:
        value, place = self.given[key], f"{self.place}{shown(key)[1:-1]}: "
        if not isinstance(value, dict):
            raise FormatError(self.path, None, f"{place}not an object")
        return _Reader(self.path, value, place)

    def text(self, key: str) -> str:
        value = self.given[key]
        if not isinstance(value, str) or not value or len(value) > MAX_TEXT:
            raise self.refused(f"{key} is {shown(value)}, expected a text")
        return value

    def flag(self, key: str) -> bool:
        value = self.given[key]
        if not isinstance(value, bool):
            raise self.refused(f"{key} is {shown(value)}, expected true or false")
        return value

    def whole(self, key: str) -> int:
        value = self.given[key]
        if type(value) is not int or not 0 < value < MAX_WHOLE:
            raise self.refused(f"{key} is {shown(value)}, expected a whole number above 0")
        return value

    def shape(self) -> tuple[int, ...]:
        value = self.given["shape"]
        is_list = isinstance(value, list) and 0 < len(value) <= MAX_AXES
        if not is_list or not all(type(n) is int and 0 < n < MAX_WHOLE for n in value):
            raise self.refused(f"shape is {shown(value)}, expected whole numbers above 0")
        return tuple(value)

    def costs(self) -> Iterator[tuple[str, float]]:
        """Read numbers by types of GGUF."""
        for name, value in self.given.items():
            if name not in TYPES:
                raise self.refused(f"unknown type {shown(name)}{hint(name, TYPES)}")
            if type(value) not in (int, float) or not 0 <= value <= MAX_COST:
                raise self.refused(f"{name} is {shown(value)}, expected a number from 0 to 1e12")
            yield name, float(value)
