"""The header of a GGUF file: read within bounds, its metadata kept as the bytes that lie there.

A metadata value is its type (uint32), then its bytes: a number, a length and text, or an array of
those. Kept raw it goes into another file unchanged, whatever it holds; it is decoded when somebody
asks for it. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from weightcast.errors import FormatError
from weightcast.text import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The tokenizer of a 256k vocabulary takes 15 MB; nothing that belongs in a header is larger.
MAX_HEADER_BYTES: Final = 1 << 28
# Of keys by the format; ggml's own limit of tensors' names is 63, which forks and others raise.
MAX_NAME_BYTES: Final = 65535
# Far more than files have: each of them is a Python object, larger than the bytes it is read from.
MAX_VALUES: Final = 1 << 16
MAX_STRINGS: Final = 1 << 22
DAMAGED: Final = "cut or damaged: download the file again"
_BOOL, _STRING, _ARRAY = 7, 8, 9
# As struct and numpy call them.
_SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    _BOOL: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
TYPE_NAMES: Final = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    _BOOL: "bool",
    _STRING: "string",
    _ARRAY: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}
_NUMBERS: Final = {name: kind for kind, name in TYPE_NAMES.items() if kind in _SCALARS}


class HeaderReader:
    """Reads the header front to back; every length is checked against the file first."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._file = file
        self._path = path
        self._left = min(self.size, MAX_HEADER_BYTES)
        self._strings_left = MAX_STRINGS
        self.position = 0

    def error(self, problem: str) -> FormatError:
        return FormatError(self._path, self.position, problem)

    def require(self, count: int) -> None:
        """Refuse a length that the file, or what a header may take of it, cannot hold."""
        if count > self._left:
            raise self.error(
                f"{count:,} bytes are declared, but only {self._left:,} are left; {DAMAGED}"
            )

    def take(self, count: int) -> bytes:
        self.require(count)
        raw = self._file.read(count)
        if len(raw) != count:
            raise self.error("the file shrank while it was read")
        self.position += count
        self._left -= count
        return raw

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def name(self) -> str:
        """A key or a tensor's name, bytes that are not UTF-8 as lone surrogates.

        Raises FormatError if it is too long.
        """
        count = self.unsigned(8)
        self.require(count)
        if count > MAX_NAME_BYTES:
            said = f"a name of {count:,} bytes, and up to {MAX_NAME_BYTES:,} are read"
            raise self.error(f"{said}; {DAMAGED}")
        return decoded(self.take(count))

    def raw_value(self, key: str) -> bytes:
        """The metadata value of a key as it lies in the file: type and bytes."""
        head = self.take(4)
        kind = int.from_bytes(head, "little")
        if kind in _SCALARS:
            return head + self.take(struct.calcsize(_SCALARS[kind]))
        if kind == _STRING:
            length = self.take(8)
            return head + length + self.take(int.from_bytes(length, "little"))
        if kind != _ARRAY:
            raise self.error(f"metadata key {shown(key)} is of unknown type {kind}; {DAMAGED}")
        inner = self.take(12)
        element, count = struct.unpack("<IQ", inner)
        if element in _SCALARS:
            return head + inner + self.take(count * struct.calcsize(_SCALARS[element]))
        if element == _ARRAY:
            raise self.error(
                f"metadata key {shown(key)} is an array of arrays, which llama.cpp does not read "
                "either; make the file again without it"
            )
        if element != _STRING:
            said = f"metadata key {shown(key)} is an array of unknown type {element}"
            raise self.error(f"{said}; {DAMAGED}")
        # Each string takes at least its 8-byte length.
        self.require(8 * count)
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.error(f"more than {MAX_STRINGS:,} strings in arrays")
        raw = bytearray(head + inner)
        for _ in range(count):
            length = self.take(8)
            raw += length
            raw += self.take(int.from_bytes(length, "little"))
        return bytes(raw)

    def pairs(self, count: int) -> dict[str, bytes]:
        """Keys and raw values, in order. Raises FormatError for a key that occurs twice."""
        if count > MAX_VALUES:
            raise self.error(f"{count:,} metadata values; {MAX_VALUES:,} are read")
        raw: dict[str, bytes] = {}
        for _ in range(count):
            key = self.name()
            if key in raw:
                raise self.error(
                    f"metadata key {shown(key)} occurs twice, which llama.cpp does not read "
                    "either; make the file again with one of them"
                )
            raw[key] = self.raw_value(key)
        return raw


