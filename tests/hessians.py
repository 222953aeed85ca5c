"""Files of second moments for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

F32 = NDArray[np.float32]


def drawn(n_in: int, seed: int = 0, tokens: int | None = None) -> F32:
    """Second moments [in, in] of inputs whose columns go together, some of them large."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(n_in) + rng.standard_normal((n_in, n_in)) / np.sqrt(n_in)
    x = rng.standard_normal((tokens or 3 * n_in, n_in)) * np.exp(rng.standard_normal(n_in)) @ mixed
    found: F32 = (x.T @ x).astype(np.float32)
    return found


def write(path: Path, entries: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """Write a file; by default its metadata say 1000 tokens."""
    save_file(dict(entries), path, {"tokens": "1000"} if metadata is None else metadata)
    return path


def model_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, F32]:
    """Second moments for all matrices of a model but routers and the embedding."""
    return {
        name: np.stack([drawn(shape[-1], seed) for seed in range(shape[0])])
        if len(shape) == 3
        else drawn(shape[-1])
        for name, shape in shapes.items()
        if len(shape) > 1 and "token_embd" not in name and "gate_inp" not in name
    }
