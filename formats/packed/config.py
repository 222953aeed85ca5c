"""Describe integers in `quantization_config`: what is refused, and what is checked when read.

The keys are those that the readers ask for; where they read one differently, the value is the
one that all of them take. Sources: QuantizationConfig and QuantizationArgs of compressed-tensors
0.20; vllm/model_executor/layers/quantization/{gptq_marlin,awq_marlin}.py of vLLM 0.24.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from weightcast.errors import LayoutError
from weightcast.formats.packed.groups import is_group_type
from weightcast.formats.packed.layout import MatrixShape, Scheme
from weightcast.quant.types import GroupType, WeightType

REGEX: Final = "re:"


def check_some(schemes: Sequence[Scheme]) -> None:
    """Raise LayoutError if nothing is quantized."""
    if not schemes:
        raise LayoutError("nothing is quantized, so there is no quantization to describe")


def group_type_of(scheme: Scheme, layout: str) -> GroupType:
    """Give a scheme's type. Raises LayoutError unless it is integers in groups."""
    if not is_group_type(scheme.type):
        raise LayoutError(f"{layout} stores integers, not {scheme.type}")
    return scheme.type


def only_groups(layout: str, weight_type: WeightType) -> str | None:
    """Say what a layout of integers holds, unless a type is that."""
    if is_group_type(weight_type):
        return None
    return f"{layout} holds int4 and int8 in groups, and bf16, f16, f32"


@dataclass(frozen=True, slots=True)
class Claim:
    """Bits and group size as a config states them: None if it does not, 0 for whole rows.

    Of zero points it counts only that it states some: of symmetric groups they may be there too.
    """

    bits: int | None
    group_size: int | None
    has_zero_points: bool = False

    def fits(self, shape: MatrixShape[GroupType]) -> bool:
        """Tell whether it is true of a matrix."""
        size = shape.type.group_size
        sizes: set[int | None] = {None, size}
        if not size:
            sizes.add(shape.n_in)  # one group a row, by either name
        if self.has_zero_points and shape.type.symmetric:
            return False
        return self.bits in (None, shape.type.bits) and self.group_size in sizes

    def __str__(self) -> str:
        texts = [] if self.bits is None else [f"{self.bits} bits"]
        if self.group_size is not None:
            size = self.group_size
            texts.append(f"groups of {size}" if size else "a scale a row")
        if self.has_zero_points:
            texts.append("zero points")
        return " with ".join(texts)


def contradiction_of_groups(
    config: Mapping[str, Any], shape: MatrixShape[WeightType]
) -> tuple[str, str] | None:
    """Say what a matrix of integers is and what its config says, if no claim fits it."""
    if not is_group_type(shape.type):
        return None
    matrix = MatrixShape(shape.type, shape.n_out, shape.n_in)
    claims = list(_claims(config))
    if not claims or any(claim.fits(matrix) for claim in claims):
        return None
    said = " or ".join(sorted({str(claim) for claim in claims}))
    return str(Claim(shape.type.bits, shape.type.group_size)), said


def claimed_bits(config: Mapping[str, Any], size: int, n_in: int) -> int:
    """Give the bits of matrices with groups of a size, where their bytes do not tell; else 8."""
    sizes = (None, size, *(() if size else (n_in,)))
    found = {claim.bits for claim in _claims(config) if claim.group_size in sizes}
    return 4 if found == {4} else 8


def _claims(config: Mapping[str, Any]) -> Iterator[Claim]:
    """Collect what a quantization_config says of its integers, in the keys of any layout."""
    groups = config.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping) and weights.get("type") == "int":
                claim = _claim(weights, "num_bits")
                yield replace(claim, has_zero_points=weights.get("symmetric") in (False,))
        return
    ours = config.get("groups")
    for said in ours if isinstance(ours, list) else ():
        if isinstance(said, Mapping):
            yield _claim(said, "bits")
    if "bits" not in config:
        return
    yield _claim(config, "bits")
    dynamic = config.get("dynamic")
    for said in dynamic.values() if isinstance(dynamic, Mapping) else ():
        if isinstance(said, Mapping):
            yield _claim({**config, **said}, "bits")


def _claim(said: Mapping[str, Any], bits_key: str) -> Claim:
    bits, size = said.get(bits_key), said.get("group_size")
    if said.get("strategy") == "channel" or size == -1:
        size = 0
    return Claim(bits if type(bits) is int else None, size if type(size) is int else None)
