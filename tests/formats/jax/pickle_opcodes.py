"""Pickles written opcode by opcode, for tests. Opcodes: Lib/pickletools.py in CPython."""

from __future__ import annotations

import struct

PROTO, STOP, REDUCE, NEWOBJ, BUILD, EMPTY_TUPLE = b"\x80\x04", b".", b"R", b"\x81", b"b", b")"
MARK, TUPLE, EMPTY_DICT, SETITEM, NONE = b"(", b"t", b"}", b"s", b"N"
TUPLE1, TUPLE2, TUPLE3, TRUE, FALSE = b"\x85", b"\x86", b"\x87", b"\x88", b"\x89"


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def short_bytes(value: bytes) -> bytes:
    return b"C" + bytes([len(value)]) + value


def number(value: int) -> bytes:
    """LONG1: an integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def many(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def by_line(module: str, name: str) -> bytes:
    """GLOBAL: two lines of text."""
    return f"c{module}\n{name}\n".encode()


def by_stack(module: str, name: str) -> bytes:
    """STACK_GLOBAL: two strings from the stack."""
    return text(module) + text(name) + b"\x93"


RECONSTRUCT = by_line("numpy._core.multiarray", "_reconstruct")
FROM_BUFFER = by_line("numpy._core.numeric", "_frombuffer")
JAX_ARRAY = by_line("jax._src.array", "_reconstruct_array")
NDARRAY = by_line("numpy", "ndarray")
QUANTIZED = by_line("__main__", "QuantizedWeight8bit") + EMPTY_TUPLE + NEWOBJ
EMPTY_ARRAY_ARGS = many(NDARRAY, number(0) + TUPLE1, short_bytes(b"b"))
EMPTY_ARRAY = RECONSTRUCT + EMPTY_ARRAY_ARGS + REDUCE
DTYPE_STATE = many(number(3), text("<"), NONE, NONE, NONE, number(-1), number(-1), number(0))


def dtype(name: str = "f4", state: bytes = DTYPE_STATE) -> bytes:
    made = by_line("numpy", "dtype") + many(text(name), FALSE, TRUE) + REDUCE
    return made + state + BUILD


def array_state(sizes: list[int], data: bytes, kind: bytes | None = None) -> bytes:
    shape = many(*map(number, sizes))
    return many(number(1), shape, kind or dtype(), FALSE, short_bytes(data))


def array(sizes: list[int], data: bytes) -> bytes:
    return EMPTY_ARRAY + array_state(sizes, data) + BUILD


def pickled(*opcodes: bytes) -> bytes:
    return PROTO + b"".join(opcodes) + STOP
