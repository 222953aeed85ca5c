"""Synthetic checkpoints in the format of the release, for tests, the demo and benchmarks.

Byte-exact pickles of any size from a seed, with weights of a realistic gain: unit variance goes
through every matrix, as in a trained model. (With much smaller weights the eps of the norms shows,
and runtimes that treat it differently disagree.) Sparse ones have files of the true sizes with
holes for payloads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import gcd, log, sqrt
from pathlib import Path
from typing import BinaryIO, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.families.graphs import leaf_places
from weightcast.converters.families.grok1.spec import RELEASE, ffn_size
from weightcast.converters.families.grok1.tensors import NAMES, ROLES
from weightcast.converters.graph import Family, Number, Place
from weightcast.formats.jax.writer import Part, Payload, array_parts, parts_bytes, quantized_parts

_TENSORS: Final = Family("grok-1", roles=ROLES, names=NAMES)

# Matrices whose input is split over the eight devices of the release: scales for each eighth.
_ROW_PARALLEL: Final = ("ffn_down_exps", "attn_output")
_GAIN = 1.1
_NORM_SPREAD = 0.2
_CHUNK_BYTES = 1 << 25


def tiny_spec(**changes: Number) -> dict[str, Number]:
    """A specification small enough for tests: two layers, 0.7 million weights an expert triple."""
    emb, key = 256, 16
    base: dict[str, Number] = {
        **RELEASE,
        "vocab_size": 1024,
        "context_length": 256,
        "emb_size": emb,
        "key_size": key,
        "num_q_heads": emb // key,
        "num_kv_heads": 8,
        "num_layers": 2,
        "widening_factor": 3,
        "embedding_multiplier_scale": sqrt(emb),
        "attn_output_multiplier": key**-0.5,
    }
    return {**base, **changes}


def shard_layouts(spec: Mapping[str, Number]) -> Iterator[tuple[Place, list[Part]]]:
    """Lay out every shard of a model in file order."""
    sizes = {
        "vocab_size": int(spec["vocab_size"]),
        "emb_size": int(spec["emb_size"]),
        "ffn_size": ffn_size(int(spec["emb_size"]), float(spec["widening_factor"])),
        "q_size": int(spec["num_q_heads"] * spec["key_size"]),
        "kv_size": int(spec["num_kv_heads"] * spec["key_size"]),
        "num_experts": int(spec["num_experts"]),
    }
    for place in leaf_places(_TENSORS, int(spec["num_layers"])):
        shape = tuple(sizes[axis] for axis in place.role.axes)
        if len(shape) == 1 or place.role.name == "token_embd":
            yield place, array_parts("F32", shape)
            continue
        stored = (*shape[:-2], shape[-1], shape[-2])
        if place.role.name == "ffn_gate_inp":
            yield place, array_parts("F32", stored)
            continue
        groups = gcd(8, stored[-2]) if place.role.name in _ROW_PARALLEL else 1
        yield place, quantized_parts(stored, (*stored[:-2], groups, stored[-1]))


def write_checkpoint(
    directory: Path, spec: Mapping[str, Number], seed: int = 0, *, sparse: bool = False
) -> Path:
    """Write `directory`/ckpt-0 with its shards, and spec.json beside it; return ckpt-0."""
    checkpoint = directory / "ckpt-0"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(dict(spec), indent=1) + "\n")
    for number, (place, parts) in enumerate(shard_layouts(spec)):
        with (checkpoint / f"tensor{number:05}_000").open("wb") as file:
            values = _Values(np.random.default_rng([seed, number]), place, spec, parts)
            for part in parts:
                if isinstance(part, bytes):
                    file.write(part)
                elif sparse:
                    file.seek(part.nbytes, 1)
                else:
                    values.write(file, part)
    return checkpoint


def write_tiny(directory: Path, seed: int) -> Path:
    """Write a tiny checkpoint; see write_checkpoint."""
    return write_checkpoint(directory, tiny_spec(), seed)


class _Values:
    """The random content of one shard, written in pieces."""

    def __init__(
        self,
        rng: np.random.Generator,
        place: Place,
        spec: Mapping[str, Number],
        parts: list[Part],
    ) -> None:
        self._rng = rng
        self._is_norm = len(place.role.axes) == 1
        payloads = {part.array: part.nbytes for part in parts if isinstance(part, Payload)}
        self._n_in = self._input_size(place, spec)
        self._std = _GAIN / sqrt(self._n_in)
        if place.role.name == "token_embd":
            self._std = 1 / sqrt(self._n_in)
        if "scales" in payloads:
            rows_per_scale = payloads["weight"] // (payloads["scales"] // 2)
            # The largest of n normal numbers, in standard deviations, becomes code 127.
            self._largest = max(1.5, sqrt(2 * log(rows_per_scale)))

    @staticmethod
    def _input_size(place: Place, spec: Mapping[str, Number]) -> int:
        axis = place.role.axes[-1]
        if axis == "ffn_size":
            return ffn_size(int(spec["emb_size"]), float(spec["widening_factor"]))
        if axis == "q_size":
            return int(spec["num_q_heads"] * spec["key_size"])
        return int(spec["emb_size"])

    def write(self, file: BinaryIO, part: Payload) -> None:
        if part.array == "weight":
            self._write_codes(file, part.nbytes)
        elif part.array == "scales":
            spread = self._rng.uniform(0.75, 1.25, part.nbytes // 2)
            scales = spread * (self._std * self._largest / 127)
            file.write(scales.astype(ml_dtypes.bfloat16).tobytes())
        else:
            for count in _chunks(part.nbytes // 4, _CHUNK_BYTES // 4):
                file.write(self._floats(count).tobytes())

    def _floats(self, count: int) -> NDArray[np.float32]:
        normal = self._rng.standard_normal(count, np.float32)
        if self._is_norm:
            return np.float32(1) + np.float32(_NORM_SPREAD) * normal
        return normal * np.float32(self._std)

    def _codes(self, count: int) -> NDArray[np.int8]:
        normal = self._rng.standard_normal(count, np.float32) * np.float32(127 / self._largest)
        codes: NDArray[np.int8] = np.clip(np.rint(normal), -127, 127).astype(np.int8)
        return codes

    def _write_codes(self, file: BinaryIO, nbytes: int) -> None:
        # Drawing billions of numbers takes minutes: large arrays repeat one pool, shifted.
        pool = self._codes(min(nbytes, 2 * _CHUNK_BYTES))
        if nbytes == pool.size:
            file.write(pool.tobytes())
            return
        for count in _chunks(nbytes, _CHUNK_BYTES):
            start = int(self._rng.integers(pool.size - count + 1))
            file.write(pool[start : start + count].data)


def _chunks(total: int, limit: int) -> Iterator[int]:
    for start in range(0, total, limit):
        yield min(limit, total - start)


def sample_tokens(
    rng: np.random.Generator, spec: Mapping[str, Number], sequences: int, positions: int
) -> NDArray[np.int64]:
    """Draw token ids [sequences, positions], special ids left out."""
    return rng.integers(4, int(spec["vocab_size"]), (sequences, positions))


def total_bytes(spec: Mapping[str, Number]) -> int:
    """Size of a whole checkpoint."""
    return sum(parts_bytes(parts) for _, parts in shard_layouts(spec))
