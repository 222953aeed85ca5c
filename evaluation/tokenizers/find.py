"""Find a model's tokenizer: in its GGUF metadata, or in a file in or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.sources import resolve_source
from weightcast.converters.sources.containers import container
from weightcast.converters.sources.detect import find_beside, unreadable
from weightcast.errors import FormatError, MissingTensorError
from weightcast.evaluation.tokenizers.bpe import bpe_from_gguf
from weightcast.evaluation.tokenizers.hugging_face import read_tokenizer_json
from weightcast.evaluation.tokenizers.spm import SpmTokenizer, spm_processor
from weightcast.evaluation.tokenizers.whole import KEY, WholeTokens, whole_tokens
from weightcast.formats.foreign import require_file
from weightcast.formats.gguf import read as gguf
from weightcast.formats.reading import read_json_object
from weightcast.formats.tokenizer.sentencepiece import from_gguf, read_sentencepiece
from weightcast.text import option, shown

_JSON_NAME: Final = "tokenizer.json"
_CONFIG_NAME: Final = "tokenizer_config.json"
# Where metadata name none, in vocabularies of SentencePiece.
_BOS, _EOS = 1, 2


class Tokenizer(Protocol):
    """What splits a text into ids."""

    @property
    def bos(self) -> int | None:
        """The token that begins a text, and each chunk of one; None if the model has it without."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Split a text into ids int32 [n], with the tokens that the model expects around one."""

    def piece(self, token: int) -> str:
        """Give the text of a token."""


def open_tokenizer(source: str | Path, tokenizer: str | Path | None = None) -> Tokenizer:
    """Find the tokenizer of a model, or read the file given: .model, .json or .gguf.

    Those of SentencePiece and of GGUF files give the tokens that llama.cpp gives with the GGUF file
    of the model. Raises CheckpointError if there is none that can be used, saying what to do.
    """
    path = _file_of(resolve_source(Path(source))) if tokenizer is None else Path(tokenizer)
    if path.suffix == ".json":
        return read_tokenizer_json(path)
    if _is_gguf(path):
        return _from_gguf(path)
    return _from_model(path)


def _remedy() -> str:
    return "give llama.cpp's token ids in a .npy in place of the text"


def _file_of(source: Path) -> Path:
    found = container(source)
    if found.name == "gguf":
        return source
    path = found.find_tokenizer(source) or find_beside(source, _JSON_NAME)
    if path is None:
        raise MissingTensorError(
            f"{source}: no tokenizer.model or tokenizer.json in or beside it; give one "
            f"({option('tokenizer', 'FILE')}), or token ids in a .npy in place of the text"
        )
    return path


def _is_gguf(path: Path) -> bool:
    require_file(path, "tokenizer")
    try:
        with path.open("rb") as file:
            return file.read(len(gguf.MAGIC)) == gguf.MAGIC
    except OSError as problem:
        raise unreadable(path, problem) from None


def _from_gguf(path: Path) -> Tokenizer:
    metadata = gguf.read_file(path).metadata
    model = metadata.get(KEY + "model")
    if model == "gpt2":
        return bpe_from_gguf(path, metadata, _remedy())
    if model != "llama":
        what = (
            "no tokenizer" if model in (None, "none", "no_vocab") else f"tokenizer {shown(model)}"
        )
        raise FormatError(path, None, f"{what} that weightcast could use; {_remedy()}")
    vocabulary = from_gguf(path, metadata)
    assert vocabulary is not None
    return SpmTokenizer(
        spm_processor(path, vocabulary.tokens, vocabulary.scores),
        len(vocabulary.tokens),
        whole_tokens(metadata, vocabulary.tokens, vocabulary.types.tolist()),
        vocabulary.special_ids.get("bos", _BOS) if _flag(metadata, "add_bos_token", True) else None,
        vocabulary.special_ids.get("eos", _EOS)
        if _flag(metadata, "add_eos_token", False)
        else None,
        _flag(metadata, "add_space_prefix", True),
    )


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(KEY + key, default)
    return value if isinstance(value, bool) else default


def _from_model(path: Path) -> Tokenizer:
    """Read a SentencePiece model; BOS and EOS are added if the configuration beside it says so."""
    vocabulary = read_sentencepiece(path)
    config_file = path.with_name(_CONFIG_NAME)
    config = read_json_object(config_file) if config_file.is_file() else {}
    special = {
        name: vocabulary.special_ids.get(name) if config.get(f"add_{name}_token") is True else None
        for name in ("bos", "eos")
    }
    return SpmTokenizer(
        spm_processor(path, vocabulary.tokens, vocabulary.scores),
        len(vocabulary.tokens),
        WholeTokens(()),
        special["bos"],
        special["eos"],
        space_prefix=True,
    )
