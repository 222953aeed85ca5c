"""Tokenize as llama.cpp does with byte-level BPE vocabularies ("gpt2" in GGUF files).

The work is done by Hugging Face's tokenizers, on a model made of the file's tokens and merges.
`tokenizer.ggml.pre` names how a text is cut to words before: the patterns are the published ones of
the models that the names come from. Source: llama_vocab::impl::load and llm_tokenizer_bpe in
src/llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import FormatError, MissingPackageError
from weightcast.evaluation.tokenizers.whole import KEY, WholeTokens, whole_tokens
from weightcast.formats.tokenizer.sentencepiece import NORMAL
from weightcast.text import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GPT2: Final = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_DIGITS_APART: Final = (r"\p{N}", *_GPT2)
_SHORT_FORMS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _newer(numbers: str) -> tuple[str, ...]:
    """Give the pattern of Llama 3 and its kin, which differ in how many digits make a word."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    return (rf"{_SHORT_FORMS}|{words}|\s*[\r\n]+|\s+(?!\S)|\s+",)


@dataclass(frozen=True, slots=True)
class _Words:
    """How a text is cut to words, by patterns one after the other; what to do with whole words.

    With `ignores_merges` a word that is a token is not made of its parts.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


_LLAMA3: Final = _Words(_newer(r"\p{N}{1,3}"), ignores_merges=True, adds_bos=True)
_BY_PATTERN: Final = {
    _Words(_GPT2): "gpt-2 phi-2 gigachat a.x-4.0 mellum mpt olmo jais exaone4 trillion "
    "granite-docling",
    _Words(_DIGITS_APART): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    _LLAMA3: "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    _Words(_newer(r"\p{N}{1,3}")): "dbrx smaug-bpe",
    _Words(_newer(r"\p{N}{1,3}"), ignores_merges=True): "glm4 glm5",
    _Words(_newer(r"\p{N}")): "qwen2 deepseek-r1-qwen kormo stablelm2 hunyuan megrez solar-open "
    "grok-2",
}
WORDS: Final = {name: words for words, names in _BY_PATTERN.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class BpeTokenizer:
    """A tokenizer of bytes and merges; `bos` and `eos` are None where none is added to a text."""

    tokenizer: Tokenizer
    whole: WholeTokens
    bos: int | None
    eos: int | None

    def encode(self, text: str) -> NDArray[np.int32]:
        """Split a text into ids int32 [n], with BOS and EOS if the vocabulary adds them."""
        found = [] if self.bos is None else [self.bos]
        for part in self.whole.split(text):
            if isinstance(part, int):
                found.append(part)
            else:
                found += self.tokenizer.encode(part, add_special_tokens=False).ids
        if self.eos is not None:
            found.append(self.eos)
        return np.array(found, np.int32)

    def piece(self, token: int) -> str:
        """Give the text of a token; bytes that are no character alone are marked."""
        found: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return found


def bpe_from_gguf(path: Path, metadata: Mapping[str, Any], remedy: str) -> BpeTokenizer:
    """Make a tokenizer of GGUF metadata. Raises CheckpointError; `remedy` says what else can be."""
    name = metadata.get(KEY + "pre")
    words = WORDS.get(name) if isinstance(name, str) else None
    if words is None:
        raise FormatError(
            path, None, f"words cut as in {shown(name)}, which is not known; {remedy}"
        )
    tokens, merges, types = _checked(path, metadata)
    bos = _special(path, metadata, "bos", len(tokens), adds=words.adds_bos)
    eos = _special(path, metadata, "eos", len(tokens), adds=False)
    whole = whole_tokens(metadata, tokens, types)
    return BpeTokenizer(_tokenizer(path, words, tokens, merges), whole, bos, eos)


def _checked(
    path: Path, metadata: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]], list[int]]:
    tokens, merges = metadata.get(KEY + "tokens"), metadata.get(KEY + "merges")
    for values, what in ((tokens, "tokens"), (merges, "merges")):
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise FormatError(path, None, f"tokenizer.ggml.{what} is not a list of texts")
        if any("\udc80" <= c <= "\udcff" for value in values for c in value):
            raise FormatError(path, None, f"tokenizer.ggml.{what} has what is not UTF-8")
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    types = metadata.get(KEY + "token_type", np.full(len(tokens), NORMAL))
    if not (
        isinstance(types, np.ndarray) and types.dtype.kind in "iu" and len(types) == len(tokens)
    ):
        raise FormatError(path, None, "tokenizer.ggml.token_type is not a number for each token")
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut > 0:
            pairs.append((merge[:cut], merge[cut + 1 :]))
    return tokens, pairs, types.tolist()


def _special(
    path: Path, metadata: Mapping[str, Any], name: str, n_tokens: int, *, adds: bool
) -> int | None:
    """Give the id of the token that is put at an end of a text; None if none is."""
    if not metadata.get(f"{KEY}add_{name}_token", adds):
        return None
    number = metadata.get(f"{KEY}{name}_token_id")
    if type(number) is not int or not 0 <= number < n_tokens:
        problem = f"{name.upper()} is added to a text, but {name}_token_id is {shown(number)}"
        raise FormatError(path, None, problem)
    return number


def _tokenizer(
    path: Path, words: _Words, tokens: list[str], merges: list[tuple[str, str]]
) -> Tokenizer:
    try:
        from tokenizers import Regex, Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    except ModuleNotFoundError:
        raise no_tokenizers(path) from None
    ids = {token: number for number, token in enumerate(tokens)}
    # llama.cpp passes over merges of what the vocabulary lacks; tokenizers would take none of them.
    known = [pair for pair in merges if {*pair, "".join(pair)} <= ids.keys()]
    try:
        made = Tokenizer(BPE(ids, known, ignore_merges=words.ignores_merges))
    except Exception as problem:  # tokenizers raises no narrower one
        raise FormatError(path, None, f"its tokens make no tokenizer: {problem}") from None
    splits = [Split(Regex(pattern), "isolated") for pattern in words.patterns]
    made.pre_tokenizer = Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


def no_tokenizers(path: Path) -> MissingPackageError:
    """Make the error for a tokenizer that needs the package which is not there."""
    return MissingPackageError(
        f"{path}: its tokenizer needs the package tokenizers: pip install tokenizers"
    )
