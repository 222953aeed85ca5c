"""The torch pipeline that benchmarks/peers.py times makes Q8_0 of the right weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from support import Golden

from benchmarks.torch_pipeline import converted


@pytest.mark.parametrize("quantize", ["gguf", "torch"])
def test_weights(quantize: str) -> None:
    golden = Golden("wide")
    exact = golden.exact()
    found: dict[str, list[np.ndarray]] = {}
    for name, values in converted(Path(golden.path), quantize):
        if values.dtype == np.uint8:
            values = gguf.quants.dequantize(values.reshape(-1, 34), gguf.GGMLQuantizationType.Q8_0)
        found.setdefault(name, []).append(values.reshape(-1))
    assert found.keys() == exact.keys()
    for name, matrices in found.items():
        stored = exact[name]
        is_table = name.endswith("embeddings") or stored.ndim == 1
        wanted = (stored if is_table else np.swapaxes(stored, -1, -2)).reshape(-1)
        error = np.concatenate(matrices) - wanted
        assert np.abs(error).max() <= np.abs(wanted).max() / 127, name
        assert np.sqrt(np.mean(error**2) / np.mean(wanted**2)) < 0.01, name
