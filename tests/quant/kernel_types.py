"""The types that the kernel tests go through, and what each needs to be told."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.quant import oracle
from weightcast.quant.types import TYPES, QuantType

BLOCK_TYPES = {name: t for name, t in TYPES.items() if t.block_elements > 1}

# Where a block has its float16 scales and minima, in bytes. MXFP4 and NVFP4 have 8-bit ones.
FLOAT16_FIELDS = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "Q1_0", "Q2_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS"), (0,)),
    **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S"), (0,)),
}


def overflowed_blocks(rows: NDArray[np.uint8], quant_type: QuantType) -> NDArray[np.bool_]:
    """Say which blocks [n_out, n_blocks] of rows have a float16 scale of infinity or NaN."""
    blocks = rows.reshape(len(rows), -1, quant_type.block_bytes)
    if quant_type.name == "IQ1_M":  # a nibble of d in the top bits of each of four words
        words = blocks[..., 48:].copy().view(np.uint16) >> 12
        d = (words << np.array([0, 4, 8, 12], np.uint16)).sum(axis=-1)
        return (d & 0x7C00) == 0x7C00
    found = np.zeros(blocks.shape[:2], np.bool_)
    for offset in FLOAT16_FIELDS.get(quant_type.name, ()):
        d = blocks[..., offset : offset + 2].copy().view(np.uint16)[..., 0]
        found |= (d & 0x7C00) == 0x7C00
    return found


# Importance matrices by kind; "none" is what a type that ignores or may lack one gets too.


def plain_importance(n_in: int) -> NDArray[np.float32]:
    """Draw means of squares as llama-imatrix finds them; in the second 256 a third are zero."""
    rng = np.random.default_rng(20)
    importance = (rng.standard_normal(n_in) ** 2 * 10 ** rng.uniform(-3, 1, n_in)).astype(
        np.float32
    )
    importance[256:512][rng.random(importance[256:512].size) < 1 / 3] = 0
    importance[512:544] = 1
    return importance


def wild_importance(n_in: int) -> NDArray[np.float32]:
    """First 256: any power of ten to 30; second: 32 each of 1e30, 1e-30 and 0; then all zero."""
    importance = (10 ** np.random.default_rng(21).uniform(-30, 30, n_in)).astype(np.float32)
    extremes = np.repeat(np.float32([1e30, 1e-30, 0, 1]), 32)
    importance[256:512] = np.tile(extremes, 2)[: importance[256:512].size]
    importance[512:] = 0
    return importance


IMPORTANCE = {
    "plain": plain_importance,
    "wild": wild_importance,
    "tiny": lambda n_in: np.full(n_in, 1e-30, np.float32),
    "zero": lambda n_in: np.zeros(n_in, np.float32),
}


def importance_of(kind: str, n_in: int) -> NDArray[np.float32] | None:
    """Make the importance [n_in] of a kind."""
    return None if kind == "none" else IMPORTANCE[kind](n_in)


def least_importance(quant_type: QuantType, n_in: int) -> NDArray[np.float32] | None:
    """Ones for a type that cannot be made without importance, nothing for the others."""
    return np.ones(n_in, np.float32) if quant_type.importance == "required" else None


def kinds_for(quant_type: QuantType, *kinds: str) -> tuple[str, ...]:
    """Of some kinds of importance, and "none", those that a type can be made with."""
    if quant_type.importance == "ignored":
        return ("none",)
    return kinds if quant_type.importance == "required" else ("none", *kinds)


def with_kinds(
    *kinds: str, types: Iterable[QuantType] = tuple(BLOCK_TYPES.values())
) -> pytest.MarkDecorator:
    """Run a test once for each type and each kind of importance that fits it."""
    pairs = [(t, kind) for t in types for kind in kinds_for(t, *kinds)]
    return pytest.mark.parametrize(
        ("quant_type", "kind"), pairs, ids=[f"{t.name}-{kind}" for t, kind in pairs]
    )


def is_slow(quant_type: QuantType) -> bool:
    """Whether ggml, and so each test, needs minutes for what others do in seconds."""
    return quant_type.ggml_id in oracle.GRID_TYPES
