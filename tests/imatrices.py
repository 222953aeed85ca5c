"""Importance matrices for tests: both of llama.cpp's formats, written plainly."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def sample(matrices: int, n_in: int, seed: int) -> tuple[Floats, Floats]:
    """Sums [matrices, in] and counts [matrices] of no particular meaning, the same everywhere."""
    numbers = np.arange(matrices * n_in, dtype=np.int64).reshape(matrices, n_in)
    mixed = (numbers * 7919 + seed * 104729) % 10007
    counts = (np.arange(matrices) * 37 + seed) % 23 + 2
    return (mixed**2 / 9973.0).astype(np.float32), counts.astype(np.float32)


def write_gguf(
    path: Path,
    entries: Mapping[str, tuple[Floats, Floats]],
    *,
    datasets: tuple[str, ...] = ("calibration.txt",),
    chunks: int = 12,
) -> Path:
    """Write sums [matrices, in] and counts [matrices] as llama-imatrix does."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # llama-imatrix writes no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def old_entry(name: bytes, calls: int, values: Floats) -> bytes:
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values.size)
    return head + values.astype("<f4").tobytes()


def write_old(
    path: Path, entries: Mapping[str, tuple[int, Floats]], chunks: int = 12, dataset: str = "c.txt"
) -> Path:
    """Write calls and values of each tensor in the format before GGUF."""
    body = b"".join(old_entry(name.encode(), *entry) for name, entry in entries.items())
    tail = struct.pack("<ii", chunks, len(dataset)) + dataset.encode()
    path.write_bytes(struct.pack("<i", len(entries)) + body + tail)
    return path


def model_entries(
    shapes: Mapping[str, tuple[int, ...]], *, unused_expert: int = 3
) -> dict[str, tuple[Floats, Floats]]:
    """Entries for all matrices but one; one expert of each layer is never used."""
    entries = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        if len(shape) < 2 or "ffn_gate_inp" in name or name == "blk.1.attn_output.weight":
            continue
        matrices = shape[0] if len(shape) > 2 else 1
        sums, counts = sample(matrices, shape[-1], seed)
        if matrices > 1:
            counts[unused_expert] = 0
        entries[name] = (sums, counts)
    return entries
