"""The hashes of the library's self test, made with ggml.

`python -m tests.quant.golden > quant/kernels/abi/self_test_golden.inc` writes them anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.quant import oracle
from weightcast.quant.types import F32, TYPES, QuantType

N_IN, N_OUT = 256, 3


def values() -> NDArray[np.float32]:
    """Make the source [3, 256] of self_test.cpp: products of a linear congruential generator."""
    state, products = 1, []
    for _ in range(N_OUT * N_IN):
        state = (state * 1664525 + 1013904223) % 2**32
        products.append(((state >> 20) - 2048) * ((state >> 8 & 0xFFF) + 1) * 2.0**-24)
    return np.array(products, np.float32).reshape(N_OUT, N_IN)


def fnv1a(data: bytes, digest: int) -> int:
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return digest


def made_by_ggml(
    x: NDArray[np.float32], t: QuantType, weights: NDArray[np.float32] | None
) -> bytes:
    """Rows of blocks, then the float32 values of the first of them."""
    if t == F32:
        return x.tobytes() + x[0].tobytes()
    if t.block_elements == 1:
        halves = oracle.narrow(x.reshape(-1), t.ggml_id)
        return halves.tobytes() + oracle.widen(halves[:N_IN], t.ggml_id).tobytes()
    rows = oracle.quantize(x, t.ggml_id, weights)
    return rows.tobytes() + oracle.dequantize(rows[:1], t).tobytes()


def golden(t: QuantType) -> str:
    """One line of the table: type, made without importance, with it, hash of all."""
    x = values()
    plain, weighed = t.importance != "required", t.importance != "ignored"
    digest = 0xCBF29CE484222325
    if plain:
        digest = fnv1a(made_by_ggml(x, t, None), digest)
    if weighed:
        digest = fnv1a(made_by_ggml(x, t, np.abs(x.reshape(-1)[N_IN - 1 :: -1])), digest)
    flags = f"{str(plain).lower()}, {str(weighed).lower()}"
    return f"{{WEIGHTCAST_{t.name}, {flags}, 0x{digest:016x}u}},"


def table() -> str:
    lines = ["// Made by tests/quant/golden.py with ggml: do not edit."]
    return "\n".join([*lines, *map(golden, TYPES.values()), ""])


if __name__ == "__main__":
    print(table(), end="")
