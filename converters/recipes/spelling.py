"""Read names of types as people write them, and say what other programs' names stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

from weightcast.text import closest, option, spoken

_Found = TypeVar("_Found")

# Characters that come before a type in a name, and that people put into it or leave out.
_SEPARATOR: Final = re.compile(r"[-._ ]")
# Endings that say an importance matrix was used: model-Q4_K_M-imat.gguf.
_IMATRIX_ENDING: Final = re.compile(r"[-._ ](?:imat(?:rix)?)$", re.IGNORECASE)
# What others put before the type for the same: model.i1-Q4_K_M.gguf.
_IMATRIX_BEFORE: Final = re.compile(r"(?:^|[-._ ])(?:imat(?:rix)?|i1)[-._ ]$", re.IGNORECASE)
# Endings of a split file's parts, and of an output that was not finished.
_PART_ENDING: Final = re.compile(r"-\d{5}-of-\d{5}$")
_FINER_ENDS: Final = "'^(output|token_embd).weight$=Q8_0'"
# Names that people ask for and that are no types here: what to do instead.
_ELSEWHERE: Final[tuple[tuple[str, str], ...]] = (
    *(
        (name, f"it is {base} with embedding and output finer: add {{rule}} {_FINER_ENDS}")
        for name, base in (
            ("Q2_?K_?L", "Q2_K"),
            ("Q3_?K_?XL", "Q3_K_L"),
            ("Q4_?K_?L", "Q4_K_M"),
            ("Q5_?K_?L", "Q5_K_M"),
            ("Q6_?K_?L", "Q6_K"),
        )
    ),
    (
        r"(UD_)?I?Q\d_?(K_?)?(X{1,2}L|XX?S)",
        "it is a recipe of Unsloth's, another one for each model; take a type that weightcast "
        "types lists, and {rule} for single tensors",
    ),
    (r"Q4_?0_?[48]_?[48]", "llama.cpp repacks Q4_0 when it loads it: take Q4_0"),
    (r"I?Q\d_?(?:KS|KT|KSS|KL|K_R\d)|I?Q\d_?\d_R\d", "it is a type of ik_llama.cpp alone"),
    (r"Q8_?[1K]", "it is llama.cpp's for activations, not for files: take Q8_0"),
    (r"EXL[23]|HQQ|BNB|NF4|AQLM|QUIP", "weightcast does not write it"),
    (r"W4A16", "it is called int4-g128 here"),
    (r"W8A16", "it is called int8 here"),
    (r"W8A8|INT8_?W8A8", "weightcast does not write it; fp8 has 8-bit activations"),
    (r"GPTQ", "say its bits and group size: int4-g128-gptq"),
    (r"AWQ", "say its bits and group size: int4-g128-awq"),
    (r"INT[48]_?G\d+.*", "groups are of 32, 64, 128 or 256 weights: int4-g128"),
    (r"4_?BITS?|Q4|INT4", "4 bits are Q4_K_M in GGUF, int4-g128 in a directory"),
    (r"8_?BITS?|Q8|INT8", "8 bits are Q8_0 in GGUF, int8 in a directory"),
    (r"FP4", "4-bit floats are MXFP4 or NVFP4"),
    (r"Q[56]", "it has several kinds: Q5_K_M, Q6_K"),
    (r"Q[23]", "it has several kinds: Q2_K, Q3_K_M"),
)


def key(name: str) -> str:
    """Reduce a name to what people agree on: upper case, without separators."""
    return _SEPARATOR.sub("", name).upper()


def look_up(written: str, table: Mapping[str, _Found]) -> _Found | None:
    """Look a name up in any case, with another separator or none where the table has "_".

    A separator elsewhere belongs to what comes before the type: b-F16 is no BF16.
    """
    for name, found in table.items():
        if key(name) == key(written):
            pattern = re.escape(name).replace("_", f"{_SEPARATOR.pattern}?")
            return found if re.fullmatch(pattern, written, re.IGNORECASE) else None
    return None


def endings(stem: str) -> Iterable[str]:
    """Give what a name may end in, the longest first: all of it, then what follows separators."""
    yield stem
    for match in _SEPARATOR.finditer(stem):
        yield stem[match.end() :]


def find_ending(stem: str, lookup: Callable[[str], _Found | None]) -> tuple[str, _Found] | None:
    """Find the type that a name ends in, as it is written and as it was found."""
    for written in endings(stem):
        found = lookup(written) if written else None
        if found is not None:
            return written, found
    return None


def find_inside(stem: str, lookup: Callable[[str], object | None]) -> str | None:
    """Find a type that a name has, but not at its end."""
    for match in reversed(list(_SEPARATOR.finditer(stem))):
        found = find_ending(stem[: match.start()], lookup)
        if found is not None:
            return found[0]
    return None


def without_imatrix(stem: str) -> tuple[str, bool]:
    """Take the ending off a name that says an importance matrix was used, if it has one."""
    shorter = _IMATRIX_ENDING.sub("", stem)
    return shorter, shorter != stem


def says_imatrix(before: str) -> bool:
    """Tell whether what comes before the type says that an importance matrix was used."""
    return _IMATRIX_BEFORE.search(before) is not None


def is_part(stem: str) -> bool:
    """Tell whether a name is that of one part of a split file."""
    return _PART_ENDING.search(stem) is not None


def explain(name: str) -> str | None:
    """Say what a name of another program stands for here."""
    written = re.sub(r"[-. ]", "_", name.upper())
    for pattern, text in _ELSEWHERE:
        if re.fullmatch(pattern, written):
            return text.replace("{rule}", option("tensor_types"))
    return None


def hint(name: str, known: Iterable[str]) -> str:
    """End a message about an unknown type: what it is elsewhere, or what may have been meant."""
    known = list(known)
    if (slip := closest(name, known, alike=0.87)) is not None:
        return f"; did you mean {slip}?"
    told = explain(name)
    if told is not None:
        return f"; {told}"
    meant = closest(name, known)
    listed = spoken("weightcast types lists them all", "weightcast.types() lists them all")
    return f"; did you mean {meant}?" if meant else f"; {listed}"
