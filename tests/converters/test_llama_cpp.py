"""Real llama.cpp runs our GGUF files and agrees with the reference."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from support import MAX_LLAMA_DIFFERENCE, SHARED, Golden

import weightcast
from weightcast.converters import llama_cpp
from weightcast.converters.demo import clear_tokens, log_probabilities
from weightcast.converters.grok1_synthetic import tiny_spec, write_checkpoint


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


TEXTS = [
    "The answer to life, the universe and everything is",
    "  leading and  double spaces ",
    "tabs\tand\nnew lines\n\n\nin a row",
    "\u00fcn\u00efc\u00f6d\u00e9 \u65e5\u672c\u8a9e \U0001f600",
    "def f(x):\n    return x + 1",
    "1234567890 3.14159",
    "\x00 control \x7f",
]


def check_tokens(path: Path, model: Path) -> None:
    """llama.cpp's tokens of a GGUF file are SentencePiece's of the model file, without BOS."""
    library = llama_cpp._library()
    library.llama_tokenize.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_int32),
        ctypes.c_int32,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    loaded = library.llama_model_load_from_file(
        os.fsencode(path), library.llama_model_default_params()
    )
    assert loaded
    vocabulary = library.llama_model_get_vocab(loaded)
    processor = SentencePieceProcessor(model_file=str(model))
    for text in TEXTS:
        raw = text.encode()
        ids = (ctypes.c_int32 * 1024)()
        count = library.llama_tokenize(vocabulary, raw, len(raw), ids, 1024, True, False)
        assert ids[:count] == processor.encode(text), text
    library.llama_model_free(loaded)


def test_tokens_are_those_of_sentencepiece(
    tiny: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, path, tokenizer=tokenizer_model)
    check_tokens(path, tokenizer_model)


@pytest.mark.skipif(
    not (SHARED / "tokenizer.model").is_file(), reason="the release's tokenizer is not here"
)
def test_tokens_of_the_release_are_those_of_sentencepiece(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path, tiny_spec(vocab_size=131072, emb_size=64, num_q_heads=16, key_size=4)
    )
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tmp_path, path, tokenizer=SHARED / "tokenizer.model")
    check_tokens(path, SHARED / "tokenizer.model")


def test_a_damaged_file_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, path, no_tokenizer=True)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(weightcast.CheckpointError, match="does not load it") as caught:
        llama_cpp.logits(path, [[5, 6, 7]])
    assert "\n" not in str(caught.value)
