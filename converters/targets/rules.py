"""Choose the type of each tensor of a directory by the directory's type and by rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.graph import Family, Place
from weightcast.converters.recipes import (
    Candidate,
    DirectoryType,
    Override,
    find_overrides,
    unfollowed_notes,
)
from weightcast.converters.targets.target import asked_note, grouped_notes
from weightcast.errors import LayoutError
from weightcast.quant.types import TYPES, QuantType, WeightType

CONVENTION: Final = "hugging_face"
_FLOATS: Final = "bf16, f16 or f32"


@dataclass(frozen=True, slots=True)
class TypeChoice:
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
    family: Family,
    tensors: Sequence[tuple[Place, int, QuantType]],
    directory: DirectoryType,
    overrides: Sequence[Override] = (),
) -> tuple[list[TypeChoice], tuple[str, ...]]:
    """Choose types for all tensors, given with the number of experts and their plain types.

    A rule's pattern is searched in the GGUF name and in that of the directory; notes say which
    rules no tensor follows. Raises LayoutError for a rule that asks for packed norms, routers or
    embeddings.
    """
    heads = {
        name: family.name_in(tied, CONVENTION)
        for name, tied in family.ties.items()
        if tied.role.name in family.names[CONVENTION]
    }
    named = list(_named(family, tensors))
    candidates = [
        Candidate(
            (place.name, name, *(head for of, head in heads.items() if of == place.name)),
            whole_name=place.role.storage == "float32",
        )
        for place, _, name, _ in named
    ]
    found = []
    followed = find_overrides(overrides, candidates)
    for (place, expert, name, plain), override in zip(named, followed, strict=True):
        if override is None:
            chosen = by_directory(place, plain, directory)
            found.append(TypeChoice(place, expert, name, chosen, plain))
            continue
        if override.type.is_plain:
            plain = TYPES[override.type.label]
        else:
            _check_matrix(place, name, override)
        found.append(TypeChoice(place, expert, name, override.type, plain, override.origin))
    return found, tuple(unfollowed_notes(overrides, candidates, "in GGUF or in a directory"))


def _named(
    family: Family, tensors: Sequence[tuple[Place, int, QuantType]]
) -> Iterator[tuple[Place, int | None, str, QuantType]]:
    for place, n_experts, plain in tensors:
        one = family.stored(place, CONVENTION).is_one_expert
        for expert in range(n_experts) if one else (None,):
            yield place, expert, family.name_in(place, CONVENTION, expert), plain


def by_directory(place: Place, plain: QuantType, directory: DirectoryType) -> WeightType:
    """Choose the type that a directory gives a tensor for which no rule asks another."""
    if not directory.is_packed or place.layer is None or place.role.storage != "packed":
        return plain
    wanted = directory.experts if place.role.is_experts else directory.attention
    return plain if wanted.is_plain else wanted


def _check_matrix(place: Place, name: str, override: Override) -> None:
    """Raise LayoutError unless a tensor is one of those that can be packed."""
    asked = override.type.label
    if place.role.storage == "float32":
        raise LayoutError(
            f"{override.origin} asks for {asked}, but norms and routers ({name}) can only be "
            f"{_FLOATS} in a directory"
        )
    if place.layer is None:
        raise LayoutError(
            f"{override.origin} asks for {asked}, but the embedding ({name}) and lm_head can only "
            f"be {_FLOATS} in a directory; let the pattern leave them out"
        )


def rule_notes(choices: Sequence[TypeChoice]) -> tuple[str, ...]:
    """Say what became of the rules."""
    return grouped_notes(
        (choice.name, None if choice.override is None else asked_note(choice.type, choice.override))
        for choice in choices
    )
