"""What several tests share: golden checkpoints read without weightcast, and comparisons."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
NAMES = ("deep", "wide")
# The tokenizer of the release, 2 MB that are not in this repository.
RELEASED_TOKENIZER = Path(
    os.environ.get("WEIGHTCAST_TOKENIZER", DATA.parents[2] / "shared" / "tokenizer.model")
)
needs_released_tokenizer = pytest.mark.skipif(
    not RELEASED_TOKENIZER.is_file(),
    reason="no tokenizer of the release; WEIGHTCAST_TOKENIZER=tokenizer.model of xai-org/grok-1",
)

# Relative error (Frobenius norm) of float32 logits against the reference's.
MAX_LOGIT_ERROR = 1e-5
# Largest difference of log-probabilities between llama.cpp on an F32 file and the reference.
MAX_LLAMA_DIFFERENCE = 5e-3


class _Quantized:
    weight: NDArray[np.int8]
    scales: NDArray[Any]


class _Unpickler(pickle.Unpickler):
    """CPython's own machine, for trusted test data: the independent reader."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "QuantizedWeight8bit":
            return _Quantized
        return super().find_class(module, name)


@dataclass(frozen=True)
class Golden:
    """A golden checkpoint with the reference's logits."""

    name: str

    @property
    def path(self) -> Path:
        return GOLDEN / self.name

    @property
    def leaves(self) -> list[dict[str, Any]]:
        return json.loads((self.path / "leaves.json").read_text())["leaves"]

    @property
    def tokens(self) -> NDArray[np.int32]:
        return np.load(self.path / "logits_fp32.npz")["tokens"]

    @property
    def logits(self) -> NDArray[np.float32]:
        return np.load(self.path / "logits_fp32.npz")["logits"]

    def codes(self) -> dict[str, NDArray[np.int8]]:
        """The int8 codes of quantized tensors by leaf path, as stored: [in, out]."""
        files = {leaf["path"]: self.path / "ckpt-0" / leaf["file"] for leaf in self.leaves}
        values = {
            name: _Unpickler(io.BytesIO(file.read_bytes())).load() for name, file in files.items()
        }
        return {name: v.weight for name, v in values.items() if isinstance(v, _Quantized)}

    def exact(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor by its leaf path, int8 x scale in float32, as stored: [in, out]."""
        tensors = {}
        for leaf in self.leaves:
            raw = (self.path / "ckpt-0" / leaf["file"]).read_bytes()
            value = _Unpickler(io.BytesIO(raw)).load()
            if isinstance(value, _Quantized):
                repeats = value.weight.shape[-2] // value.scales.shape[-2]
                scales = np.repeat(value.scales.astype(np.float32), repeats, axis=-2)
                value = value.weight.astype(np.float32) * scales
            tensors[leaf["path"]] = value
        return tensors


def some(cases: Iterable[Any], chosen: Callable[..., bool]) -> list[Any]:
    """Mark the cases that are not chosen as exhaustive; each is a tuple, or one value."""
    return [
        case
        if chosen(*(case if isinstance(case, tuple) else (case,)))
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive
        )
        for case in cases
    ]


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def as_stored(tensor: NDArray[Any], leaf: str) -> NDArray[Any]:
    """Turn [..., out, in] into the order of the leaf: matrices are stored [..., in, out]."""
    if leaf.endswith("embeddings") or tensor.ndim == 1:
        return tensor
    return np.swapaxes(tensor, -1, -2)
