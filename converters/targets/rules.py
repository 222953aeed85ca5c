"""Which type each tensor of a directory gets: what the directory's type says, and rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.families.grok1.tensors import EMBEDDING, Place
from weightcast.converters.recipes.decide import Override, Rules
from weightcast.converters.recipes.weight_types import (
    DirectoryType,
    WeightType,
    is_plain,
    type_label,
)
from weightcast.converters.targets.target import asked_note, grouped_notes
from weightcast.errors import LayoutError
from weightcast.quant.types import QuantType

# SGLang requires the tied head under its own name.
HEAD: Final = "lm_head.weight"
_FLOATS: Final = "bf16, f16 or f32"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tensor of a directory: its names, its type and who asked for it.

    `plain` is the type that it would have among plain floats.
    """

    place: Place
    expert: int | None
    name: str
    type: WeightType
    plain: QuantType
    override: str | None = None


def choose_types(
    tensors: Sequence[tuple[Place, QuantType]],
    num_experts: int,
    kind: DirectoryType,
    overrides: Sequence[Override] = (),
) -> list[Chosen]:
    """Choose types for all tensors, given with their plain types: a Chosen for each expert.

    A rule's pattern is searched in the GGUF name and in that of the directory. Raises LayoutError
    for a rule that matches nothing, or asks for packed norms, routers or embeddings.
    """
    rules = Rules(overrides)
    found = []
    for place, expert, name, plain in _named(tensors, num_experts):
        names = [place.gguf, name, HEAD] if place.name == EMBEDDING else [place.gguf, name]
        override = rules.find(*names, whole_name=place.role.stays_float32)
        if override is None:
            found.append(Chosen(place, expert, name, _by_kind(place, plain, kind), plain))
            continue
        if not is_plain(override.type):
            _check_matrix(place, name, override)
        else:
            assert isinstance(override.type, QuantType)
            plain = override.type
        found.append(Chosen(place, expert, name, override.type, plain, override.origin))
    everywhere = [name for chosen in found for name in (chosen.place.gguf, chosen.name)]
    rules.check_used([*everywhere, HEAD], "in GGUF or in a directory")
    return found


def _named(
    tensors: Sequence[tuple[Place, QuantType]], num_experts: int
) -> Iterator[tuple[Place, int | None, str, QuantType]]:
    for place, plain in tensors:
        for expert in range(num_experts) if place.role.is_experts else (None,):
            yield place, expert, place.hugging_face(expert), plain


def _by_kind(place: Place, plain: QuantType, kind: DirectoryType) -> WeightType:
    if not kind.is_packed or place.layer is None or place.role.stays_float32:
        return plain
    wanted = kind.experts if place.role.is_experts else kind.attention
    return plain if is_plain(wanted) else wanted


def _check_matrix(place: Place, name: str, override: Override) -> None:
    """Raise LayoutError unless a tensor is one of those that can be packed."""
    asked = type_label(override.type)
    if place.role.stays_float32:
        raise LayoutError(
            f"{override.origin} asks for {asked}, but norms and routers ({name}) can only be "
            f"{_FLOATS} in a directory"
        )
    if place.layer is None:
        raise LayoutError(
            f"{override.origin} asks for {asked}, but the embedding ({name}) and lm_head can only "
            f"be {_FLOATS} in a directory; let the pattern leave them out"
        )


def rule_notes(chosen: Sequence[Chosen]) -> tuple[str, ...]:
    """What became of the rules."""
    return grouped_notes(
        (tensor.name, None if tensor.override is None else asked_note(tensor.type, tensor.override))
        for tensor in chosen
    )
