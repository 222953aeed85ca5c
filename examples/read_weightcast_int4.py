#!/usr/bin/env -S .venv/bin/python
"""A file of the layout `weightcast` read with nothing but numpy, as docs/layouts.md specifies it.

Run it from the project's directory: examples/read_weightcast_int4.py FILE.safetensors
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Give name and float32 [out, in] of every packed matrix."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8:start].tobytes())

    def tensor(name: str) -> np.ndarray:
        said = header[name]
        dtype = {"U8": "u1", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}[said["dtype"]]
        first, last = said["data_offsets"]
        array = raw[start + first : start + last].view(dtype).reshape(said["shape"])
        return (array.astype("<u4") << 16).view("<f4") if said["dtype"] == "BF16" else array

    for name, said in json.loads(header["__metadata__"]["weightcast"])["matrices"].items():
        codes, n_in = tensor(f"{name}.codes"), said["shape"][1]
        if said["bits"] == 4:
            codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(codes), -1)[:, :n_in]
        size, zero = said["group_size"] or n_in, 1 << said["bits"] - 1
        if not said["symmetric"]:
            zero = tensor(f"{name}.zero_points").astype(np.float32).repeat(size, axis=1)
        scales = tensor(f"{name}.scales").astype(np.float32).repeat(size, axis=1)
        yield name, (codes.astype(np.float32) - zero) * scales


def main() -> None:
    for name, weights in read(Path(sys.argv[1])):
        print(name, list(weights.shape), np.round(weights.ravel()[:9], 6).tolist())


if __name__ == "__main__":
    main()
