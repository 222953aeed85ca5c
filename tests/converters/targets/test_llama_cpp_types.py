"""llama.cpp runs every type of GGUF, and computes what numpy does with the same weights.

The golden model with rows of 256 and 512 values is converted with all its matrices in one type.
llama.cpp rounds activations to the format that goes with a type before it multiplies, so the numpy
forward over the dequantized weights does so too. What is left are values on the edge between two
codes, which the order of a sum can push to either side. Positions without one agree to the last
digits; they are a sixth to four fifths of all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests import imatrices
from tests.support import Golden
from weightcast.commands import llama_cpp
from weightcast.commands.text.demo import log_probabilities
from weightcast.converters.families.grok1 import forward
from weightcast.converters.families.grok1.spec import grok1_spec
from weightcast.converters.graph import TensorGraph, take
from weightcast.converters.graph.read import load_float32
from weightcast.converters.sources import open_graph
from weightcast.converters.targets.types import shapes_of
from weightcast.quant.types import TYPES

Floats = NDArray[np.float32]
Round = Callable[[Floats], Floats]

WIDE = Golden("wide")
TOKENS = WIDE.tokens[0].reshape(8, 4)  # a change reaches all later positions of a sequence
MATRICES = r"(token_embd|attn_(q|k|v|output)|ffn_(gate|up|down)_exps)\.weight"

# By the format of activations, differences of log-probabilities: the least of any position, and
# the largest of those whose routing no rounding can change. Quantizing weights changes the former
# by 0.03 (Q8_0), 0.3 (4 bits) or 2 (1 bit).
AGREEMENT = {
    "F32": (1e-4, 1e-3),
    "F16": (1e-3, 3e-3),
    "BF16": (3e-3, 2e-2),
    "Q8_0": (1e-4, 1e-1),
    "Q8_1": (4e-2, 1e-1),  # holds a float16 sum of each block too, which is not rounded here
    "Q8_K": (1e-4, 1e-1),
}
CLEAR_MARGIN = 0.05  # of router logits
# vec_dot_type of type_traits_cpu in ggml-cpu.c; all others have Q8_K.
ACTIVATIONS = {
    **{name: name for name in ("F32", "F16", "BF16")},
    **dict.fromkeys(("Q4_1", "Q5_1"), "Q8_1"),
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4", "IQ4_NL"), "Q8_0"),
}


def round_q8_0(x: Floats) -> Floats:
    """Round as quantize_row_q8_0 of ggml-cpu: codes from the exact scale, times that in float16."""
    blocks = x.reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    scale = (peak / np.float32(127)).astype(np.float16).astype(np.float32)
    codes = np.rint(blocks * (np.float32(127) / np.where(peak == 0, np.float32(1), peak)))
    return (codes * scale).reshape(x.shape)


def round_q8_k(x: Floats) -> Floats:
    """Round as quantize_row_q8_K: the value of the largest magnitude becomes -127."""
    blocks = x.reshape(-1, 256)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    inverse = np.float32(-127) / np.where(peak == 0, np.float32(1), peak)
    return (np.minimum(np.rint(blocks * inverse), 127) / inverse).reshape(x.shape)


ROUND: dict[str, Round] = {
    "F32": lambda x: x,
    "F16": lambda x: x.astype(np.float16).astype(np.float32),
    "BF16": lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
    "Q8_0": round_q8_0,
    "Q8_1": round_q8_0,
    "Q8_K": round_q8_k,
}


def gelu_float16(x: Floats) -> Floats:
    """Round as ggml's table of GELU does: its arguments and its values are float16."""
    rounded = forward.gelu_tanh(x.astype(np.float16).astype(np.float32))
    return rounded.astype(np.float16).astype(np.float32)


class Weights:
    """A matrix [out, in] that rounds what it is multiplied with."""

    __array_ufunc__ = None  # so that numpy leaves x @ weights to this class

    def __init__(self, values: Floats, rounded: Round) -> None:
        self.values, self.rounded = values, rounded

    @property
    def T(self) -> Weights:
        return self

    def __rmatmul__(self, x: Floats) -> Floats:
        return self.rounded(np.ascontiguousarray(x)) @ self.values.T

    def __getitem__(self, rows: NDArray[np.int32]) -> Floats:
        return self.values[rows]


def run(graph: TensorGraph, rounded: Round) -> forward.Result:
    def load(name: str, expert: int | None = None) -> Floats | Weights:
        values = load_float32(graph[name] if expert is None else take(graph[name], expert))
        is_float = values.ndim < 2 or "ffn_gate_inp" in name
        return values if is_float else Weights(values, rounded)

    return forward.forward(grok1_spec(graph.spec), load, TOKENS, gelu_float16)


def differences(found: Floats, expected: Floats) -> Floats:
    """Give the largest difference of log-probabilities at each position."""
    return np.abs(log_probabilities(found) - log_probabilities(expected)).max(axis=-1)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Entries for all matrices, the embedding table included."""
    entries = {
        name: imatrices.sample(shape[0] if len(shape) > 2 else 1, shape[-1], seed)
        for seed, (name, shape) in enumerate(shapes_of(open_graph(WIDE.path)))
        if len(shape) > 1 and "ffn_gate_inp" not in name
    }
    return imatrices.write_gguf(tmp_path_factory.mktemp("imatrix") / "all.gguf", entries)


@pytest.fixture(scope="module")
def source_logits() -> Floats:
    return forward.logits(open_graph(WIDE.path), TOKENS)


@pytest.mark.parametrize("name", TYPES)
def test_llama_cpp_agrees(name: str, imatrix: Path, source_logits: Floats, tmp_path: Path) -> None:
    check_agreement(name, "ggml", imatrix, source_logits, tmp_path)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q4_K", "IQ4_XS", "IQ2_XXS", "MXFP4", "NVFP4"])
def test_llama_cpp_agrees_with_least_error(
    name: str, imatrix: Path, source_logits: Floats, tmp_path: Path
) -> None:
    """Blocks of the search mean to llama.cpp what they mean here."""
    check_agreement(name, "least-error", imatrix, source_logits, tmp_path)


def check_agreement(
    name: str, search: str, imatrix: Path, source_logits: Floats, tmp_path: Path
) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(
        WIDE.path,
        path,
        no_tokenizer=True,
        tensor_types=[f"{MATRICES}={name}"],
        imatrix=imatrix,
        search=search,
    )
    found = llama_cpp.logits(path, TOKENS.tolist(), threads=1)
    activations = ACTIVATIONS.get(name, "Q8_K")
    closest, clear = AGREEMENT[activations]
    expected = run(open_graph(path), ROUND[activations])
    errors = differences(found, expected.logits)
    is_clear = expected.margins > CLEAR_MARGIN
    assert is_clear.mean() > 0.5
    assert errors.min() < closest
    assert errors[is_clear].max() < clear
    # The bound is tight enough to tell these weights from those that they were made of.
    if TYPES[name].block_elements > 1:
        assert differences(found, source_logits).min() > 2 * closest
