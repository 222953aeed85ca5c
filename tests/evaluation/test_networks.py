"""Networks beside the reference's logits, beside llama.cpp, and beside each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import gguf_files
from tests.adapters import float32
from tests.evaluation.dense_models import VOCABULARY, write_dense
from tests.evaluation.running import draw_tokens, logits
from tests.gguf_files import string, u32
from tests.support import MAX_LOGIT_ERROR, Golden, relative_error
from weightcast.commands import llama_cpp
from weightcast.converters.sources import open_graph
from weightcast.errors import LayoutError
from weightcast.evaluation.arithmetic import Arithmetic, NumpyArithmetic, arithmetic

ARITHMETICS = {"numpy": NumpyArithmetic(), "torch": arithmetic()}
# llama.cpp looks GELU up in a table of float16; measured: 2.2e-4.
MAX_GELU_ERROR = 1e-3
with_both = pytest.mark.parametrize("ops", ARITHMETICS.values(), ids=ARITHMETICS)


@with_both
def test_grok1_gives_the_logits_of_the_reference(golden: Golden, ops: Arithmetic) -> None:
    expected = np.load(golden.path / "logits_fp32.npz")
    found = logits(open_graph(golden.path), expected["tokens"].astype(np.int64), ops)
    assert relative_error(found, expected["logits"]) < MAX_LOGIT_ERROR


@with_both
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_dense_networks_give_the_logits_of_llama_cpp(
    tmp_path: Path, architecture: str, ops: Arithmetic
) -> None:
    path = write_dense(tmp_path / "model.gguf", architecture)
    tokens = draw_tokens(2, 70, VOCABULARY)
    found = logits(open_graph(path), tokens, ops)
    assert relative_error(found, llama_cpp.logits(path, tokens.tolist())) < MAX_LOGIT_ERROR


@with_both
def test_gemma3_gives_the_logits_of_llama_cpp(tmp_path: Path, ops: Arithmetic) -> None:
    """Seven layers: five see a window, the sixth all, the seventh a window again."""

    def write(name: str, window: int) -> Path:
        more = {"attention__sliding_window": u32(window), "rope__freq_base": float32(1e6)}
        return write_dense(tmp_path / name, "gemma3", 7, **more)

    tokens = draw_tokens(2, 70, VOCABULARY)
    narrow = write("narrow.gguf", 16)
    expected = llama_cpp.logits(narrow, tokens.tolist())
    assert relative_error(logits(open_graph(narrow), tokens, ops), expected) < MAX_GELU_ERROR
    wide = logits(open_graph(write("wide.gguf", 70)), tokens, ops)
    assert relative_error(wide, expected) > 30 * MAX_GELU_ERROR


def test_scaled_positions_are_those_of_llama_cpp(tmp_path: Path) -> None:
    scaling = {"rope__scaling__type": string("linear"), "rope__scaling__factor": float32(4.0)}
    path = write_dense(tmp_path / "model.gguf", "llama", **scaling)
    tokens = draw_tokens(1, 70, VOCABULARY)
    expected = llama_cpp.logits(path, tokens.tolist())
    assert relative_error(logits(open_graph(path), tokens), expected) < MAX_LOGIT_ERROR
    plain = write_dense(tmp_path / "plain.gguf", "llama")
    assert relative_error(logits(open_graph(plain), tokens), expected) > 0.01


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"rope__scaling__type": string("yarn")}, "rotary positions scaled by 'yarn'"),
        ({"expert_count": u32(8)}, "llama with experts cannot be run"),
        ({"attention__head_count": string("four")}, "llama.attention.head_count is 'four'"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, more: dict[str, bytes], problem: str
) -> None:
    path = write_dense(tmp_path / "model.gguf", "llama", **more)
    with pytest.raises(LayoutError, match=f"^{path}: {problem}"):
        logits(open_graph(path), draw_tokens(1, 4, VOCABULARY))


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    metadata = {"general.architecture": string("my-arch")}
    tensors = {"token_embd.weight": gguf_files.floats(np.ones((8, 32), np.float32))}
    path = gguf_files.write(tmp_path / "any.gguf", metadata, tensors)
    with pytest.raises(LayoutError, match="cannot run the architecture my-arch; possible: grok, "):
        logits(open_graph(path), draw_tokens(1, 4, 8))