class Metadata(Mapping[str, Any]):
    """Metadata in the order of the file: raw values, decoded each time they are looked up.

    Numbers become int, float or bool, arrays of numbers numpy arrays, strings str. Bytes that are
    not UTF-8 become lone surrogates (surrogateescape), so a string never fails to decode.
    """

    def __init__(self, raw: Mapping[str, bytes]) -> None:
        self.raw: Final = dict(raw)

    def __getitem__(self, key: str) -> Any:
        raw, kind = self.raw[key], self.kind(key)
        if kind == _ARRAY:
            element, count = struct.unpack_from("<IQ", raw, 4)
            if element == _STRING:
                return list(_strings(raw, 16, count))
            return _numbers(raw, element, count, 16)
        if kind == _STRING:
            return decoded(raw[12:])
        (value,) = struct.unpack_from(_SCALARS[kind], raw, 4)
        return value != 0 if kind == _BOOL else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def kind(self, key: str) -> int:
        """The type of a value: a key of TYPE_NAMES."""
        return int.from_bytes(self.raw[key][:4], "little")

    def array_type(self, key: str) -> tuple[str, int] | None:
        """Type of the elements and length of an array, None for a single value."""
        if self.kind(key) != _ARRAY:
            return None
        element, count = struct.unpack_from("<IQ", self.raw[key], 4)
        return TYPE_NAMES[element], count


def _strings(raw: bytes, start: int, count: int) -> Iterator[str]:
    for _ in range(count):
        end = start + 8 + int.from_bytes(raw[start : start + 8], "little")
        yield decoded(raw[start + 8 : end])
        start = end


def _numbers(raw: bytes, kind: int, count: int, start: int) -> NDArray[Any]:
    """Decode numbers; of a bool any byte but 0 is true, as for ggml."""
    import numpy as np  # who looks at no arrays need not wait for it

    found = np.frombuffer(raw, np.dtype(_SCALARS[kind]), count, start)
    return found != 0 if kind == _BOOL else found


def decoded(raw: bytes) -> str:
    """Decode a text of a GGUF file; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode(errors="surrogateescape")


def encoded(text: str) -> bytes:
    """Encode a text, with its length before it; what `decoded` gave becomes what it was."""
    raw = text.encode(errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def raw_number(type_name: str, value: float) -> bytes:
    """Encode a number as a metadata value of one of TYPE_NAMES."""
    import numpy as np

    kind = _NUMBERS[type_name]
    return struct.pack("<I", kind) + np.array(value, _SCALARS[kind]).tobytes()


def raw_uint(value: int) -> bytes:
    """Encode a whole number as uint32, as most keys want it."""
    return raw_number("uint32", value)


def raw_float(value: float) -> bytes:
    """Encode a number as float32."""
    return raw_number("float32", value)


def raw_string(value: str) -> bytes:
    """Encode text as a metadata value."""
    return struct.pack("<I", _STRING) + encoded(value)


def raw_strings(values: Sequence[str]) -> bytes:
    """Encode a list of texts as an array."""
    head = struct.pack("<IIQ", _ARRAY, _STRING, len(values))
    return head + b"".join(map(encoded, values))


def raw_array(type_name: str, values: NDArray[Any]) -> bytes:
    """Encode numbers [n] as an array of one of TYPE_NAMES."""
    kind = _NUMBERS[type_name]
    return struct.pack("<IIQ", _ARRAY, kind, len(values)) + values.astype(_SCALARS[kind]).tobytes()
