"""Models of nothing but a vocabulary, which llama.cpp loads, and texts hard to tokenize."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

from tests.support import DATA

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
WIDTH = 32
TRAINING = (DATA.parents[1] / "examples" / "tiny-grok" / "held-out.txt").read_text()
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces   three\t\ttabs\n\n\nnewlines \n x",
    "\r\n\r\n a\rb",
    "<s> </s> <unk> <|im_start|>user\nhi<|im_end|> <end_of_turn><|a|>x <|b|>y",
    "<0x41><0x0A>",
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u0939\u093f\u0928\u094d",
    "\xe9migr\xe9 caf\xe9 e\u0301 \u0130\u0131\u017f\u212a \ufb01 \uff21",
    "\U0001f469\u200d\U0001f469 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\u2581\u2581a \u2581b\u2581",
    "\x00\x01\x7f\x85\xa0\u2003\u3000\u2028x\ufeff",
    "don't I'LL we'Ve 'S 's",
    "1234567 12 3.14 1,000,000 \u0663\u0664\u0665 \xbd \u2167 \xb2",
    "a" * 300,
    " " * 50 + "x",
    "\n" * 20,
    "def f(x):\n    return x**2  # c\n\n\n",
    "!!! ... ,,, => &&& C++;",
    "\U0010ffff\ue000",
    TRAINING,
]


def write_vocabulary(
    path: Path,
    model: str,
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    scores: Sequence[float] | None = None,
    merges: Sequence[str] | None = None,
    pre: str = "default",
    ids: Mapping[str, int] | None = None,
    flags: Mapping[str, bool] | None = None,
) -> Path:
    """Write a Llama without anything in its weights; `ids` and `flags` by their keys."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    if scores is not None:
        writer.add_token_scores(list(scores))
    if merges is not None:
        writer.add_token_merges(list(merges))
    for name, value in (ids or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{name}", value)
    for name, flag in (flags or {}).items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    square = np.zeros((WIDTH, WIDTH), np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), WIDTH), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pieces(model: Path) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece model, as converters write them."""
    processor = SentencePieceProcessor(model_file=str(model))
    ids = range(processor.GetPieceSize())
    types = [
        UNKNOWN
        if processor.IsUnknown(n)
        else CONTROL
        if processor.IsControl(n)
        else BYTE
        if processor.IsByte(n)
        else NORMAL
        for n in ids
    ]
    return [processor.IdToPiece(n) for n in ids], [processor.GetScore(n) for n in ids], types


def trained_bpe(size: int = 500) -> tuple[list[str], list[str]]:
    """Tokens and merges of bytes, learned on words with all that stands before them."""
    made = Tokenizer(BPE())
    words = Split(Regex(r"\s*\S+|\s+"), "isolated")
    made.pre_tokenizer = PreTokenizers([words, ByteLevel(False, use_regex=False)])
    trainer = BpeTrainer(
        vocab_size=size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([TRAINING, "it's we're I'll 'S 1234567 12 1990 !!! ..."], trainer)
    model = json.loads(made.to_str())["model"]
    merges = [" ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), merges
