"""Tokenizers: SentencePiece models read, and written as GGUF metadata or Hugging Face's JSON."""

from weightcast.formats.tokenizer.hugging_face import tokenizer_json
from weightcast.formats.tokenizer.sentencepiece import (
    Vocabulary,
    from_gguf,
    gguf_values,
    read_sentencepiece,
)

__all__ = ["Vocabulary", "from_gguf", "gguf_values", "read_sentencepiece", "tokenizer_json"]
