"""Encode importance matrices as llama-imatrix writes them: GGUF, and the older .dat.

Source: save_imatrix and save_imatrix_legacy in tools/imatrix/imatrix.cpp of llama.cpp: keys, order,
shapes and arithmetic are theirs, so that equal sums make equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.gguf.header import raw_string, raw_strings, raw_uint
from weightcast.formats.gguf.importance_sums import ImportanceSums, TensorSums
from weightcast.formats.gguf.layout import Entry, ggml_shape, lay_out_file
from weightcast.formats.gguf.read import DEFAULT_ALIGNMENT
from weightcast.quant.types import F32
from weightcast.text import shown

SQUARES, COUNTS, PLAIN = ".in_sum2", ".counts", ".in_sum"
# GGML_MAX_NAME in ggml.h, less the zero at its end: llama.cpp reads no longer ones.
_MAX_NAME_BYTES: Final = 63
_MAX_CHUNKS: Final = (1 << 31) - 2


def encode_gguf(sums: ImportanceSums, *, plain: bool = False) -> Iterator[bytes]:
    """Give the bytes of a GGUF file piece by piece: a header, then each tensor with its padding.

    With `plain`, sums of inputs lie beside those of squares, where there are some (`.in_sum`).
    Raises LayoutError for sums that are not finite in float32 or below 0, and for long names.
    """
    _check_chunks(sums)
    tensors = list(_tensors(sums, plain=plain))
    entries = [Entry(name, F32, shape) for name, shape, _ in tensors]
    metadata = {
        "general.type": raw_string("imatrix"),
        "imatrix.datasets": raw_strings(sums.datasets),
        "imatrix.chunk_count": raw_uint(sums.chunks),
        "imatrix.chunk_size": raw_uint(sums.chunk_size),
    }
    yield lay_out_file(metadata, entries, DEFAULT_ALIGNMENT).header
    for entry, (name, _, values) in zip(entries, tensors, strict=True):
        raw = _float32(name, values).tobytes()
        yield raw + bytes(entry.padded_bytes(DEFAULT_ALIGNMENT) - len(raw))


def encode_dat(sums: ImportanceSums) -> Iterator[bytes]:
    """Give the bytes of a file of the older format: means times calls, then the last text's name.

    Counts of experts are lost, and tensors that no token reached are left out; of other matrices
    without tokens every column counts 1. Raises LayoutError as encode_gguf does.
    """
    _check_chunks(sums)
    reached = [name for name in _ordered(sums) if sums.entries[name].counts.any()]
    yield struct.pack("<i", len(reached))
    for name in reached:
        entry = sums.entries[name]
        calls = -(-int(entry.counts.max()) // sums.chunk_size)
        raw_name = _raw(name)
        head = struct.pack("<i", len(raw_name)) + raw_name
        values = _scaled(name, _means(name, entry), calls)
        yield head + struct.pack("<ii", calls, values.size) + values.tobytes()
    dataset = _raw(sums.datasets[-1] if sums.datasets else "")
    yield struct.pack("<ii", sums.chunks, len(dataset)) + dataset


def _check_chunks(sums: ImportanceSums) -> None:
    if sums.chunks > _MAX_CHUNKS:
        raise LayoutError(f"an importance matrix of {sums.chunks:,} chunks")


def _scaled(name: str, means: NDArray[np.float32], calls: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found = means * np.float32(calls)
    return _float32(name, found)


def _ordered(sums: ImportanceSums) -> list[str]:
    """Sort names by their bytes, as C++ does."""
    return sorted(sums.entries, key=_raw)


def _raw(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _tensors(
    sums: ImportanceSums, *, plain: bool
) -> Iterator[tuple[str, tuple[int, ...], NDArray[Any]]]:
    """List name, shape in the file and values of every tensor."""
    for name in _ordered(sums):
        entry = sums.entries[name]
        found = {SQUARES: entry.squares, COUNTS: entry.counts[:, None]}
        if plain and entry.plain is not None:
            found[PLAIN] = entry.plain
        for suffix, values in found.items():
            if len(_raw(name + suffix)) > _MAX_NAME_BYTES:
                raise LayoutError(
                    f"{shown(name + suffix)}: llama.cpp reads names of up to {_MAX_NAME_BYTES} "
                    "bytes"
                )
            yield name + suffix, ggml_shape(values.shape), values


def _float32(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found = values.astype("<f4")
    bad = ~np.isfinite(found)
    if not name.endswith(PLAIN):
        bad |= found < 0
    if bad.any():
        value = values[tuple(np.argwhere(bad)[0])]
        raise LayoutError(
            f"{shown(name)}: a sum is {value}; sums of squares are finite, and not below 0"
        )
    return found


def _means(name: str, entry: TensorSums) -> NDArray[np.float32]:
    """Divide by counts in float32 [matrices, in]; 1 where no token was."""
    counts = entry.counts.astype(np.float32)[:, None]
    found = _float32(name, entry.squares) / np.maximum(counts, 1)
    return np.where(counts > 0, found, np.float32(1)).astype("<f4")
