"""Tokens that llama.cpp takes whole from a text, before it tokenizes what lies between them.

These are the user-defined ones: control tokens are plain text, as llama-imatrix and
llama-perplexity take a text. Some are told by their text, whatever type the file gives them.
Sources: the special tokens of llama_vocab::impl::load and tokenizer_st_partition in
src/llama-vocab.cpp. Not followed is that spaces vanish beside such tokens in models named Phi-3 and
in Jina's encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weightcast.formats.tokenizer.sentencepiece import USER_DEFINED

KEY: Final = "tokenizer.ggml."
# Texts that make a token a control token unless the metadata names another one for its purpose.
_CONTROL: Final = {
    "eom_token_id": ("<|eom_id|>",),
    "fim_pre_token_id": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf_token_id": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid_token_id": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep_token_id": ("<|file_sep|>",),
}
# Older names of these keys.
_OLDER: Final = {
    "fim_pre_token_id": "prefix_token_id",
    "fim_suf_token_id": "suffix_token_id",
    "fim_mid_token_id": "middle_token_id",
}
# Texts that always make a control token: they end what a model says.
_ENDS: Final = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
    }
)
# Texts that are user-defined whatever the file says, and one that is beside two of these.
_DEFINED: Final = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
_END: Final = "<|end|>"
_BESIDE: Final = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})


@dataclass(frozen=True, slots=True)
class WholeTokens:
    """Texts and ids of whole tokens, longest text first: the order in which they are looked for."""

    found: tuple[tuple[str, int], ...]

    def split(self, text: str) -> list[str | int]:
        """Cut a text at whole tokens: their ids, and the texts between, none of them empty."""
        parts: list[str | int] = [text] if text else []
        for token, number in self.found:
            if token in text:
                parts = [piece for part in parts for piece in _cut(part, token, number)]
        return parts


def whole_tokens(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> WholeTokens:
    """Find the whole tokens of a vocabulary by their types and texts."""
    ids = {token: number for number, token in enumerate(tokens)}
    control = set(_ENDS)
    for key, texts in _CONTROL.items():
        if KEY + key not in metadata and KEY + _OLDER.get(key, key) not in metadata:
            control.update(texts)
    defined = {
        tokens[number]
        for number, kind in enumerate(types)
        if kind == USER_DEFINED and tokens[number] not in control
    }
    defined |= _DEFINED & ids.keys()
    if _END in ids and any(pair <= ids.keys() for pair in _BESIDE):
        defined.add(_END)
    found = [(token, ids[token]) for token in defined if token]
    return WholeTokens(tuple(sorted(found, key=lambda each: (-len(each[0].encode()), each))))


def _cut(part: str | int, token: str, number: int) -> list[str | int]:
    if isinstance(part, int):
        return [part]
    pieces: list[str | int] = []
    for between in part.split(token):
        pieces += [between, number] if between else [number]
    return pieces[:-1]
