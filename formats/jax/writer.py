"""Layout of shards as the release has them: CPython's pickle bytes around payloads.

The bytes equal what pickle protocol 4 writes for numpy 1.26 arrays and for objects of class
`__main__.QuantizedWeight8bit`, whatever numpy is installed, without the payloads being in memory.
Sources: Pickler and _Framer in CPython's Lib/pickle.py, ndarray.__reduce__ in numpy 1.26. Payloads
of fewer than two bytes are not laid out (CPython shares such objects through the memo).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Final

from weightcast.formats.array import ITEM_BYTES

# _Framer._FRAME_SIZE_TARGET: payloads from this size on lie outside frames.
_FRAME_TARGET: Final = 1 << 16
_DTYPE_CODES: Final = {"F32": "f4", "I8": "i1"}


@dataclass(frozen=True, slots=True)
class Payload:
    """A place for raw bytes, in row-major order: which array, how many bytes."""

    array: str
    nbytes: int


Part = bytes | Payload


def array_parts(dtype: str, shape: tuple[int, ...]) -> list[Part]:
    """Lay out the pickle of one array; its payload is named "array"."""
    pickler = _Pickler()
    pickler.array("array", dtype, shape)
    return pickler.finish()


def quantized_parts(weight: tuple[int, ...], scales: tuple[int, ...]) -> list[Part]:
    """Lay out a QuantizedWeight8bit: payloads "weight" (int8) and "scales" (bfloat16)."""
    pickler = _Pickler()
    pickler.instance("__main__", "QuantizedWeight8bit")
    pickler.op(b"}")
    pickler.memoize("state")
    pickler.op(b"(")
    pickler.text("weight")
    pickler.array("weight", "I8", weight)
    pickler.start_object()
    pickler.text("scales")
    pickler.array("scales", "BF16", scales)
    pickler.op(b"ub")
    return pickler.finish()


def parts_bytes(parts: list[Part]) -> int:
    """Size of the file."""
    return sum(part.nbytes if isinstance(part, Payload) else len(part) for part in parts)


class _Pickler:
    """Emits opcodes into frames, and keeps CPython's numbering of memoized objects."""

    def __init__(self) -> None:
        self._parts: list[Part] = [b"\x80\x04"]
        self._frame: list[Part] = []
        self._memo: dict[str, int] = {}
        self._memoized = 0

    def op(self, raw: bytes) -> None:
        self._frame.append(raw)

    def start_object(self) -> None:
        """Between objects, a frame that has reached its target size is closed."""
        if parts_bytes(self._frame) >= _FRAME_TARGET:
            self._close_frame()

    def finish(self) -> list[Part]:
        self.op(b".")
        self._close_frame()
        joined: list[Part] = []
        for part in self._parts:
            last = joined[-1] if joined else None
            if isinstance(part, bytes) and isinstance(last, bytes):
                joined[-1] = last + part
            else:
                joined.append(part)
        return joined

    def _close_frame(self) -> None:
        length = parts_bytes(self._frame)
        assert length >= 4, "CPython writes shorter frames without a header"
        self._parts += [b"\x95" + struct.pack("<Q", length), *self._frame]
        self._frame = []

    def memoize(self, key: str | None = None) -> None:
        if key is not None:
            self._memo[key] = self._memoized
        self._memoized += 1
        self.op(b"\x94")

    def _recall(self, key: str) -> bool:
        if key not in self._memo:
            return False
        self.op(b"h" + bytes([self._memo[key]]))
        return True

    def text(self, value: str) -> None:
        if not self._recall(f"text {value}"):
            raw = value.encode()
            self.op(b"\x8c" + bytes([len(raw)]) + raw)
            self.memoize(f"text {value}")

    def _global(self, module: str, name: str) -> None:
        if not self._recall(f"global {module}.{name}"):
            self.text(module)
            self.text(name)
            self.op(b"\x93")
            self.memoize(f"global {module}.{name}")

    def instance(self, module: str, name: str) -> None:
        self._global(module, name)
        self.op(b")\x81")
        self.memoize()

    def _integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.op(b"K" + struct.pack("<B", value))
        elif 0 <= value < 1 << 16:
            self.op(b"M" + struct.pack("<H", value))
        else:
            self.op(b"J" + struct.pack("<i", value))

    def _payload(self, name: str, nbytes: int) -> None:
        assert nbytes > 1
        if nbytes < 1 << 8:
            header = b"C" + struct.pack("<B", nbytes)
        elif nbytes < 1 << 32:
            header = b"B" + struct.pack("<I", nbytes)
        else:
            header = b"\x8e" + struct.pack("<Q", nbytes)
        if nbytes < _FRAME_TARGET:
            self._frame += [header, Payload(name, nbytes)]
        else:
            self._close_frame()
            self._parts += [header, Payload(name, nbytes)]
        self.memoize()

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._global("numpy.core.multiarray", "_reconstruct")
        self._global("numpy", "ndarray")
        self.op(b"K\x00\x85")
        self.memoize()
        if not self._recall("bytes b"):
            self.op(b"C\x01b")
            self.memoize("bytes b")
        self.op(b"\x87")
        self.memoize()
        self.op(b"R")
        self.memoize()
        self.op(b"(K\x01")
        assert 1 <= len(shape) <= 3
        for size in shape:
            self._integer(size)
        self.op((b"\x85", b"\x86", b"\x87")[len(shape) - 1])
        self.memoize()
        self._dtype(dtype)
        self.op(b"\x89")
        self._payload(name, ITEM_BYTES[dtype] * prod(shape))
        self.op(b"t")
        self.memoize()
        self.op(b"b")

    def _dtype(self, dtype: str) -> None:
        """Each dtype occurs once in a file, so the object itself is never recalled."""
        self._global("numpy", "dtype")
        if dtype == "BF16":
            self._global("ml_dtypes", "bfloat16")
        else:
            self.text(_DTYPE_CODES[dtype])
        self.op(b"\x89\x88\x87")
        self.memoize()
        self.op(b"R")
        self.memoize()
        self.op(b"(K\x03")
        self.text("|" if dtype == "I8" else "<")
        self.op(b"NNN")
        # Item size, alignment and flags: -1, -1 and 0 for numpy's own types.
        for value in (2, 2, 64) if dtype == "BF16" else (-1, -1, 0):
            self._integer(value)
        self.op(b"t")
        self.memoize()
        self.op(b"b")
