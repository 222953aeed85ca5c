"""GGUF files written and taken apart by hand: independent of weightcast and of the gguf package."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32, F16, Q8_0, I8, I16, I32, I64, F64, BF16 = 0, 1, 8, 24, 25, 26, 27, 28, 30
U32, STRING, ARRAY = 4, 8, 9
# Metadata type -> bytes of one value.
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def string(value: str | bytes) -> bytes:
    """A metadata value: its type and its bytes, as all of those below."""
    return struct.pack("<I", STRING) + text(value)


def u32(value: int) -> bytes:
    return struct.pack("<II", U32, value)


def u16(value: int) -> bytes:
    return struct.pack("<IH", 2, value)


def strings(*values: str | bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(text, values))


def array(kind: int, raw: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(raw) // WIDTHS[kind]) + raw


@dataclass(frozen=True)
class Part:
    """A tensor: ggml's number of its type, row-major shape, bytes."""

    kind: int
    shape: tuple[int, ...]
    data: bytes


def floats(x: NDArray[Any]) -> Part:
    """A float32 or float16 tensor."""
    return Part({4: F32, 2: F16}[x.dtype.itemsize], x.shape, x.tobytes())


def bf16(x: NDArray[np.float32]) -> Part:
    """A bfloat16 tensor of values that are exact in it."""
    assert not (x.view(np.uint32) & 0xFFFF).any()
    return Part(BF16, x.shape, (x.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write(
    path: Path, metadata: dict[str, bytes], tensors: dict[str, Part], alignment: int = 32
) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value for key, value in metadata.items())
    data = b""
    for name, part in tensors.items():
        axes = struct.pack(f"<I{len(part.shape)}Q", len(part.shape), *reversed(part.shape))
        head += text(name) + axes + struct.pack("<IQ", part.kind, len(data))
        data += part.data + bytes(-len(part.data) % alignment)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


@dataclass(frozen=True)
class File:
    """What lies in a file, in its order."""

    metadata: dict[str, bytes]
    tensors: dict[str, Part]
    data_start: int


def read(path: Path) -> File:
    """Take a valid file apart; row sizes are those of the gguf package."""
    from gguf import GGML_QUANT_SIZES

    raw = path.read_bytes()
    assert raw[:4] == b"GGUF"
    assert int.from_bytes(raw[4:8], "little") == 3
    n_tensors, n_values = struct.unpack_from("<QQ", raw, 8)
    position = 24

    def number(width: int) -> int:
        nonlocal position
        position += width
        return int.from_bytes(raw[position - width : position], "little")

    def take_text() -> bytes:
        nonlocal position
        count = number(8)
        position += count
        return raw[position - count : position]

    def skip(kind: int) -> None:
        nonlocal position
        if kind == STRING:
            take_text()
        elif kind == ARRAY:
            element, count = number(4), number(8)
            for _ in range(count):
                skip(element)
        else:
            position += WIDTHS[kind]

    metadata = {}
    for _ in range(n_values):
        key, start = take_text().decode(errors="surrogateescape"), position
        skip(number(4))
        metadata[key] = raw[start:position]
    assert len(metadata) == n_values
    infos = []
    for _ in range(n_tensors):
        name = take_text().decode(errors="surrogateescape")
        shape = tuple(number(8) for _ in range(number(4)))[::-1]
        infos.append((name, shape, number(4), number(8)))
    alignment = int.from_bytes(metadata.get("general.alignment", u32(32))[4:], "little")
    data_start = -(-position // alignment) * alignment
    tensors, end = {}, 0
    for name, shape, kind, offset in infos:
        elements, width = GGML_QUANT_SIZES[kind]
        nbytes = int(np.prod(shape)) // elements * width
        start = data_start + offset
        # As llama.cpp wants it: aligned, in order, without gaps.
        assert offset == end
        end += -(-nbytes // alignment) * alignment
        tensors[name] = Part(kind, shape, raw[start : start + nbytes])
        assert len(tensors[name].data) == nbytes
    assert len(tensors) == n_tensors
    assert len(raw) == data_start + end
    return File(metadata, tensors, data_start)
