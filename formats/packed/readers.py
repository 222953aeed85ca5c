"""Say how runtimes take a layout, in words for notes and model cards.

benchmarks/runtimes/README.md says how this was found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from weightcast.quant.types import WeightType


def _never(weight_type: WeightType) -> bool:
    return False


def _takes(weight_type: WeightType, is_expert: bool) -> str | None:
    return None


def _as_they_are(weight_type: WeightType) -> str | None:
    return None


def _takes_all(types: Collection[WeightType]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Readers:
    """Answers of the runtimes to a layout. If none reads it, `unread` is its name in a sentence.

    `transformers` says with what it reads the layout, `transformers_hint` ends the
    sentence.
    `in_vllm` says why vLLM does not load a matrix of a type, given whether it is an expert's; its
    loader was tested with types for which `tested_in_vllm` holds. `activations` says what all of
    them do to activations when they multiply with a type. Where matrices have several
    types, `mixed_experts` says what SGLang makes of experts among them, and `mixed_in_transformers`
    and `mixed_in_llama_cpp` why transformers and llama.cpp's converter do not load them.
    """

    unread: str = ""
    transformers: str = ""
    transformers_hint: str = ""
    in_vllm: Callable[[WeightType, bool], str | None] = _takes
    tested_in_vllm: Callable[[WeightType], bool] = _never
    activations: Callable[[WeightType], str | None] = _as_they_are
    mixed_experts: str = ""
    mixed_in_transformers: Callable[[Collection[WeightType]], str | None] = _takes_all
    mixed_in_llama_cpp: Callable[[Collection[WeightType]], str | None] = _takes_all
