"""Real llama.cpp runs our GGUF files and agrees with the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import MAX_LLAMA_DIFFERENCE, Golden

import weightcast
from weightcast.converters import llama_cpp
from weightcast.converters.demo import clear_tokens, log_probabilities


@pytest.mark.parametrize("split", [None, "2M"])
def test_f32_log_probabilities_and_next_tokens(
    golden: Golden, tmp_path: Path, split: str | None
) -> None:
    weightcast.convert(golden.path, tmp_path / "m-F32.gguf", no_tokenizer=True, split=split)
    first = sorted(tmp_path.glob("*.gguf"))[0]
    assert ("-00001-of-" in first.name) == (split is not None)
    found = log_probabilities(llama_cpp.logits(first, golden.tokens.tolist()))
    expected = log_probabilities(golden.logits)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < MAX_LLAMA_DIFFERENCE
    top2 = np.sort(expected, axis=-1)[..., -2:]
    clear = top2[..., 1] - top2[..., 0] > MAX_LLAMA_DIFFERENCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("type_name", ["BF16", "F16", "Q8_0"])
def test_other_types_load_and_run(tiny: Path, tmp_path: Path, type_name: str) -> None:
    path = tmp_path / f"m-{type_name}.gguf"
    weightcast.convert(tiny, path, no_tokenizer=True)
    graph = weightcast.open(tiny)
    logits = llama_cpp.logits(path, clear_tokens(graph)[:1].tolist())
    assert logits.shape[-1] == graph.spec.vocab_size
    assert np.isfinite(logits).all()


def test_a_gguf_with_its_tokenizer_loads(tiny: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, path, tokenizer=tokenizer_model)
    logits = llama_cpp.logits(path, [[5, 6, 7]])
    # 400 pieces were filled up to the model's 1024 rows.
    assert logits.shape == (1, 3, 1024)


def test_a_damaged_file_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, path, no_tokenizer=True)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(weightcast.CheckpointError, match="does not load it") as caught:
        llama_cpp.logits(path, [[5, 6, 7]])
    assert "\n" not in str(caught.value)
